package rootfs

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"docker-usermode-linux/internal/boot"
)

func TestHostKey(t *testing.T) {
	root := newTree(t, nil)
	fail := func(err error) { t.Errorf("log: %v", err) }
	first, err := HostKey(root, fail)
	if err != nil {
		t.Fatal(err)
	}
	second, err := HostKey(root, fail)
	if err != nil {
		t.Fatal(err)
	}
	if string(first.PublicKey().Marshal()) != string(second.PublicKey().Marshal()) {
		t.Errorf("the second key is another one")
	}
	for name, want := range map[string]os.FileMode{hostKeyFile: 0o600, hostKeyFile + ".pub": 0o644} {
		checkPerm(t, root, name, want)
	}
	public, err := root.ReadFile(hostKeyFile + ".pub")
	if err != nil || !strings.HasPrefix(string(public), strings.TrimSpace(string(ssh.MarshalAuthorizedKey(first.PublicKey())))+" ") {
		t.Errorf(".pub = %q, %v", public, err)
	}
	if err := root.WriteFile(hostKeyFile, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := HostKey(root, fail); err == nil {
		t.Errorf("a malformed key: no error")
	}
	// A tree that cannot be written to, for root as well.
	other := newTree(t, map[string]string{"etc/ssh/.ssh_host_ed25519_key.docker-usermode-linux/x": ""})
	logged := 0
	if key, err := HostKey(other, func(error) { logged++ }); key == nil || err != nil || logged != 1 {
		t.Errorf("HostKey = %v, %v, %d lines in the log, want a key and one", key, err, logged)
	}
}

// TestMakeHostKeysLink leaves alone a key that is elsewhere in the guest.
func TestMakeHostKeysLink(t *testing.T) {
	root := newTree(t, map[string]string{sshdConfig: ""})
	if err := root.Symlink("/var/lib/keys/rsa", hostKeyRSA); err != nil {
		t.Fatal(err)
	}
	if err := MakeHostKeys(root, boot.Settings{}); err != nil {
		t.Error(err)
	}
	if _, err := root.Lstat(hostKeyFile); err == nil {
		t.Errorf("%s was made beside a key", hostKeyFile)
	}
}

func TestMakeHostKeys(t *testing.T) {
	for _, test := range []struct {
		name  string
		files map[string]string
		s     boot.Settings
		want  bool
	}{
		{"no key yet", map[string]string{sshdConfig: ""}, boot.Settings{}, true},
		{"an empty one, left by a crash", map[string]string{sshdConfig: "", hostKeyECDSA: ""}, boot.Settings{}, true},
		{"a key", map[string]string{sshdConfig: "", hostKeyRSA: "x"}, boot.Settings{}, false},
		{"no server", nil, boot.Settings{}, false},
		{"no init to start it", map[string]string{sshdConfig: ""}, boot.Settings{NoInit: true}, false},
		{"nobody asked for a login", map[string]string{sshdConfig: ""}, boot.Settings{LoginUnasked: true}, false},
	} {
		root := newTree(t, test.files)
		if err := MakeHostKeys(root, test.s); err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
		for name, kind := range map[string]string{hostKeyFile: ssh.KeyAlgoED25519, hostKeyECDSA: ssh.KeyAlgoECDSA256} {
			data, err := root.ReadFile(name)
			if !test.want {
				if err == nil {
					t.Errorf("%s: %s was made", test.name, name)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s: %v", test.name, err)
				continue
			}
			key, err := ssh.ParsePrivateKey(data)
			if err != nil || key.PublicKey().Type() != kind {
				t.Errorf("%s: %s is no %s key, %v", test.name, name, kind, err)
			}
			checkPerm(t, root, name, 0o600)
			checkPerm(t, root, name+".pub", 0o644)
		}
	}
}
