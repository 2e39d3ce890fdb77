package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

// newPipe returns a pipe that the test closes; its write end waits, as standard output does.
func newPipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		t.Fatal(err)
	}
	r, w = os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe")
	t.Cleanup(func() {
		r.Close()
		w.Close()
	})
	return r, w
}

// TestHandOver has commands write to pipes of one client's, several at a time, whole and in order.
func TestHandOver(t *testing.T) {
	g := startGuest(t)
	c := proxied(t, func() (*Client, error) { return g.Client, nil })
	want := sha256.Sum256(bytes.Repeat([]byte("0123456\n"), 1<<20))
	var all sync.WaitGroup
	for range 4 {
		r, w := newPipe(t)
		all.Go(func() {
			code, err := c.Run(t.Context(), sh("yes 0123456 | head -c 8388608; exit 3"), Streams{Stdout: w})
			w.Close()
			if code != 3 || err != nil {
				t.Errorf("Run = %d, %v, want 3", code, err)
			}
		})
		all.Go(func() {
			sum := sha256.New()
			if n, err := io.Copy(sum, r); err != nil || !bytes.Equal(sum.Sum(nil), want[:]) {
				t.Errorf("%d bytes, %v, or another hash", n, err)
			}
		})
	}
	all.Wait()
}

// TestHandOverIsUsed closes the client's own end of the pipe while a command runs: what follows does not come through it.
func TestHandOverIsUsed(t *testing.T) {
	g := startGuest(t)
	c := proxied(t, func() (*Client, error) { return g.Client, nil })
	r, w := newPipe(t)
	stdin, input := io.Pipe()
	var code int
	var err error
	var all sync.WaitGroup
	all.Go(func() {
		code, err = c.Run(t.Context(), sh("echo ready; read go; echo $go"), Streams{Stdin: stdin, Stdout: w})
	})
	ready := make([]byte, len("ready\n"))
	if _, err := io.ReadFull(r, ready); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if _, err := io.WriteString(input, "went\n"); err != nil {
		t.Fatal(err)
	}
	input.Close()
	out, readErr := io.ReadAll(r)
	all.Wait()
	if string(out) != "went\n" || readErr != nil || code != 0 || err != nil {
		t.Errorf("%q, %v; Run = %d, %v", out, readErr, code, err)
	}
}

// TestHandOverBrokenPipe has the client find out itself, as it would without.
func TestHandOverBrokenPipe(t *testing.T) {
	g := startGuest(t)
	c := proxied(t, func() (*Client, error) { return g.Client, nil })
	r, w := newPipe(t)
	var all sync.WaitGroup
	all.Go(func() {
		if _, err := c.Run(t.Context(), sh("yes"), Streams{Stdout: w}); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("Run = %v, want %v", err, syscall.EPIPE)
		}
	})
	if _, err := io.CopyN(io.Discard, r, 1<<20); err != nil {
		t.Error(err)
	}
	r.Close()
	all.Wait()
}

// TestHandOverStalled gives up a command whose output nobody reads. The Proxy then has the pipe no longer.
func TestHandOverStalled(t *testing.T) {
	g := startGuest(t)
	c := proxied(t, func() (*Client, error) { return g.Client, nil })
	r, w := newPipe(t)
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() {
		if _, err := c.Run(ctx, sh("yes"), Streams{Stdout: w}); !errors.Is(err, context.Canceled) {
			t.Errorf("Run = %v, want %v", err, context.Canceled)
		}
	})
	eventually(t, "a pipe that is full", func() bool {
		n, err := unix.IoctlGetInt(int(r.Fd()), unix.TIOCINQ)
		return err == nil && n >= 64<<10
	})
	cancel()
	all.Wait()
	w.Close()
	if _, err := io.Copy(io.Discard, r); err != nil { // to its end
		t.Error(err)
	}
}

// TestHandOverRefused asks for what a Proxy does not do.
func TestHandOverRefused(t *testing.T) {
	g := startGuest(t)
	c := proxied(t, func() (*Client, error) { return g.Client, nil })
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	_, pipe := newPipe(t)
	for _, test := range []struct {
		what string
		file *os.File
		want bool
	}{
		{"no file", nil, false},
		{"no pipe", null, false},
		{"a pipe", pipe, true},
		{"a pipe that was taken before", nil, false},
	} {
		channel, requests, err := c.conn.OpenChannel("session", nil)
		if err != nil {
			t.Fatal(err)
		}
		var discarding sync.WaitGroup
		discarding.Go(func() { ssh.DiscardRequests(requests) })
		if test.file != nil {
			c.stream.attach(test.file)
		}
		if ok, err := channel.SendRequest(requestStdout, true, nil); ok != test.want || err != nil {
			t.Errorf("%s: %v, %v, want %v", test.what, ok, err, test.want)
		}
		channel.Close()
		discarding.Wait()
	}
}

// TestWiden has a pipe grow, not shrink, and what is no pipe stay what it is.
func TestWiden(t *testing.T) {
	r, w := newPipe(t)
	size := func() int {
		n, err := unix.FcntlInt(r.Fd(), unix.F_GETPIPE_SZ, 0)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for _, want := range []int{pipeSize, clientPipeSize} {
		if widen(w, want); size() != want {
			t.Errorf("a pipe after widen(%d) holds %d bytes", want, size())
		}
	}
	if widen(w, pipeSize); size() != clientPipeSize {
		t.Errorf("a pipe of %d bytes after widen(%d) holds %d", clientPipeSize, pipeSize, size())
	}
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	widen(null, pipeSize)
	if _, err := null.Write([]byte("still open")); err != nil {
		t.Error(err)
	}
}
