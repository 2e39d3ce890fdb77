package runconfig

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
)

var full = Config{
	Env: []string{"PATH=/bin", "EMPTY="}, WorkingDir: "/srv", User: "1000:www", Entrypoint: []string{"/init"},
	Cmd: []string{"a", "b c"},
}

func TestNormal(t *testing.T) {
	in := Config{Env: []string{"A=1", "B", "=c"}, WorkingDir: "srv/../x"}
	want := Config{Env: []string{"A=1"}, WorkingDir: "/x"}
	if got := in.Normal(); !reflect.DeepEqual(got, want) {
		t.Errorf("Normal(%+v) = %+v, want %+v", in, got, want)
	}
	if len(in.Env) != 3 || in.Env[1] != "B" {
		t.Errorf("Normal changed the original: %q", in.Env)
	}
}

func TestIsZero(t *testing.T) {
	if !(Config{}).IsZero() || full.IsZero() || (Config{User: "x"}).IsZero() {
		t.Errorf("IsZero is wrong")
	}
}

func TestMarshal(t *testing.T) {
	text, err := full.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Parse(text); err != nil || !reflect.DeepEqual(got, full) {
		t.Errorf("Parse(Marshal) = %+v, %v, want %+v", got, err, full)
	}
	for _, bad := range []Config{
		{Env: []string{"x"}},
		{Cmd: []string{"a\x00b"}},
		{WorkingDir: "relative"},
		{Cmd: []string{strings.Repeat("x", MaxSize)}},
	} {
		if _, err := bad.Marshal(); err == nil {
			t.Errorf("Marshal(%.60v): no error", bad)
		}
	}
}

func TestRead(t *testing.T) {
	tests := []struct {
		name, text string
		want       Config
		err        string
	}{
		{name: "full", text: `{"Env":["A=b"],"User":"u","New":{"x":1}}`, want: Config{Env: []string{"A=b"}, User: "u"}},
		{name: "empty object", text: `{}`},
		{name: "empty", text: "", err: "unexpected end"},
		{name: "no JSON", text: "\x7fELF", err: "invalid character"},
		{name: "other types", text: `{"Env":"A=b"}`, err: "cannot unmarshal"},
		{name: "no assignment", text: `{"Env":["A"]}`, err: "line 1 of Env"},
		{name: "relative", text: `{"WorkingDir":"a"}`, err: "WorkingDir"},
		{name: "NUL", text: `{"Cmd":["a\u0000"]}`, err: "NUL"},
		{name: "too long", text: strings.Repeat(" ", MaxSize) + "{}", err: "longer than"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root, dir := newRoot(t)
			if err := os.WriteFile(filepath.Join(dir, File), []byte(tt.text), 0o644); err != nil {
				t.Fatal(err)
			}
			got, err := Read(root)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) || !strings.Contains(err.Error(), File) {
					t.Errorf("Read() = %v, want an error with %q and the file's name", err, tt.err)
				}
				return
			}
			if err != nil || !reflect.DeepEqual(got, tt.want) {
				t.Errorf("Read() = %+v, %v, want %+v", got, err, tt.want)
			}
		})
	}
}

func TestReadWithoutFile(t *testing.T) {
	root, _ := newRoot(t)
	if got, err := Read(root); err != nil || !got.IsZero() {
		t.Errorf("Read() = %+v, %v, want nothing", got, err)
	}
}

// What is no regular file is refused, and never waited for.
func TestReadSpecial(t *testing.T) {
	makers := map[string]func(string) error{
		"directory":  func(p string) error { return os.Mkdir(p, 0o755) },
		"link":       func(p string) error { return os.Symlink("/etc/passwd", p) },
		"named pipe": func(p string) error { return syscall.Mkfifo(p, 0o644) },
	}
	for name, make := range makers {
		root, dir := newRoot(t)
		if err := make(filepath.Join(dir, File)); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(root); err == nil || !strings.Contains(err.Error(), "regular") {
			t.Errorf("%s: Read() = %v, want an error", name, err)
		}
	}
}

func newRoot(t *testing.T) (*os.Root, string) {
	t.Helper()
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	return root, dir
}

// What Parse takes, Marshal takes, and the other way round.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"Env":["A=b"],"WorkingDir":"/x","User":"u:g","Entrypoint":["a"],"Cmd":["b"]}`))
	f.Add([]byte(`{"Env":null}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := Parse(text)
		if err != nil {
			if !c.IsZero() {
				t.Fatalf("Parse(%q) = %+v beside an error", text, c)
			}
			return
		}
		again, err := c.Marshal()
		if err != nil {
			t.Fatalf("Marshal(%+v): %v", c, err)
		}
		got, err := Parse(again)
		if err != nil {
			t.Fatalf("Parse(%q): %v", again, err)
		}
		if last, _ := got.Marshal(); string(last) != string(again) {
			t.Fatalf("Marshal = %q, then %q", again, last)
		}
	})
}
