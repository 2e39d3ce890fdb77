package builtin

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// program is some executable file.
func program(t *testing.T) []byte {
	t.Helper()
	path, err := exec.LookPath("true")
	if err != nil {
		t.Skip("no program to copy: " + err.Error())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestAnonymous(t *testing.T) {
	data := program(t)
	path, err := anonymous("linux", data, true)
	if err != nil {
		t.Skip("this host executes no anonymous files: " + err.Error())
	}
	cmd := exec.Command(path)
	for range 4 { // more files than a kernel gets
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	if err := cmd.Run(); err != nil {
		t.Errorf("%s: %v", path, err)
	}
	if f, err := os.OpenFile(path, os.O_WRONLY, 0); err == nil {
		if _, err := f.Write([]byte("x")); err == nil {
			t.Error("the kernel can be overwritten")
		}
		f.Close()
	}
}

func TestAnonymousData(t *testing.T) {
	path, err := anonymous("initramfs", []byte("archive"), false)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if data, err := os.ReadFile(path); err != nil || string(data) != "archive" {
			t.Errorf("content = %q, %v", data, err)
		}
	}
}

func TestCache(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	data := program(t)
	path, err := cache("linux", data)
	if err != nil {
		t.Fatal(err)
	}
	if err := exec.Command(path).Run(); err != nil {
		t.Error(err)
	}
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	again, err := cache("linux", data)
	if err != nil || again != path {
		t.Errorf("cache() again = %s, %v, want %s", again, err, path)
	}
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("a file that is good was replaced: %v", err)
	}
	// What is damaged, or open to others, is made anew.
	for name, damage := range map[string]func() error{
		"content": func() error { os.Chmod(path, 0o700); return os.WriteFile(path, []byte("x"), 0o500) },
		"mode":    func() error { return os.Chmod(path, 0o777) },
		"link": func() error {
			other := filepath.Join(t.TempDir(), "other")
			os.WriteFile(other, []byte("#!/bin/false"), 0o755)
			os.Remove(path)
			return os.Symlink(other, path)
		},
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		if _, err := cache("linux", data); err != nil {
			t.Errorf("%s: cache() = %v", name, err)
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: the file stays damaged, %v", name, err)
		}
	}
	left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".new-*"))
	if len(left) > 0 {
		t.Errorf("files that are left: %v", left)
	}
	// Of another kernel only what is ours is removed.
	foreign := filepath.Join(filepath.Dir(filepath.Dir(path)), "foreign", "linux")
	if err := os.MkdirAll(filepath.Dir(foreign), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(foreign, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	other, err := cache("linux", append(data, 0))
	if err != nil || other == path || !strings.HasPrefix(other, os.Getenv("XDG_CACHE_HOME")) {
		t.Errorf("cache() of another kernel = %s, %v", other, err)
	}
	if _, err := os.Stat(filepath.Dir(path)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the older kernel: %v, want it gone", err)
	}
	if _, err := os.Stat(foreign); err != nil {
		t.Error(err)
	}
}
