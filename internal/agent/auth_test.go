package agent

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// The hashes of "correct horse", by crypt(3) of libxcrypt 4.4.
var hashes = map[string]string{
	"sha512":   "$6$saltsalt$hRM5XZ86KXEw9UOmjigeVqFgULtFB2sgpC9lXQDfMib3Zgw7mEiUvBJI2EplzfAqxL5Vvwp2scFtv/uamSo5z0",
	"rounds":   "$6$rounds=1000$saltsalt$4GMtaIz3E1AdDi2SmCokEW0ehi.HdxNDcL3fGE1XXuzvo6kbx7UOloZKONqEk5H3JrQA4NOfU8BmqFPrpGqwA1",
	"sha256":   "$5$saltsalt$myjXcpMpE2Ofk7fj9hqyNYSn6lmWG4Mqnjx.KIRRr4/",
	"md5":      "$1$saltsalt$NuzA7WTAelpl95xgBGWN60",
	"bcrypt":   "$2b$05$abcdefghijklmnopqrstuuHNbAKRhpaujgo33bRWs.NLUTJO3lOy2",
	"yescrypt": "$y$j9T$saltsaltsaltsalt$gNcNhvFTt75JDF1LO9O.MCPyp8TkQxrhQSKqUeo/Uy6",
}

const password = "correct horse"

func TestVerify(t *testing.T) {
	for kind, hash := range hashes {
		if err := verify(hash, password); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		for _, wrong := range []string{"", "correct hors", "correct horse ", hash} {
			if err := verify(hash, wrong); !errors.Is(err, errWrongPassword) {
				t.Errorf("%s of %q: %v, want %v", kind, wrong, err, errWrongPassword)
			}
		}
	}
	for _, hash := range []string{
		"", "x", "*", "!", "!!", "!" + hashes["sha512"], "*" + hashes["sha512"], "$", "$$", "$6", "$6$", "$6$salt", "$6$salt$",
		"$6$rounds=999999999$saltsalt$hRM5", "$6$rounds=-1$saltsalt$hRM5", "$6$rounds=x$saltsalt$x", "$2b$31$abcdefghijklmnopqrstuuHNbAKRhpaujgo33bRWs.NLUTJO3lOy2",
		"$2b$05$", "$1$", "$y$", "$y$j9T$", "$y$jzz$saltsaltsaltsalt$x", "$y$j9T$a$b$c$d", "$7$CU..../....saltsalt$4rn3", "sa3tHJ3/KuYvI", password,
		"$plaintext$" + password,
	} {
		for _, p := range []string{password, "", hash} {
			if err := verify(hash, p); err == nil {
				t.Errorf("verify(%q, %q) = nil", hash, p)
			}
		}
	}
}

func FuzzVerify(f *testing.F) {
	for _, hash := range hashes {
		f.Add(hash)
	}
	f.Fuzz(func(t *testing.T, hash string) {
		// Costs in between are for the administrator; here they only take time.
		if strings.HasPrefix(hash, "$2") || strings.HasPrefix(hash, "$y$") || strings.Contains(hash, "rounds=") {
			t.Skip()
		}
		if verify(hash, "\x00 no such password \x00") == nil {
			t.Fatalf("%q opens", hash)
		}
	})
}

// newAuthenticator has the accounts of a test, in root.
func newAuthenticator(t *testing.T) *Authenticator {
	t.Helper()
	today := time.Now().Unix() / (24 * 60 * 60)
	h := hashes["sha512"]
	passwd, shadow := "root:x:0:0::/root:/bin/sh\n", "root:"+h+":19000:0:99999:7:::\n"
	for name, fields := range map[string]string{
		"star": "*:19000:0:99999:7:::", "bang": "!:19000::::::", "locked": "!" + h + ":19000::::::", "empty": "::::::::",
		"expired": h + ":19000:0:99999:7::1:", "later": h + ":19000:0:99999:7::" + fmt.Sprint(today+2) + ":",
		"old": h + ":100:0:10:7:::", "change": h + ":0:0:99999:7:::", "short": h, "nologin": h + ":1::::::", "false": h + ":1::::::",
		"noshell": h + ":1::::::",
	} {
		shell := "/bin/sh"
		switch name {
		case "nologin":
			shell = "/usr/sbin/nologin"
		case "false":
			shell = "/bin/false"
		case "noshell":
			shell = "/no/such/shell"
		}
		passwd += name + ":x:" + fmt.Sprint(os.Getuid()) + ":" + fmt.Sprint(os.Getgid()) + "::" + t.TempDir() + ":" + shell + "\n"
		shadow += name + ":" + fields + "\n"
	}
	passwd += "inpasswd:" + h + ":1:1::/:/bin/sh\nnoshadow:x:1:1::/:/bin/sh\nnopassword::1:1::/:/bin/sh\n"
	return &Authenticator{root: newTree(t, map[string]string{"etc/passwd": passwd, "etc/shadow": shadow}), delay: time.Millisecond}
}

