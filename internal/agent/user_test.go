package agent

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestParsePasswd(t *testing.T) {
	const text = "# comment:x:1:1:::\n+::::::\n-bad::::::\n\nshort:x:1:1:\nneg:x:-1:1:::\nbig:x:4294967295:1:::\n" +
		"u:x:1000:1001:U,,,:/home/u:/bin/bash\r\nu:x:2:2:second:/:/bin/sh\nlast:*:3:4::/l:"
	for name, want := range map[string]passwdEntry{
		"u":    {"u", "x", 1000, 1001, "/home/u", "/bin/bash"},
		"last": {"last", "*", 3, 4, "/l", ""},
	} {
		got, ok := findPasswd([]byte(text), func(e passwdEntry) bool { return e.name == name })
		if !ok || got != want {
			t.Errorf("findPasswd(%s) = %v, %t, want %v", name, got, ok, want)
		}
	}
	for _, name := range []string{"", "+", "-bad", "# comment", "short", "neg", "big"} {
		if got, ok := findPasswd([]byte(text), func(e passwdEntry) bool { return e.name == name }); ok {
			t.Errorf("findPasswd(%q) = %v, want none", name, got)
		}
	}
}

func TestGroupsOf(t *testing.T) {
	const text = "a:x:1:u\nb:x:2:v,u\nc:x:3:v\nd:x:1:u\n+:::\ne:x:x:u\nf:x:5:uu\ng:x:6: u , v\n"
	if got, want := groupsOf([]byte(text), "u"), []uint32{1, 2, 6}; !slices.Equal(got, want) {
		t.Errorf("groupsOf = %v, want %v", got, want)
	}
}

// TestNoAccounts is a tree of one program, without /etc.
func TestNoAccounts(t *testing.T) {
	a := accounts{t.TempDir()}
	want := &user{name: "root", home: "/root", shell: defaultShell}
	for _, spec := range []string{"", "root", "0"} {
		if got, err := a.lookup(spec); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("lookup(%q) = %v, %v, want %v", spec, got, err, want)
		}
	}
	if got, err := a.lookup("x"); err == nil {
		t.Errorf("lookup(x) = %v, want an error", got)
	}
	if got, err := a.lookup("4294967295"); err == nil {
		t.Errorf("lookup(4294967295) = %v, want an error", got)
	}
}

func TestLongAccountFile(t *testing.T) {
	dir := newTree(t, map[string]string{"etc/group": ""})
	if err := os.WriteFile(filepath.Join(dir, "etc/passwd"), make([]byte, maxAccountFile+1), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := (accounts{dir}).lookup("root"); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("lookup = %v, want an error about the length", err)
	}
}

// TestUserRights looks at files as somebody else, and then as before.
func TestUserRights(t *testing.T) {
	needRoot(t)
	file := filepath.Join(newTree(t, map[string]string{"dir/x": "x"}), "dir")
	if err := os.Chmod(file, 0o700); err != nil {
		t.Fatal(err)
	}
	read := func() error {
		_, err := os.ReadDir(file)
		return err
	}
	u := &user{uid: 4321, gid: 4321, groups: []uint32{5, 6}}
	if err := u.as(read); !os.IsPermission(err) {
		t.Errorf("as another user: %v, want permission denied", err)
	}
	for range 100 {
		if err := read(); err != nil {
			t.Fatalf("as root: %v", err)
		}
	}
}

func FuzzPasswd(f *testing.F) {
	f.Add([]byte("root:x:0:0:root:/root:/bin/bash\n"))
	f.Add([]byte("a:x:0:0:::\r\nb:x:4294967295:1:::"))
	f.Fuzz(func(t *testing.T, data []byte) {
		findPasswd(data, func(e passwdEntry) bool {
			if e.name == "" || e.uid == 1<<32-1 || e.gid == 1<<32-1 || strings.ContainsAny(e.name+e.home+e.shell, ":\x00\n") {
				t.Fatalf("entry %+v", e)
			}
			findShadow(data, e.name)
			return false
		})
	})
}

func FuzzGroup(f *testing.F) {
	f.Add([]byte("a:x:1:u,v\nb:x:2:\n"), "u")
	f.Fuzz(func(t *testing.T, data []byte, name string) {
		groups := groupsOf(data, name)
		slices.Sort(groups)
		if len(slices.Compact(slices.Clone(groups))) != len(groups) || slices.Contains(groups, 1<<32-1) {
			t.Fatalf("groups %v", groups)
		}
		if g, ok := findGroup(data, name); ok && (g.name != name || g.gid == 1<<32-1) {
			t.Fatalf("group %+v", g)
		}
	})
}
