package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// registry makes an empty one, with a short path.
func registry(t *testing.T) Registry {
	t.Helper()
	place(t)
	t.Setenv("XDG_STATE_HOME", filepath.Join(t.TempDir(), "state"))
	r, err := OpenRegistry(os.Geteuid())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// guestOn is a guest of this process with a root file system.
func guestOn(name, root string) Guest {
	return Guest{Name: name, PID: os.Getpid(), Started: time.Now(), Rootfs: root, Ports: []string{}}
}

func names(t *testing.T, r Registry) []string {
	t.Helper()
	guests, err := r.Guests()
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, g := range guests {
		all = append(all, g.Name)
	}
	return all
}

func claim(t *testing.T, r Registry, g Guest, unique bool) *Claim {
	t.Helper()
	c, err := r.Claim(g, unique)
	if err != nil {
		t.Fatalf("Claim(%s) = %v", g.Name, err)
	}
	return c
}

func TestClaim(t *testing.T) {
	r := registry(t)
	a, b := t.TempDir(), t.TempDir()
	first := claim(t, r, guestOn("box", a), false)
	if _, err := r.Claim(guestOn("box", b), false); err == nil || !strings.Contains(err.Error(), "a guest named box is running") {
		t.Errorf("Claim() of a name that is taken = %v", err)
	}
	second := claim(t, r, guestOn("box", b), true)
	if second.Name != "box-2" {
		t.Errorf("Claim() of a unique name = %s, want box-2", second.Name)
	}
	if got := names(t, r); !slices.Equal(got, []string{"box", "box-2"}) {
		t.Errorf("Guests() = %v", got)
	}
	if err := first.Release(0); err != nil {
		t.Error(err)
	}
	if err := second.Release(0); err != nil {
		t.Error(err)
	}
	if got := names(t, r); got != nil {
		t.Errorf("Guests() after the end = %v", got)
	}
}

// TestClaimRoot has one guest on a root file system, by whatever path, or several that write nothing.
func TestClaimRoot(t *testing.T) {
	r := registry(t)
	root := t.TempDir()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(root, link); err != nil {
		t.Fatal(err)
	}
	readOnly := func(name string) Guest {
		g := guestOn(name, root)
		g.ReadOnly = true
		return g
	}
	a := claim(t, r, guestOn("a", root), false)
	for _, g := range []Guest{guestOn("b", link), readOnly("b")} {
		if _, err := r.Claim(g, false); err == nil || !strings.HasPrefix(err.Error(), "guest a has ") {
			t.Errorf("Claim() of a root that is taken = %v, want one that names a", err)
		}
	}
	if err := a.Release(0); err != nil {
		t.Fatal(err)
	}
	b, c := claim(t, r, readOnly("b"), false), claim(t, r, readOnly("c"), false)
	if _, err := r.Claim(guestOn("d", root), false); err == nil {
		t.Error("Claim() to write what others read = nil, want an error")
	}
	if err := b.Release(0); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Claim(guestOn("d", root), false); err == nil || !strings.HasPrefix(err.Error(), "guest c has ") {
		t.Errorf("Claim() to write what another reads = %v, want one that names c", err)
	}
	if err := c.Release(0); err != nil {
		t.Fatal(err)
	}
	if err := claim(t, r, guestOn("d", root), false).Release(0); err != nil {
		t.Error(err)
	}
}

// TestStale checks that what a crash leaves is gone at the next look, and its name and root free.
func TestStale(t *testing.T) {
	r := registry(t)
	root := t.TempDir()
	crashed := claim(t, r, guestOn("box", root), false)
	if _, err := MakeRunDir(crashed.Dir); err != nil {
		t.Fatal(err)
	}
	crashed.lock.Close() // as the kernel does
	if got := names(t, r); got != nil {
		t.Errorf("Guests() after a crash = %v", got)
	}
	if _, err := os.Stat(crashed.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory of a guest that crashed: %v, want it gone", err)
	}
	if err := claim(t, r, guestOn("box", root), false).Release(0); err != nil {
		t.Error(err)
	}
}

// TestUnknown checks that a guest of which nobody knows whether it runs is left alone.
func TestUnknown(t *testing.T) {
	r := registry(t)
	c := claim(t, r, guestOn("box", t.TempDir()), false)
	lock, aside := filepath.Join(c.Dir, guestLock), filepath.Join(c.Dir, "aside")
	if err := errors.Join(os.Rename(lock, aside), os.Symlink(guestLock, lock)); err != nil { // ELOOP
		t.Fatal(err)
	}
	if guests, err := r.Guests(); err == nil || !strings.Contains(err.Error(), "look whether guest box runs") {
		t.Errorf("Guests() = %v, %v, want an error", guests, err)
	}
	if err := os.Rename(aside, lock); err != nil {
		t.Fatal(err)
	}
	if got := names(t, r); !slices.Equal(got, []string{"box"}) {
		t.Errorf("Guests() = %v", got)
	}
	if err := c.Release(0); err != nil {
		t.Error(err)
	}
}

// TestOtherNamespace checks that a number is not taken for one of ours.
func TestOtherNamespace(t *testing.T) {
	r := registry(t)
	c := claim(t, r, guestOn("box", t.TempDir()), false)
	if c.PIDNamespace == 0 {
		t.Skip("there are no pid namespaces")
	}
	other := c.Guest
	other.PIDNamespace++
	data, err := json.Marshal(other)
	if err == nil {
		err = os.WriteFile(filepath.Join(c.Dir, guestFile), data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Process(c.Guest); err == nil || !strings.Contains(err.Error(), "another pid namespace") {
		t.Errorf("Process() = %v, want an error", err)
	}
	if err := c.Release(0); err != nil {
		t.Error(err)
	}
}

// TestTmpfiles checks that a guest's directory is locked, for whoever cleans up.
func TestTmpfiles(t *testing.T) {
	r := registry(t)
	c := claim(t, r, guestOn("box", t.TempDir()), false)
	dir, err := os.Open(c.Dir)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_SH|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("Flock() = %v, want %v", err, unix.EWOULDBLOCK)
	}
	if err := c.Release(0); err != nil {
		t.Error(err)
	}
}

func TestChoose(t *testing.T) {
	guests := []Guest{{Name: "a"}, {Name: "b"}}
	if g, err := choose(guests, "b"); err != nil || g.Name != "b" {
		t.Errorf("choose(b) = %v, %v", g, err)
	}
	if g, err := choose(guests[:1], ""); err != nil || g.Name != "a" {
		t.Errorf("choose() of one = %v, %v", g, err)
	}
	if _, err := choose(guests, ""); err == nil || !strings.Contains(err.Error(), "a, b") {
		t.Errorf("choose() of several = %v", err)
	}
	if _, err := choose(guests, "c"); !errors.Is(err, ErrNoGuest) || !strings.Contains(err.Error(), "c; there are: a, b") {
		t.Errorf("choose(c) = %v", err)
	}
	if _, err := choose(nil, ""); !errors.Is(err, ErrNoGuest) {
		t.Errorf("choose() of none = %v", err)
	}
}

// TestProcess stops a process, whose exit code is in its lock, and one that was killed before it could tell.
func TestProcess(t *testing.T) {
	r := registry(t)
	start := func() (*exec.Cmd, *Claim, *Process) {
		cmd := exec.Command("sleep", "60")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		g := guestOn("box", t.TempDir())
		g.PID = cmd.Process.Pid
		c := claim(t, r, g, false)
		p, err := r.Process(c.Guest)
		if err != nil {
			t.Fatal(err)
		}
		return cmd, c, p
	}
	cmd, c, p := start()
	if _, err := p.Wait(0); !IsTimeout(err) {
		t.Errorf("Wait() for one that runs = %v, want a timeout", err)
	}
	if err := errors.Join(c.Release(7), p.Signal(unix.SIGTERM)); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	if code, err := p.Wait(-1); err != nil || code != 7 {
		t.Errorf("Wait() = %d, %v, want 7", code, err)
	}
	if err := errors.Join(p.Signal(unix.SIGTERM), p.Close()); err != nil {
		t.Errorf("Signal() after the end = %v", err)
	}
	if _, err := r.Process(c.Guest); !errors.Is(err, ErrNoGuest) {
		t.Errorf("Process() after the end = %v", err)
	}

	cmd, c, p = start()
	if err := p.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if code, err := p.Wait(-1); err == nil {
		t.Errorf("Wait() for one that was killed = %d, want an error", code)
	}
	if err := errors.Join(p.Close(), c.Release(0)); err != nil {
		t.Error(err)
	}
}

func TestNames(t *testing.T) {
	for text, want := range map[string]string{
		"debian": "debian", "my root": "my-root", ".hidden": "hidden", "/": "guest", "": "guest", "a.img": "a.img",
		strings.Repeat("x", 50): strings.Repeat("x", maxName), "ärger": "rger",
	} {
		got := MakeName(text)
		if got != want {
			t.Errorf("MakeName(%q) = %q, want %q", text, got, want)
		}
		if err := CheckName(got); err != nil {
			t.Errorf("CheckName(%q) = %v", got, err)
		}
	}
	for _, name := range []string{"", ".", "..", "-a", "a/b", "a b", "../x", strings.Repeat("x", maxName+1), "ä"} {
		if CheckName(name) == nil {
			t.Errorf("CheckName(%q) = nil, want an error", name)
		}
	}
}

// TestLongPath checks that a socket's path that would be too long is told of, and not found out by the kernel.
func TestLongPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 90))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("XDG_RUNTIME_DIR", dir)
	r, err := OpenRegistry(os.Geteuid())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Claim(guestOn("box", dir), false); err == nil || !strings.Contains(err.Error(), "shorter") {
		t.Errorf("Claim() = %v, want an error about the length", err)
	}
}