func TestPassword(t *testing.T) {
	a := newAuthenticator(t)
	for _, name := range []string{"root", "later", "short", "inpasswd"} {
		if u, err := a.password(name, password); err != nil || u.name != name {
			t.Errorf("%s: %v, %v", name, u, err)
		}
		if _, err := a.password(name, "wrong"); !errors.Is(err, errWrongPassword) {
			t.Errorf("%s, wrong: %v", name, err)
		}
	}
	for _, name := range []string{
		"star", "bang", "locked", "empty", "expired", "old", "change", "nologin", "false", "noshell", "noshadow", "nopassword", "nobody", "",
	} {
		for _, p := range []string{password, "", "*", "!", "x"} {
			if u, err := a.password(name, p); err == nil {
				t.Errorf("%s: %v opens with %q", name, u, p)
			}
		}
	}
	if _, err := a.password("root", strings.Repeat("x", maxPassword+1)); err == nil || errors.Is(err, errWrongPassword) {
		t.Errorf("a long password: %v", err)
	}
	// nologin(5)
	if err := os.WriteFile(filepath.Join(a.root, "etc/nologin"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := a.password("root", password); err != nil {
		t.Errorf("root despite nologin: %v", err)
	}
	if _, err := a.password("inpasswd", password); err == nil {
		t.Errorf("a user despite nologin")
	}
}

// TestHashesOneAtATime has a password wait while another one is hashed: ten at once, of clients that nobody knows, would
// take ten times the memory.
func TestHashesOneAtATime(t *testing.T) {
	a := newAuthenticator(t)
	a.hashing.Lock()
	checked := make(chan error, 2)
	for _, name := range []string{"root", "nobody"} {
		go func() {
			_, err := a.password(name, password)
			checked <- err
		}()
	}
	select {
	case err := <-checked:
		t.Errorf("a password is checked beside another one: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	a.hashing.Unlock()
	first, second := <-checked, <-checked
	if (first == nil) == (second == nil) {
		t.Errorf("password() = %v and %v, want one success", first, second)
	}
}

// TestHashMemory refuses a hash that takes more than a quarter of the memory.
func TestHashMemory(t *testing.T) {
	for total, want := range map[uint64]uint64{
		32 << 20: 16 << 20, 64 << 20: 16 << 20, 256 << 20: 64 << 20, 1 << 30: 256 << 20, 1 << 40: 256 << 20,
	} {
		if got := maxHashMemory(total); got != want {
			t.Errorf("maxHashMemory(%d MiB) = %d MiB, want %d MiB", total>>20, got>>20, want>>20)
		}
	}
	if err := verifyYescrypt(hashes["yescrypt"], password, 16<<20); err != nil {
		t.Errorf("the default hash within 16 MiB: %v", err)
	}
	if err := verifyYescrypt(hashes["yescrypt"], password, 16<<20-1); err == nil || !strings.Contains(err.Error(), "MiB") {
		t.Errorf("the default hash within less: %v, want an error about memory", err)
	}
}

func newKey(t testing.TB) (signer ssh.Signer, private ed25519.PrivateKey, line string) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err = ssh.NewSignerFromSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	return signer, private, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey())))
}

