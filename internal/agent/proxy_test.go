package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// proxied returns a client of a Proxy for upstream.
func proxied(t *testing.T, upstream func() (*Client, error)) *Client {
	t.Helper()
	a, b := socketPair(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Proxy(ctx, a, upstream) }()
	client, err := Dial(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		client.Close()
		if err := <-done; err != nil {
			t.Errorf("Proxy = %v", err)
		}
		cancel()
	})
	return client
}

func TestProxy(t *testing.T) {
	a, b := socketPair(t)
	g := newGuest(t, ServerOptions{Handle: func(name string, payload []byte) ([]byte, error) {
		if name == "fail" {
			return nil, errors.New("as asked")
		}
		return payload, nil
	}}, a, b)
	c := proxied(t, func() (*Client, error) { return g.Client, nil })

	stdout, stderr, code := run(t, c, sh("cat; echo err >&2; exit 42"), strings.NewReader("in"))
	if stdout != "in" || stderr != "err\n" || code != 42 {
		t.Errorf("stdout %q, stderr %q, code %d", stdout, stderr, code)
	}
	if _, _, code := run(t, c, sh("kill -9 $$"), nil); code != 137 {
		t.Errorf("code %d, want 137", code)
	}
	if _, stderr, code := run(t, c, Command{Args: []string{"no-such"}}, nil); code != 127 || stderr != "guest: no-such: not found\n" {
		t.Errorf("not found: code %d, %q", code, stderr)
	}
	sent, got := sha256.New(), sha256.New()
	input := io.TeeReader(io.LimitReader(rand.New(rand.NewSource(1)), 16<<20), sent)
	code, err := c.Run(t.Context(), sh("cat"), Streams{Stdin: input, Stdout: got})
	if code != 0 || err != nil || !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
		t.Errorf("cat of 16 MiB: code %d, %v, or another hash", code, err)
	}
	if _, _, code := run(t, c, sh("exit 3"), bytes.NewReader(make([]byte, 16<<20))); code != 3 {
		t.Errorf("with input that is not read: code %d, want 3", code)
	}
	var answer string
	if err := c.Call(t.Context(), "echo", "x", &answer); err != nil || answer != "x" {
		t.Errorf("Call = %q, %v", answer, err)
	}
	if err := c.Call(t.Context(), "fail", "x", nil); err == nil || !strings.Contains(err.Error(), "as asked") {
		t.Errorf("Call of what fails = %v", err)
	}
	goneAfter(t, c, `exec 2>/dev/null; trap 'echo hup >$1; exit' HUP; echo ready; while :; do sleep 0.01; done`,
		func(cancel func()) { cancel() }, context.Canceled)
	goneAfter(t, c, `exec 2>/dev/null; trap 'echo hup >$1; exit' HUP; echo ready; while :; do sleep 0.01; done`,
		func(func()) { c.Close() }, ErrGone)
}

// TestProxyMany has several clients with several sessions, one of which nobody reads.
func TestProxyMany(t *testing.T) {
	g := startGuest(t)
	stalled, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	r, w := io.Pipe()
	client := proxied(t, func() (*Client, error) { return g.Client, nil })
	all.Go(func() {
		if _, err := client.Run(stalled, sh("yes"), Streams{Stdout: w}); !errors.Is(err, context.Canceled) {
			t.Errorf("stalled: %v", err)
		}
	})
	var others sync.WaitGroup
	for range 8 {
		c := proxied(t, func() (*Client, error) { return g.Client, nil })
		for i := range 8 {
			others.Go(func() {
				stdout, _, code := run(t, c, sh("cat; exit $1", fmt.Sprint(i)), strings.NewReader(strings.Repeat("x", 100000)))
				if len(stdout) != 100000 || code != i {
					t.Errorf("%d bytes, code %d, want 100000, %d", len(stdout), code, i)
				}
			})
		}
	}
	others.Wait()
	stop()
	r.Close()
	all.Wait()
}

func TestProxyUpstreamDies(t *testing.T) {
	a, b := socketPair(t)
	g := newGuest(t, ServerOptions{}, a, b)
	c := proxied(t, func() (*Client, error) { return g.Client, nil })
	runUntilGone(t, c, a)
	if _, err := c.Run(t.Context(), sh("true"), Streams{}); err == nil || err.Error() != ErrGone.Error() {
		t.Errorf("Run afterwards = %v, want %v", err, ErrGone)
	}
}

func TestProxyWithoutUpstream(t *testing.T) {
	c := proxied(t, func() (*Client, error) { return nil, errors.New("the guest is still booting") })
	if _, err := c.Run(t.Context(), sh("true"), Streams{}); err == nil || err.Error() != "the guest is still booting" {
		t.Errorf("Run = %v", err)
	}
	if err := c.Call(t.Context(), "x", nil, nil); err == nil || !strings.Contains(err.Error(), "still booting") {
		t.Errorf("Call = %v", err)
	}
}

// TestProxyOpenSSH has OpenSSH's client on a unix socket, as ProxyCommand makes it.
func TestProxyOpenSSH(t *testing.T) {
	if _, err := exec.LookPath("ssh"); err != nil {
		t.Skip("needs ssh")
	}
	needRoot(t)
	g := startGuest(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0") // ssh has no other sockets of its own
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				_ = Proxy(context.Background(), conn, func() (*Client, error) { return g.Client, nil })
			})
		}
	})
	defer serving.Wait()
	defer listener.Close()
	port := fmt.Sprint(listener.Addr().(*net.TCPAddr).Port)
	args := []string{
		"-F", "none", "-p", port, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=" + filepath.Join(t.TempDir(), "known"),
		"-o", "LogLevel=ERROR", "-o", "BatchMode=yes",
	}
	out, err := exec.Command("ssh", append(args, "root@127.0.0.1", "echo $HOME; exit 12")...).CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 12 || string(out) != "/root\n" {
		t.Errorf("ssh = %v, %q, want 12, /root", err, out)
	}
	if out, err := exec.Command("ssh", append(args, "nobody@127.0.0.1", "true")...).CombinedOutput(); err == nil {
		t.Errorf("ssh nobody@ = %q, want a refusal", out)
	}
}