// TestRegistryPlace checks that nothing is kept where somebody else could have put it.
func TestRegistryPlace(t *testing.T) {
	base := t.TempDir()
	open := filepath.Join(base, "open")
	if err := os.Mkdir(open, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o755); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(base, "link")
	if err := os.Symlink(base, link); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]string{open: "chmod 700", link: "not a directory"} {
		if _, err := openRegistry(dir, os.Geteuid()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("openRegistry(%s) = %v, want %s", dir, err, want)
		}
	}
	if _, err := openRegistry(base, os.Geteuid()+1); err == nil || !strings.Contains(err.Error(), "belongs to user") {
		t.Errorf("openRegistry() of somebody else's = %v", err)
	}
	t.Setenv("XDG_RUNTIME_DIR", filepath.Join(base, "none"))
	t.Setenv("TMPDIR", base)
	r, err := OpenRegistry(os.Geteuid())
	if err != nil {
		t.Fatal(err)
	}
	want := []string{filepath.Join(base, fmt.Sprintf("uml.%d", os.Geteuid())), fmt.Sprintf("/run/user/%d/uml", os.Geteuid())}
	if !slices.Contains(want, r.dir) {
		t.Errorf("OpenRegistry() without XDG_RUNTIME_DIR = %s, want one of %v", r.dir, want)
	}
	if r.dir != want[0] {
		_ = os.Remove(r.dir) // unless it is in use
	}
}

