package image

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMountIn(t *testing.T) {
	const info = `22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:25 / /srv/my\040root/mnt rw - tmpfs tmpfs rw
31 22 0:26 /x /srv/a\134b rw master:1 - ext4 /dev/sda1 rw
broken
32 22 0:27 / /srv/last\04 rw - tmpfs tmpfs rw
`
	for dir, want := range map[string]string{
		"/srv/my root":       "/srv/my root/mnt",
		"/srv/my root/mnt":   "/srv/my root/mnt",
		"/srv/my root/mnt/x": "",
		"/srv/my":            "",
		`/srv/a\b`:           `/srv/a\b`,
		`/srv/last\04`:       `/srv/last\04`,
		"/home":              "",
		"/":                  "/",
	} {
		if got := mountIn(info, dir); got != want {
			t.Errorf("mountIn(%q) = %q, want %q", dir, got, want)
		}
	}
}

// TestRemoveMounted leaves alone what is mounted in a root file system, and so the root file system.
func TestRemoveMounted(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "my tree")
	mnt := filepath.Join(dir, "mnt")
	other := t.TempDir()
	kept := filepath.Join(other, "kept")
	if err := os.MkdirAll(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(kept, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(other, mnt, "", unix.MS_BIND, ""); err != nil {
		t.Skip("cannot mount: ", err)
	}
	defer func() { _ = unix.Unmount(mnt, unix.MNT_DETACH) }()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(filepath.Dir(dir), link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, filepath.Join(link, "my tree"), mnt} {
		checkError(t, Remove(path), mnt+" is mounted in it", "unmount")
	}
	if _, err := os.Stat(kept); err != nil {
		t.Error(err)
	}
	if err := unix.Unmount(mnt, 0); err != nil {
		t.Fatal(err)
	}
	if err := Remove(dir); err != nil {
		t.Error(err)
	}
}
