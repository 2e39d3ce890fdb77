package tempfile

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// TestNew opens such a file by its descriptor, as a guest's kernel does.
func TestNew(t *testing.T) {
	for name, create := range map[string]func(string) (*os.File, error){"O_TMPFILE": New, "removed": removed} {
		dir := t.TempDir()
		f, err := create(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%s: the file has a name: %v, %v", name, left, err)
		}
		again, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_RDWR, 0)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		defer again.Close()
		if _, err := again.WriteString("x"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got, err := io.ReadAll(f); err != nil || string(got) != "x" {
			t.Errorf("%s: content %q, %v", name, got, err)
		}
	}
	if _, err := New(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("New() in no directory = %v", err)
	}
	t.Setenv("TMPDIR", t.TempDir())
	f, err := New("")
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}