// TestLogsPlace checks that logs are where the user keeps such things, if it is his.
func TestLogsPlace(t *testing.T) {
	r := registry(t)
	home, state := t.TempDir(), filepath.Join(t.TempDir(), "state")
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(home, link); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ home, state, want string }{
		{home, state, filepath.Join(state, "uml/box.log")},
		{"", state, filepath.Join(state, "uml/box.log")},
		{home, "", filepath.Join(home, ".local/state/uml/box.log")},
		{home, "relative", filepath.Join(home, ".local/state/uml/box.log")},
		{link, "", filepath.Join(home, ".local/state/uml/box.log")},
		{"/dev/null", "", filepath.Join(r.dir, ".logs/box.log")},
		{"/", filepath.Join(link, "file"), filepath.Join(home, "file/uml/box.log")},
		{"", "", filepath.Join(r.dir, ".logs/box.log")},
	} {
		t.Setenv("HOME", test.home)
		t.Setenv("XDG_STATE_HOME", test.state)
		again, err := OpenRegistry(os.Geteuid())
		if err != nil {
			t.Fatal(err)
		}
		path, err := again.LogPath("box")
		if real, _ := filepath.EvalSymlinks(filepath.Dir(path)); err != nil || filepath.Join(real, "box.log") != test.want {
			t.Errorf("LogPath() with HOME=%s, XDG_STATE_HOME=%s = %s, %v, want %s", test.home, test.state, path, err, test.want)
		}
		if info, err := os.Stat(filepath.Dir(path)); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v, want mode 0700", filepath.Dir(path), info.Mode(), err)
		}
	}
}

// TestLogs keeps the latest logs of guests that are gone, and those of guests that run.
func TestLogs(t *testing.T) {
	r := registry(t)
	running := claim(t, r, guestOn("running", t.TempDir()), false)
	paths := map[string]string{}
	for n := range maxLogs + 2 {
		name := fmt.Sprintf("old-%d", n)
		if n == 0 {
			name = "running"
		}
		path, err := r.LogPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		when := time.Unix(int64(1000+n), 0)
		if err := os.Chtimes(path, when, when); err != nil {
			t.Fatal(err)
		}
		paths[name] = path
	}
	if _, err := r.LogPath("x"); err != nil {
		t.Fatal(err)
	}
	for name, path := range paths {
		_, err := os.Stat(path)
		if gone := err != nil; gone != (name == "old-1") {
			t.Errorf("log of %s is gone: %v", name, gone)
		}
	}
	if err := running.Release(0); err != nil {
		t.Error(err)
	}
}
