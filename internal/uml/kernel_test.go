package uml

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// hangGuard is far more than anything here takes.
const hangGuard = 30 * time.Second

// fakeKernel is a shell script in the kernel's place; what it writes to stderr comes back.
func fakeKernel(t *testing.T, script string) (o Options, output func() string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "linux")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	o = Options{Path: path, Stderr: w}
	return o, func() string {
		w.Close()
		all, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		return string(all)
	}
}

func wait(t *testing.T, k *Kernel) Exit {
	t.Helper()
	select {
	case exit := <-k.Exited():
		return exit
	case <-time.After(hangGuard):
		t.Fatal("the kernel process does not end")
		return Exit{}
	}
}

func TestStart(t *testing.T) {
	o, output := fakeKernel(t, `echo "args: $*" >&2; cat <&3 >&2; echo " tmpdir: $TMPDIR" >&2; umask >&2; exit 7`)
	t.Setenv("TMPDIR", "/on/a/disk")
	defer syscall.Umask(syscall.Umask(0o077))
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := w.WriteString("inherited"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	o.Initramfs = r
	o.Args = []string{"quiet"}

	k, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	if exit := wait(t, k); exit != (Exit{Code: 7}) {
		t.Errorf("exit = %+v, want code 7", exit)
	}
	out := output()
	for _, want := range []string{"initrd=/proc/self/fd/3", "quiet\n", "inherited tmpdir: \n", "\n0000\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %q", want, out)
		}
	}
}

func TestStartMissing(t *testing.T) {
	_, err := Start(Options{Path: "/does/not/exist"})
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "/does/not/exist") {
		t.Errorf("Start of a missing kernel: %v", err)
	}
}

// TestKill wants the whole process group gone, as UML's stubs are in it.
func TestKill(t *testing.T) {
	o, output := fakeKernel(t, `sleep 1000 & echo $! >&2; wait`)
	k, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	// Often enough the script has a child by now, which holds the pipe's other end as well.
	time.Sleep(100 * time.Millisecond)
	if err := k.Kill(); err != nil {
		t.Fatal(err)
	}
	exit := wait(t, k)
	if exit != (Exit{Code: 137, Signal: syscall.SIGKILL}) {
		t.Errorf("exit = %+v, want signal 9 and code 137", exit)
	}
	if got, want := exit.String(), "was killed by signal 9 (killed)"; got != want {
		t.Errorf("String() = %q, want %q", got, want)
	}
	// Returns only when nobody holds the pipe's other end any more.
	output()
	if err := k.Kill(); err != nil {
		t.Errorf("Kill of a dead kernel: %v", err)
	}
}

func TestQuery(t *testing.T) {
	o, _ := fakeKernel(t, `echo "$*"; exit 3`)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	code, err := Query(o.Path, []string{"--version"}, w, w)
	w.Close()
	if code != 3 || err != nil {
		t.Errorf("Query = %d, %v, want 3", code, err)
	}
	if out, err := io.ReadAll(r); string(out) != "--version\n" || err != nil {
		t.Errorf("output %q, %v: want the user's argument alone", out, err)
	}
	if _, err := Query("/does/not/exist", nil, os.Stdout, os.Stderr); err == nil {
		t.Error("Query of a missing kernel: no error")
	}
}
