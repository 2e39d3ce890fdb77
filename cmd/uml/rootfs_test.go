package main

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// fakeMaker notes what it is to make.
type fakeMaker struct {
	rootfsMaker
	archive string
	to      rootfsTarget
	removed string
}

func (m *fakeMaker) Remove(_ context.Context, path string) error {
	m.removed = path
	return nil
}

func (m *fakeMaker) Import(_ context.Context, archive io.Reader, to rootfsTarget, _ progress) error {
	data, err := io.ReadAll(archive)
	m.archive, m.to = string(data), to
	return err
}

// fakeMmdebstrap is one that writes an archive of sorts: its arguments, and the recipe that a hook of them names.
func fakeMmdebstrap(t *testing.T, end string) {
	t.Helper()
	dir := t.TempDir()
	script := "#!/bin/sh\nprintf '%s\\n' \"$@\"\nfor a; do case $a in *sync-in*) set -- $a; cat \"$2/packages\";; esac; done\n" + end
	if err := os.WriteFile(filepath.Join(dir, "mmdebstrap"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv("TMPDIR", t.TempDir())
}

// create runs "uml rootfs create debian".
func create(t *testing.T, maker rootfsMaker, args ...string) error {
	t.Helper()
	cmd := newRootfs(maker)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetArgs(append([]string{"create", "debian"}, args...))
	return cmd.ExecuteContext(t.Context())
}

func TestCreateDebian(t *testing.T) {
	fakeMmdebstrap(t, "")
	target := filepath.Join(t.TempDir(), "disk.img")
	var m fakeMaker
	if err := create(t, &m, "--suite", "forky", "--mode", "fakechroot", "--size", "4G", target); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(m.archive, "\n")
	for _, want := range []string{"--format=tar", "--mode=fakechroot", "forky", "openssh-server"} {
		if !slices.Contains(lines, want) {
			t.Errorf("mmdebstrap got no %q:\n%s", want, m.archive)
		}
	}
	if want := (rootfsTarget{target, 4 << 30}); m.to != want {
		t.Errorf("target = %+v, want %+v", m.to, want)
	}
	if left, _ := filepath.Glob(filepath.Join(os.Getenv("TMPDIR"), "*")); len(left) > 0 {
		t.Errorf("what is left: %v", left)
	}
}

// TestCreateDebianFails has either end fail, and the other one told.
func TestCreateDebianFails(t *testing.T) {
	fakeMmdebstrap(t, "exit 3")
	target := filepath.Join(t.TempDir(), "root")
	var half fakeMaker
	if err := create(t, &half, target); err == nil || !strings.Contains(err.Error(), "mmdebstrap: exit status 3; as a normal user") {
		t.Errorf("create with an mmdebstrap that fails = %v", err)
	}
	if half.removed != target {
		t.Errorf("removed = %q, want %s", half.removed, target)
	}
	fakeMmdebstrap(t, "exec sleep 60")
	full := errors.New("the disk is full")
	m := failingMaker{full}
	if err := create(t, m, target); !errors.Is(err, full) {
		t.Errorf("create on a full disk = %v", err)
	}
}

// failingMaker reads nothing.
type failingMaker struct{ err error }

func (m failingMaker) Import(context.Context, io.Reader, rootfsTarget, progress) error { return m.err }

func (m failingMaker) Pull(context.Context, string, rootfsTarget, progress) error { return m.err }

func (m failingMaker) Remove(context.Context, string) error { return m.err }

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
		{"much", filepath.Join(dir, "new"), false},
	} {
		flags := targetFlags{test.size}
		if to, err := flags.target(test.path); (err == nil) != test.ok {
			t.Errorf("target(%s, %q) = %+v, %v", test.path, test.size, to, err)
		}
	}
}
