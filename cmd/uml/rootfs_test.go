package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"docker-usermode-linux/internal/image"
)

func TestTarget(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		size, path string
		ok         bool
	}{
		{"", filepath.Join(dir, "new"), true},
		{"1G", filepath.Join(dir, "new"), true},
		{"", t.TempDir(), true}, // empty
		{"1G", t.TempDir(), false},
		{"", dir, false},
		{"", file, false},
		{"", strings.Repeat("x", 300), false},
		{"much", filepath.Join(dir, "new"), false},
	} {
		flags := targetFlags{size: test.size}
		if to, err := flags.target(test.path); (err == nil) != test.ok {
			t.Errorf("target(%s, %q) = %+v, %v", test.path, test.size, to, err)
		}
	}
}

// TestTargetUnseen checks that nobody is told to remove what nobody could look at.
func TestTargetUnseen(t *testing.T) {
	loop := filepath.Join(t.TempDir(), "loop")
	if err := os.Symlink("loop", loop); err != nil {
		t.Fatal(err)
	}
	if err := (rootfsTarget{Path: loop}).free(); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("free() = %v, want %v", err, syscall.ELOOP)
	}
}

// TestOwnTarget has the choices that do not depend on the host.
func TestOwnTarget(t *testing.T) {
	t.Setenv("PATH", "/sbin:/usr/sbin:/usr/bin:/bin")
	for _, test := range []struct {
		how, variable string
		to            rootfsTarget
		disk          bool
		err           string
	}{
		{ownPlain, "", rootfsTarget{Path: "/a"}, false, ""},
		{"", ownPlain, rootfsTarget{Path: "/a"}, false, ""},
		{"", ownPlain, rootfsTarget{Path: "/a.img"}, true, ""},
		{"", ownPlain, rootfsTarget{Path: "/a", Size: 1}, true, ""},
		{ownDisk, ownPlain, rootfsTarget{Path: "/a"}, true, ""},
		{ownPlain, "", rootfsTarget{Path: "/a.ext4"}, false, "--ownership=plain is for a directory"},
		{ownSubIDs, "", rootfsTarget{Path: "/a", Size: 1}, false, "--ownership=subids is for a directory"},
		{"x", "", rootfsTarget{Path: "/a"}, false, `--ownership="x": write auto, subids, disk, plain`},
		{"", "x", rootfsTarget{Path: "/a"}, false, `OWNERSHIP="x": write auto`},
	} {
		t.Setenv(ownershipVariable, test.variable)
		to := test.to
		note, err := ownTarget(t.Context(), &to, ownership{test.how}, nil)
		if test.err != "" {
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("ownTarget(%+v) = %v, want %s", test, err, test.err)
			}
			continue
		}
		// Without e2fsprogs a disk is an error, and chosen all the same.
		if to.Disk != test.disk || to.Owner || note != "" || err != nil && !test.disk {
			t.Errorf("ownTarget(%+v) = %+v, %q, %v, want disk %v", test, to, note, err, test.disk)
		}
	}
}

// TestRemove removes nothing but root file systems.
func TestRemove(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	dir := t.TempDir()
	home, file, link := filepath.Join(dir, "home"), filepath.Join(dir, "file"), filepath.Join(dir, "link")
	if err := os.MkdirAll(filepath.Join(home, "work"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(home, link); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		home: "does not look like a root file system", file: "is no ext4 file system", link: "neither a directory nor a file",
		filepath.Join(dir, "none"): "no such file",
	} {
		if err := remove(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("remove(%s) = %v, want %s", path, err, want)
		}
	}
	if entries, err := os.ReadDir(dir); len(entries) != 3 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

func TestLosses(t *testing.T) {
	for _, test := range []struct {
		report image.Report
		want   string
	}{
		{image.Report{Entries: 9, Bytes: 9, SkippedDevices: 9, LostOwners: 9}, ""},
		{image.Report{LostXattrs: 2}, ": 2 extended attributes (capabilities of files, labels, ACLs)"},
		{image.Report{LostXattrs: 1, SkippedOthers: 3}, "ACLs), 3 entries that are no files"},
	} {
		if got := losses(test.report); !strings.HasSuffix(got, test.want) || (got == "") != (test.want == "") {
			t.Errorf("losses(%+v) = %q, want %q", test.report, got, test.want)
		}
	}
}
