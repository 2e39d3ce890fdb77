package disk

import (
	"archive/tar"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadFile(t *testing.T) {
	needTools(t)
	image := filepath.Join(t.TempDir(), "a disk?x")
	content := strings.Repeat("content\n", 10_000)
	err := Create(t.Context(), image, Options{Size: 8 << 20, Tar: newTar(t,
		tarEntry{head("file", tar.TypeReg, 0o600, 1, 2), content}, tarEntry{head("empty", tar.TypeReg, 0o600, 1, 2), ""})})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name  string
		limit int
		want  string
	}{
		{"/file", 1 << 20, content},
		{"/file", len(content), content},
		{"/file", 100, content[:100]},
		{"/empty", 1 << 20, ""},
	} {
		got, err := ReadFile(t.Context(), image, test.name, test.limit)
		if err != nil || got == nil || string(got) != test.want {
			t.Errorf("ReadFile(%s, %d) = %.20q (%d bytes), %v, want %d", test.name, test.limit, got, len(got), err, len(test.want))
		}
	}
	if got, err := ReadFile(t.Context(), image, "/none", 100); got != nil || err != nil {
		t.Errorf("ReadFile() of a file that is not there = %q, %v", got, err)
	}
	if err := Check(image); err != nil {
		t.Error(err)
	}
}

func TestCheckNot(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"empty": "", "short": "x", "zeros": strings.Repeat("\x00", 4096)} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Check(path); !errors.Is(err, ErrNotExt4) {
			t.Errorf("Check(%s) = %v, want %v", name, err, ErrNotExt4)
		}
	}
	if err := Check(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Check() of nothing = %v", err)
	}
	if _, err := ReadFile(t.Context(), filepath.Join(dir, "zeros"), "/file", 10); err == nil {
		t.Error("ReadFile() of no file system: no error")
	}
}
