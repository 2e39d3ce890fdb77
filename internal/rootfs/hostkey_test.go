package rootfs

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
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