func TestFindKey(t *testing.T) {
	signer, _, line := newKey(t)
	_, _, other := newKey(t)
	for _, tt := range []struct {
		text string
		want grant
		err  string // "": none
	}{
		{line, grant{}, ""},
		{"# x\n\ngarbage\nssh-ed25519 AAAA x\n" + other + "\n" + line + " comment\r\n", grant{}, ""},
		{"restrict " + line, grant{noPTY: true, noForwarding: true}, ""},
		{"restrict,pty " + line, grant{noForwarding: true}, ""},
		{"pty,restrict " + line, grant{noPTY: true, noForwarding: true}, ""},
		{"RESTRICT,Port-Forwarding " + line, grant{noPTY: true}, ""},
		{"no-pty " + line, grant{noPTY: true}, ""},
		{"no-port-forwarding,no-agent-forwarding,no-X11-forwarding,no-user-rc " + line, grant{noForwarding: true}, ""},
		{`command="echo \"a, b\" c" ` + line, grant{command: `echo "a, b" c`}, ""},
		{`command="a",no-pty ` + line, grant{command: "a", noPTY: true}, ""},
		{`command="a" ` + line + "\n" + line, grant{command: "a"}, ""}, // the first line counts
		{"", grant{}, "unknown key"},
		{other, grant{}, "unknown key"},
		{"#" + line, grant{}, "unknown key"},
		{`command="a ` + line, grant{}, "unknown key"},
		{`command=a ` + line, grant{}, "quotes"},
		{`command="" ` + line, grant{}, "quotes"},
		{`command ` + line, grant{}, "not supported"},
		{`command="a",command="b" ` + line, grant{}, "not supported"},
		{`from="10.0.0.1" ` + line, grant{}, "not supported"},
		{`expiry-time="20200101" ` + line, grant{}, "not supported"},
		{`permitopen="a:1" ` + line, grant{}, "not supported"},
		{`environment="A=b" ` + line, grant{}, "not supported"},
		{`cert-authority ` + line, grant{}, "not supported"},
		{`verify-required ` + line, grant{}, "not supported"},
		{`restrict,future ` + line, grant{}, "not supported"},
	} {
		got, err := findKey([]byte(tt.text), signer.PublicKey())
		if tt.err == "" && (err != nil || got != tt.want) {
			t.Errorf("findKey(%q) = %+v, %v, want %+v", tt.text, got, err, tt.want)
		}
		if tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
			t.Errorf("findKey(%q) = %+v, %v, want an error with %q", tt.text, got, err, tt.err)
		}
	}
}

// FuzzFindKey: whatever else is in its line, a key with an option is not one without.
func FuzzFindKey(f *testing.F) {
	signer, _, line := newKey(f)
	f.Add("", " x\n")
	f.Add("no-pty,", "\n"+line)
	f.Add(`command="a",`, "")
	f.Fuzz(func(t *testing.T, before, after string) {
		got, err := findKey([]byte(before+"restrict "+line+after), signer.PublicKey())
		free := got.command == "" && !got.noPTY && !got.noForwarding
		if err == nil && free && !strings.ContainsAny(before+after, "\n") {
			t.Fatalf("restrict is lost in %q", before)
		}
	})
}

func TestKeyFile(t *testing.T) {
	signer, _, line := newKey(t)
	a := newAuthenticator(t)
	u, err := (accounts{a.root}).byName("star")
	if err != nil {
		t.Fatal(err)
	}
	// The directories above are the testing package's, with modes of its own choice.
	dir, file := filepath.Join(u.home, ".ssh"), filepath.Join(u.home, ".ssh/authorized_keys")
	check := func(what, want string) {
		t.Helper()
		g, err := a.key("star", signer.PublicKey())
		if want == "" && (err != nil || g.user.name != "star") {
			t.Errorf("%s: %v", what, err)
		}
		if want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want an error with %q", what, err, want)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Chmod(u.home, 0o755))
	check("no file", "unknown key")
	must(os.Mkdir(dir, 0o700))
	must(os.WriteFile(file, []byte(line+"\n"), 0o600))
	check("as it should be", "")
	for _, name := range []string{file, dir, u.home} {
		info, err := os.Stat(name)
		must(err)
		for _, mode := range []os.FileMode{0o720, 0o702} {
			must(os.Chmod(name, mode))
			check(name+" with "+mode.String(), "can be written to by others")
		}
		must(os.Chmod(name, info.Mode()))
	}
	if os.Geteuid() == 0 {
		must(os.Chown(dir, 4321, -1))
		check("of somebody else", "belongs to user 4321")
		must(os.Chown(dir, 0, -1))
	}
	must(os.Rename(file, file+"2"))
	must(os.Symlink(file+"2", file))
	check("a link", "")
	must(os.Symlink("/dev/zero", dir+"/zero"))
	must(os.Remove(file))
	must(os.Symlink("/dev/zero", file))
	check("a device", "not a regular file")
	must(os.Remove(file))
	must(os.WriteFile(file, make([]byte, maxKeysFile+1), 0o600))
	check("long", "longer than")

	// The key of an account that is locked, or has no shell.
	for name, works := range map[string]bool{"bang": true, "locked": false, "expired": false, "nologin": false, "change": true} {
		u, err := (accounts{a.root}).byName(name)
		must(err)
		must(os.Chmod(u.home, 0o755))
		must(os.Mkdir(filepath.Join(u.home, ".ssh"), 0o700))
		must(os.WriteFile(filepath.Join(u.home, ".ssh/authorized_keys"), []byte(line), 0o600))
		if _, err := a.key(name, signer.PublicKey()); (err == nil) != works {
			t.Errorf("key of %s: %v, want success %t", name, err, works)
		}
	}
}
