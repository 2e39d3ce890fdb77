package config

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// hooksDir makes a directory with empty files of these modes, and for "name -> target" a link.
func hooksDir(t *testing.T, files map[string]os.FileMode) string {
	t.Helper()
	dir := t.TempDir()
	for name, mode := range files {
		name, target, link := strings.Cut(name, " -> ")
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if link {
			if err := os.Symlink(target, path); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.WriteFile(path, []byte("#"+name), mode); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func hookNames(hooks []Hook) string {
	var names []string
	for _, h := range hooks {
		names = append(names, h.Name)
	}
	return strings.Join(names, " ")
}

func TestParseHooks(t *testing.T) {
	dir := hooksDir(t, map[string]os.FileMode{
		"9-last": 0o755, "10-first.sh": 0o644, "B": 0o700, "a": 0o700, "Ünï code.sh": 0o600, // a locale would sort otherwise
		"README": 0o644, "dump.sql": 0o644, "20.envsh": 0o755,
		".hidden.sh": 0o755, "a.sh~": 0o755, "a.sh.dpkg-new": 0o755, "a.dpkg-old": 0o755,
		"sub/x.sh": 0o755, "stop/2": 0o755, "stop/1.sh": 0o644, "stop/notes": 0o644, "stop/sub/x": 0o755, "stop/.x": 0o755,
		".data/linked": 0o755, "linked -> .data/linked": 0,
	})
	if err := unix.Mkfifo(filepath.Join(dir, "pipe.sh"), 0o755); err != nil {
		t.Fatal(err)
	}
	h, errs := parseHooks(dir)
	if errs != nil {
		t.Fatal(errs)
	}
	if got, want := hookNames(h.Start), "10-first.sh 9-last B a linked Ünï code.sh"; got != want {
		t.Errorf("start hooks %q, want %q", got, want)
	}
	if got, want := hookNames(h.Stop), "1.sh 2"; got != want {
		t.Errorf("stop hooks %q, want %q", got, want)
	}
	if got, want := string(h.Start[4].Script), "#.data/linked"; got != want {
		t.Errorf("script behind a link = %q, want %q", got, want)
	}
	var debris, others []string
	for _, s := range h.Skipped {
		if s.Debris {
			debris = append(debris, s.Name)
		} else {
			others = append(others, s.Name)
		}
	}
	if want := []string{".data", ".hidden.sh", "a.dpkg-old", "a.sh.dpkg-new", "a.sh~", "stop/.x"}; !reflect.DeepEqual(debris, want) {
		t.Errorf("debris %q, want %q", debris, want)
	}
	if want := []string{"20.envsh", "README", "dump.sql", "pipe.sh", "sub", "stop/notes", "stop/sub"}; !reflect.DeepEqual(others, want) {
		t.Errorf("skipped %q, want %q", others, want)
	}
}

func TestParseHooksProblems(t *testing.T) {
	long := t.TempDir()
	if err := os.WriteFile(filepath.Join(long, "a.sh"), make([]byte, maxHook+1), 0o600); err != nil {
		t.Fatal(err)
	}
	many := t.TempDir()
	for i := range maxHooks/maxHook + 1 {
		path := filepath.Join(many, fmt.Sprintf("stop/%d.sh", i))
		if i == 0 {
			path = filepath.Join(many, "0.sh")
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, make([]byte, maxHook), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(long, "a.sh")
	for _, test := range []struct{ dir, want string }{
		{"hooks", "not an absolute path; begin it with a /"},
		{"/does/not/exist", "no such file or directory; mount a directory with scripts there"},
		{file, "not a directory; mount a directory with scripts there"},
		{long, "a.sh: longer than 1M; have it fetch what is long"},
		{many, "stop/8.sh: with it the scripts are longer than 8M; have them fetch what is long"},
		{hooksDir(t, map[string]os.FileMode{"a.sh -> nowhere": 0}), "a.sh: no such file or directory; remove it or mend it"},
		{hooksDir(t, map[string]os.FileMode{"stop": 0o644}), ""},
		{hooksDir(t, map[string]os.FileMode{"empty/a": 0o644}), ""},
	} {
		h, errs := parseHooks(test.dir)
		got := ""
		for _, err := range errs {
			got += err.Error()
		}
		if got != test.want || h.Start != nil || h.Stop != nil {
			t.Errorf("parseHooks(%s) = %s, %s, errors %q, want %q", test.dir, hookNames(h.Start), hookNames(h.Stop), got, test.want)
		}
	}
	_, err := loadWith(t, map[string]string{"HOOKS": "/does/not/exist"})
	if want := `HOOKS="/does/not/exist": no such file or directory; mount a directory with scripts there`; err == nil || err.Error() != want {
		t.Errorf("Load() = %v, want %s", err, want)
	}
}
