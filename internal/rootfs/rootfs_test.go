package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"docker-usermode-linux/internal/boot"
)

// newTree makes a directory with the given files and opens it.
func newTree(t *testing.T, files map[string]string) *os.Root {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	return root
}

// read returns a file's text, "(none)" without such a file.
func read(t *testing.T, root *os.Root, name string) string {
	t.Helper()
	data, err := root.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		return "(none)"
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// checkPerm fails the test unless a file has these permissions.
func checkPerm(t *testing.T, root *os.Root, name string, want os.FileMode) {
	t.Helper()
	info, err := root.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != want {
		t.Errorf("permissions of %s = %v, want %v", name, got, want)
	}
}

// checkClean fails the test if a temporary file is left.
func checkClean(t *testing.T, root *os.Root) {
	t.Helper()
	err := filepath.WalkDir(root.Name(), func(path string, _ os.DirEntry, err error) error {
		if strings.HasSuffix(path, ".docker-usermode-linux") {
			t.Errorf("%s is left behind", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

const passwdText = "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1::/:/usr/sbin/nologin\n"

var today = time.Unix(20000*24*60*60+3600, 0)

func TestApply(t *testing.T) {
	root := newTree(t, map[string]string{
		"etc/passwd":                      passwdText,
		"etc/shadow":                      "root:*:1:0:99999:7:::\ndaemon:*:1:0:99999:7:::\n",
		"etc/ssh/sshd_config.d/10-x.conf": "",
	})
	settings := boot.Settings{
		RootPassword: "s3cret", PasswordForced: true, AuthorizedKeys: []string{"ssh-ed25519 AAAA me"},
	}
	if errs := Apply(root, settings); len(errs) != 0 {
		t.Fatalf("Apply() = %v, want none", errs)
	}
	hash, _ := accounts(read(t, root, shadowFile)).field("root", fieldHash)
	if !verifies(hash, "s3cret") {
		t.Errorf("hash %q does not verify the password", hash)
	}
	if got := read(t, root, "root/.ssh/authorized_keys"); !strings.Contains(got, "ssh-ed25519 AAAA me\n") {
		t.Errorf("authorized_keys = %q", got)
	}
	if got := read(t, root, sshdFile); !strings.Contains(got, "PermitRootLogin yes\n") {
		t.Errorf("drop-in = %q", got)
	}
	checkClean(t, root)
}

// A second boot with the same settings has nothing to write, so it leaves no trace and needs no writable tree.
func TestApplyTwice(t *testing.T) {
	root := newTree(t, map[string]string{
		"etc/passwd":                      passwdText,
		"etc/shadow":                      "root:*:1:0:99999:7:::\n",
		"etc/ssh/sshd_config.d/10-x.conf": "",
	})
	settings := boot.Settings{RootPassword: "pw", DefaultPassword: "pw", AuthorizedKeys: []string{"ssh-rsa A"}}
	stamp := time.Unix(1e9, 0)
	files := []string{shadowFile, passwdFile, sshdFile, "root/.ssh/authorized_keys"}
	for boot := range 2 {
		if errs := Apply(root, settings); len(errs) != 0 {
			t.Fatalf("boot %d: Apply() = %v, want none", boot, errs)
		}
		for _, name := range files {
			info, err := root.Stat(name)
			if err != nil {
				t.Fatal(err)
			}
			if boot == 1 && !info.ModTime().Equal(stamp) {
				t.Errorf("%s was written again", name)
			}
			if err := root.Chtimes(name, stamp, stamp); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestApplyWithoutEtc(t *testing.T) {
	root := newTree(t, nil)
	if errs := Apply(root, boot.Settings{RootPassword: "pw", DefaultPassword: "pw"}); len(errs) != 0 {
		t.Errorf("Apply(default password) = %v, want none", errs)
	}
	errs := Apply(root, boot.Settings{RootPassword: "s3cret", PasswordForced: true})
	if len(errs) != 1 || !errors.Is(errs[0], errNoAccount) {
		t.Errorf("Apply(chosen password) = %v, want %v", errs, errNoAccount)
	}
}

func TestApplyNeverNamesThePassword(t *testing.T) {
	root := newTree(t, map[string]string{"etc/passwd": passwdText})
	if err := os.Symlink("/nowhere", filepath.Join(root.Name(), "etc/shadow")); err != nil {
		t.Fatal(err)
	}
	errs := Apply(root, boot.Settings{RootPassword: "s3cret", PasswordForced: true})
	if len(errs) != 1 {
		t.Fatalf("Apply() = %v, want one error", errs)
	}
	if strings.Contains(errs[0].Error(), "s3cret") {
		t.Errorf("the error shows the password: %v", errs[0])
	}
}

func TestCollapseReadOnly(t *testing.T) {
	other := errors.New("other")
	readOnly := &os.PathError{Op: "open", Path: "etc/shadow", Err: syscall.EROFS}
	got := collapseReadOnly([]error{fmt.Errorf("a: %w", readOnly), nil, other, readOnly})
	if len(got) != 2 || !errors.Is(got[0], syscall.EROFS) || got[1] != other {
		t.Errorf("collapseReadOnly() = %v, want one EROFS and %v", got, other)
	}
}
