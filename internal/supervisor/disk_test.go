package supervisor

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"docker-usermode-linux/internal/config"
	"docker-usermode-linux/internal/disk"
)

// TestHoldRoot has one guest of a host on a directory, or several that write nothing, and containers as they like.
func TestHoldRoot(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	host := config.Options{Host: true}
	alone := config.Config{Rootfs: dir, Options: host}
	shared := config.Config{Rootfs: link, Options: host, Ephemeral: true}
	container := config.Config{Rootfs: dir}
	for _, test := range []struct {
		name         string
		first, other config.Config
		free         bool
	}{
		{"two that write", alone, alone, false},
		{"one that writes, and one that reads", alone, shared, false},
		{"one that reads, and one that writes", shared, alone, false},
		{"two that read", shared, shared, true},
		{"containers", container, container, true},
	} {
		first, err := holdRoot(test.first, "")
		if err != nil {
			t.Fatal(err)
		}
		other, err := holdRoot(test.other, "")
		if free := err == nil; free != test.free || !free && !errors.Is(err, disk.ErrInUse) {
			t.Errorf("%s: %v", test.name, err)
		}
		other.release()
		first.release()
		if again, err := holdRoot(test.other, ""); err != nil {
			t.Errorf("%s: after the first one: %v", test.name, err)
		} else {
			again.release()
		}
	}
	if _, err := holdRoot(config.Config{Rootfs: filepath.Join(dir, "none"), Options: host}, ""); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("holdRoot() of nothing = %v", err)
	}
}

// TestHoldDisk checks that what an ephemeral guest writes outlives a boot, in a file that is nowhere to be seen.
func TestHoldDisk(t *testing.T) {
	dir, runs := t.TempDir(), t.TempDir()
	t.Setenv("TMPDIR", dir)
	image := filepath.Join(dir, "disk")
	if err := os.WriteFile(image, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	root, err := holdRoot(config.Config{Disk: image, Ephemeral: true}, runs)
	if err != nil {
		t.Fatal(err)
	}
	defer root.release()
	if root.changes == nil {
		t.Error("no file for changes")
	}
	for place, want := range map[string]int{dir: 1, runs: 0} {
		if entries, err := os.ReadDir(place); err != nil || len(entries) != want {
			t.Errorf("%s has %v, %v", place, entries, err)
		}
	}
}
