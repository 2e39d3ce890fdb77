package rootfs

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const block = keysBegin + "\nkey1\nkey2\n" + keysEnd + "\n"

func TestWithKeys(t *testing.T) {
	keys := []string{"key1", "key2"}
	tests := []struct {
		name, in string
		keys     []string
		want     string
	}{
		{"new", "", keys, block},
		{"none", "", nil, ""},
		{"append", "mine\n", keys, "mine\n" + block},
		{"no newline", "mine", keys, "mine\n" + block},
		{"same", "mine\n" + block, keys, "mine\n" + block},
		{"replace", "mine\n" + keysBegin + "\nold\n" + keysEnd + "\n", keys, "mine\n" + block},
		{"remove", "mine\n" + block + "other", nil, "mine\nother"},
		{"two blocks", block + "mine\n" + block, keys, "mine\n" + block},
		{"no end", "mine\n" + keysBegin + "\nother\n", nil, "mine\nother\n"},
		{"no begin", "mine\n" + keysEnd + "\nother\n", nil, "mine\nother\n"},
		{"begin twice", keysBegin + "\nmine\n" + block, nil, "mine\n"},
		{"carriage returns", "mine\r\n" + strings.ReplaceAll(block, "\n", "\r\n"), nil, "mine\r\n"},
	}
	for _, tt := range tests {
		if got := string(withKeys([]byte(tt.in), tt.keys)); got != tt.want {
			t.Errorf("%s: withKeys(%q) = %q, want %q", tt.name, tt.in, got, tt.want)
		}
	}
}

// Our block comes and goes without a trace.
func FuzzWithKeys(f *testing.F) {
	f.Add([]byte("mine\n"))
	f.Add([]byte(block + "x"))
	f.Fuzz(func(t *testing.T, text []byte) {
		plain := withKeys(text, nil)
		added := withKeys(text, []string{"key1", "key2"})
		if !bytes.HasSuffix(added, []byte(block)) {
			t.Fatalf("withKeys(%q) = %q, want our block at the end", text, added)
		}
		if again := withKeys(added, []string{"key1", "key2"}); !bytes.Equal(again, added) {
			t.Fatalf("withKeys twice = %q, want %q", again, added)
		}
		removed := withKeys(added, nil)
		if !bytes.Equal(bytes.TrimSuffix(removed, []byte("\n")), bytes.TrimSuffix(plain, []byte("\n"))) {
			t.Fatalf("after removal %q, want %q", removed, plain)
		}
	})
}

func TestSetAuthorizedKeys(t *testing.T) {
	const file = "root/.ssh/authorized_keys"
	root := newTree(t, map[string]string{passwdFile: passwdText})
	if err := SetAuthorizedKeys(root, nil); err != nil {
		t.Fatal(err)
	}
	if got := read(t, root, file); got != "(none)" {
		t.Errorf("without keys: %q, want no file", got)
	}
	if err := SetAuthorizedKeys(root, []string{"key1", "key2"}); err != nil {
		t.Fatal(err)
	}
	if got := read(t, root, file); got != block {
		t.Errorf("with keys: %q, want %q", got, block)
	}
	checkPerm(t, root, file, 0o600)
	checkPerm(t, root, "root/.ssh", 0o700)
	checkPerm(t, root, "root", 0o700)

	// What the SSH server would refuse is repaired.
	for name, perm := range map[string]os.FileMode{file: 0o666, "root/.ssh": 0o777} {
		if err := root.Chmod(name, perm); err != nil {
			t.Fatal(err)
		}
	}
	if err := SetAuthorizedKeys(root, []string{"key1", "key2"}); err != nil {
		t.Fatal(err)
	}
	checkPerm(t, root, file, 0o600)
	checkPerm(t, root, "root/.ssh", 0o700)

	if err := SetAuthorizedKeys(root, nil); err != nil {
		t.Fatal(err)
	}
	if got := read(t, root, file); got != "" {
		t.Errorf("after removal: %q, want an empty file", got)
	}
	checkClean(t, root)
}

func TestHomeOf(t *testing.T) {
	tests := []struct{ passwd, want string }{
		{passwdText, "root"},
		{"", "root"},
		{"root:x:0:0:::/bin/sh\n", "root"},
		{"root:x:0:0::/:/bin/sh\n", "."},
		{"root:x:0:0::/var/lib/../root/:/bin/sh\n", "var/root"},
		{"root:x:0:0::/../../etc:/bin/sh\n", "etc"},
		{"root:x:0:0::home:/bin/sh\n", "home"},
	}
	for _, tt := range tests {
		root := newTree(t, map[string]string{passwdFile: tt.passwd})
		if got, err := homeOf(root); got != tt.want || err != nil {
			t.Errorf("homeOf(%q) = %q, %v, want %q", tt.passwd, got, err, tt.want)
		}
	}
}

func TestSetAuthorizedKeysRefusesLinkOutside(t *testing.T) {
	outside := t.TempDir()
	root := newTree(t, map[string]string{passwdFile: passwdText})
	if err := os.Symlink(outside, filepath.Join(root.Name(), "root")); err != nil {
		t.Fatal(err)
	}
	if err := SetAuthorizedKeys(root, []string{"key1"}); err == nil {
		t.Error("SetAuthorizedKeys() = nil, want an error")
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) > 0 {
		t.Errorf("directory outside = %v, %v, want it empty", entries, err)
	}
}

// Files that came with a bind mount of another user are made root's, or the SSH server would ignore them.
func TestSetAuthorizedKeysOfAnotherOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to make files of another user")
	}
	root := newTree(t, map[string]string{passwdFile: passwdText, "root/.ssh/authorized_keys": "mine\n"})
	for _, name := range []string{"root/.ssh", "root/.ssh/authorized_keys"} {
		if err := root.Chown(name, 1234, 1234); err != nil {
			t.Fatal(err)
		}
	}
	if err := SetAuthorizedKeys(root, []string{"key1", "key2"}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"root/.ssh", "root/.ssh/authorized_keys"} {
		if got, err := attrOf(root, name); err != nil || got.uid != 0 {
			t.Errorf("owner of %s = %d, %v, want 0", name, got.uid, err)
		}
	}
}
