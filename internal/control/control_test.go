package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// TestMain looks for leaks. After a request that is too large net/http gives the client half a second to read why.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*conn).closeWriteAndWait"))
}

// hang is far longer than anything takes: it turns a hang into a failure.
const hang = 60 * time.Second

// place makes a place for runs, the only one that can be written first and the one that others are told from.
func place(t *testing.T) string {
	t.Helper()
	// A unix socket's path has 107 bytes at most, and t.TempDir spends many on the test's name.
	dir, err := os.MkdirTemp("", "ctl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	t.Setenv("XDG_RUNTIME_DIR", dir)
	return dir
}

// run starts a supervisor's end with a handler and returns its directory and the function that ends it.
func run(t *testing.T, handler http.Handler) (dir string, end func()) {
	t.Helper()
	dir, err := MakeRunDir("")
	if err != nil {
		t.Fatal(err)
	}
	l, err := Listen(dir, Socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, handler, io.Discard) }()
	end = func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Serve() = %v", err)
			}
			done <- nil // for the next call
		case <-time.After(hang):
			t.Fatal("Serve() does not return")
		}
	}
	t.Cleanup(func() {
		end()
		os.RemoveAll(dir)
	})
	return dir, end
}

// stale leaves what a supervisor leaves that was killed.
func stale(t *testing.T) {
	t.Helper()
	dir, err := MakeRunDir("")
	if err != nil {
		t.Fatal(err)
	}
	l, err := Listen(dir, Socket)
	if err != nil {
		t.Fatal(err)
	}
	l.(interface{ SetUnlinkOnClose(bool) }).SetUnlinkOnClose(false)
	l.Close()
}

func answer(text string) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /text", JSON(func() string { return text }))
	mux.HandleFunc("GET /broken", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "out of order", http.StatusInternalServerError)
	})
	mux.HandleFunc("POST /body", func(w http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, err)
	})
	return mux
}

func TestAsk(t *testing.T) {
	dir, _ := run(t, answer("hello")) // also where XDG_RUNTIME_DIR is not set
	c, err := Find(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	var got string
	if err := c.Get(t.Context(), "/text", &got); err != nil || got != "hello" {
		t.Errorf(`Get("/text") = %q, %v`, got, err)
	}
	for path, want := range map[string]string{"/nothing": "404 Not Found", "/broken": "500 Internal Server Error: out of order"} {
		if err := c.Get(t.Context(), path, &got); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Get(%q) = %v, want %s", path, err, want)
		}
	}
	req, err := http.NewRequest(http.MethodPost, "http://supervisor/body", bytes.NewReader(make([]byte, maxBody+1)))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, _ := io.ReadAll(resp.Body); !strings.Contains(string(text), "too large") {
		t.Errorf("a body of %d bytes: %q, want an error", maxBody+1, text)
	}
}

// TestSocketMode checks that nobody else may connect.
func TestSocketMode(t *testing.T) {
	dir, _ := run(t, answer(""))
	for path, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, Socket): 0o600} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("mode of %s = %o, want %o", path, got, want)
		}
	}
}

func TestFind(t *testing.T) {
	dir := place(t)
	find := func(in, want string) {
		t.Helper()
		switch c, err := Find(t.Context(), in); {
		case err != nil:
			t.Errorf("Find(%q) = %v, want %s", in, err, want)
		case c.Dir != want:
			t.Errorf("Find(%q) = %s, want %s", in, c.Dir, want)
		}
	}
	none := func(in string) {
		t.Helper()
		if _, err := Find(t.Context(), in); !errors.Is(err, ErrNoGuest) || !strings.Contains(err.Error(), in) {
			t.Errorf("Find(%q) = %v, want %v", in, err, ErrNoGuest)
		}
	}
	none(dir)
	none(filepath.Join(dir, "no such directory"))
	stale(t)
	if err := os.WriteFile(filepath.Join(dir, runPrefix+"file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	none(dir)

	a, endA := run(t, answer("a"))
	if filepath.Dir(a) != dir {
		t.Fatalf("MakeRunDir() = %s, want it in XDG_RUNTIME_DIR=%s", a, dir)
	}
	find(dir, a)
	find(a, a)
	b, _ := run(t, answer("b"))
	_, err := Find(t.Context(), dir)
	if err == nil || !strings.Contains(err.Error(), a) || !strings.Contains(err.Error(), b) {
		t.Errorf("Find() = %v, want an error that names %s and %s", err, a, b)
	}
	find(a, a)
	// The default places include this one; what else this machine runs is not known.
	if _, err := Find(t.Context(), ""); err == nil || !strings.Contains(err.Error(), a) || !strings.Contains(err.Error(), b) {
		t.Errorf(`Find("") = %v, want an error that names %s and %s`, err, a, b)
	}
	endA()
	find(dir, b)
	none(a)
}

// TestFindForeign checks that a socket of another user is not asked. Only root can make one.
func TestFindForeign(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := place(t)
	a, _ := run(t, answer("a"))
	for _, path := range []string{a, filepath.Join(a, Socket)} {
		if err := os.Chown(path, 12345, 12345); err != nil {
			t.Fatal(err)
		}
	}
	if c, err := Find(t.Context(), dir); err != nil || c.Dir != a {
		t.Errorf("Find() by root = %v, %v", c, err)
	}
	if err := foreign(a, 1000); err == nil || !strings.Contains(err.Error(), "12345") {
		t.Errorf("foreign(%s, 1000) = %v, want an error with the owner", a, err)
	}
	for _, uid := range []int{0, 12345} {
		if err := foreign(a, uid); err != nil {
			t.Errorf("foreign(%s, %d) = %v", a, uid, err)
		}
	}
}

// TestServeEnd checks that the end breaks off requests.
func TestServeEnd(t *testing.T) {
	began := make(chan struct{})
	dir, end := run(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(began)
		<-r.Context().Done()
	}))
	c, err := Find(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() { got <- c.Get(context.Background(), "/", new(int)) }()
	<-began
	end()
	if err := <-got; err == nil {
		t.Error("Get() = nil after the end")
	}
	if _, err := os.Stat(filepath.Join(dir, Socket)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}
