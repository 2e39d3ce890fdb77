//go:build linux

package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Links are followed as they will be once the directory is /, and none leads out of it.
func TestOpenInRoot(t *testing.T) {
	base := t.TempDir()
	dir := filepath.Join(base, "root")
	writeFile(t, filepath.Join(base, "secret"), "outside")
	writeFile(t, filepath.Join(dir, "etc/file"), "inside")
	writeFile(t, filepath.Join(dir, "secret"), "inside")
	for name, target := range map[string]string{
		"absolute": "/etc/file", "relative": "etc/file", "up": "../secret", "etc/up": "../../secret", "loop": "loop",
		"dangling": "/etc/none", "outside": filepath.Join(base, "secret"),
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	tests := []struct {
		name string
		want error
	}{
		{"etc/file", nil},
		{"/etc/file", nil},
		{"absolute", nil},
		{"relative", nil},
		{"up", nil},
		{"etc/up", nil},
		{"../../secret", nil},
		{"loop", unix.ELOOP},
		{"dangling", unix.ENOENT},
		{"outside", unix.ENOENT},
	}
	for _, tt := range tests {
		fd, err := openInRoot(int(root.Fd()), tt.name, unix.O_RDONLY)
		if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
			t.Skip("openat2(2) is not allowed here")
		}
		if !errors.Is(err, tt.want) {
			t.Errorf("openInRoot(%q) error = %v, want %v", tt.name, err, tt.want)
		}
		if err != nil {
			continue
		}
		buf := make([]byte, 16)
		n, err := unix.Read(fd, buf)
		if got := string(buf[:max(n, 0)]); got != "inside" {
			t.Errorf("openInRoot(%q) holds %q, %v, want %q", tt.name, got, err, "inside")
		}
		unix.Close(fd)
	}
	fd, err := openInRoot(int(root.Fd()), "dangling", unix.O_RDONLY|unix.O_CREAT)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	if _, err := os.Stat(filepath.Join(dir, "etc/none")); err != nil {
		t.Errorf("the target of the dangling link was not made: %v", err)
	}
}

func TestDeleteBelow(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "kept")
	writeFile(t, outside, "")
	writeFile(t, filepath.Join(dir, "a/b/c"), "")
	writeFile(t, filepath.Join(dir, "d"), "")
	if err := os.Symlink(filepath.Dir(outside), filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		dev  uint64
		want int
	}{{st.Dev + 1, 3}, {st.Dev, 0}} { // another file system's entries stay
		if err := deleteBelow(dir, step.dev); err != nil {
			t.Fatal(err)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != step.want {
			t.Errorf("after deleteBelow(%d): %v, %v, want %d entries", step.dev, entries, err, step.want)
		}
	}
	if _, err := os.Stat(outside); err != nil {
		t.Errorf("a link was followed: %v", err)
	}
}

func TestLastWord(t *testing.T) {
	for s, want := range map[string]string{"": "", "tty0\n": "tty0", "ttyS0 tty0\n": "tty0"} {
		if got := lastWord(s); got != want {
			t.Errorf("lastWord(%q) = %q, want %q", s, got, want)
		}
	}
}
