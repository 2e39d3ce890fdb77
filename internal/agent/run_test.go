package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

func TestExitCodes(t *testing.T) {
	c := startGuest(t)
	for code := range 256 {
		if _, _, got := run(t, c.Client, sh("exit $1", strconv.Itoa(code)), nil); got != code {
			t.Errorf("exit %d: code %d", code, got)
		}
	}
}

func TestExitSignals(t *testing.T) {
	c := startGuest(t)
	// Those that stop, or that the shell handles, do not kill it.
	for _, sig := range []int{1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 30, 31, 34, 40, 64} {
		if _, _, got := run(t, c.Client, sh("ulimit -c 0; kill -$1 $$; exit 99", strconv.Itoa(sig)), nil); got != 128+sig {
			t.Errorf("signal %d: code %d, want %d", sig, got, 128+sig)
		}
	}
}

func TestStreamsApart(t *testing.T) {
	c := startGuest(t)
	var all [256]byte
	for i := range all {
		all[i] = byte(i)
	}
	input := bytes.Repeat(all[:], 1000)
	stdout, stderr, code := run(t, c.Client, sh("tee /dev/stderr"), bytes.NewReader(input))
	if code != 0 || stdout != string(input) || stderr != string(input) {
		t.Errorf("tee: code %d, %d and %d bytes, want twice %d, the same", code, len(stdout), len(stderr), len(input))
	}
	stdout, stderr, _ = run(t, c.Client, sh("echo out; echo err >&2"), nil)
	if stdout != "out\n" || stderr != "err\n" {
		t.Errorf("stdout %q, stderr %q", stdout, stderr)
	}
}

// TestBulk sends 64 MiB through cat, over each kind of stream.
func TestBulk(t *testing.T) {
	pipes := func(*testing.T) (net.Conn, net.Conn) { return net.Pipe() }
	for name, connect := range map[string]func(*testing.T) (net.Conn, net.Conn){"pipe": pipes, "socket": socketPair} {
		t.Run(name, func(t *testing.T) {
			a, b := connect(t)
			c := newGuest(t, ServerOptions{}, a, b)
			sent, got := sha256.New(), sha256.New()
			input := io.TeeReader(io.LimitReader(rand.New(rand.NewSource(1)), 64<<20), sent)
			code, err := c.Run(t.Context(), sh("cat"), Streams{Stdin: input, Stdout: got})
			if code != 0 || err != nil || !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
				t.Errorf("cat of 64 MiB: code %d, %v, hash %x, want %x", code, err, got.Sum(nil), sent.Sum(nil))
			}
		})
	}
}

func TestBulkOneWay(t *testing.T) {
	c := startGuest(t)
	input := make([]byte, 64<<20)
	rand.New(rand.NewSource(2)).Read(input)
	sum := sha256.Sum256(input)
	stdout, _, _ := run(t, c.Client, sh("sha256sum"), bytes.NewReader(input))
	if !strings.HasPrefix(stdout, hex.EncodeToString(sum[:])) {
		t.Errorf("sha256sum = %q, want %x", stdout, sum)
	}
}

// TestHalfClose has the command answer only after the end of its input.
func TestHalfClose(t *testing.T) {
	c := startGuest(t)
	if stdout, _, code := run(t, c.Client, sh("cat; echo end"), strings.NewReader("x")); stdout != "xend\n" || code != 0 {
		t.Errorf("stdout %q, code %d", stdout, code)
	}
	if stdout, _, code := run(t, c.Client, sh("cat; echo end"), nil); stdout != "end\n" || code != 0 {
		t.Errorf("without input: stdout %q, code %d", stdout, code)
	}
}

// TestInputUnread has a lot of input for a command that reads none, with a client that goes on for ever.
func TestInputUnread(t *testing.T) {
	c := startGuest(t)
	r, w := io.Pipe()
	defer r.Close()
	go func() {
		for {
			if _, err := w.Write(bytes.Repeat([]byte("\n"), 1<<20)); err != nil {
				return
			}
		}
	}()
	for _, script := range []string{"exit 3", "exec <&-; sleep 0.2; exit 3", "read x; exit 3"} {
		if _, _, code := run(t, c.Client, sh(script), r); code != 3 {
			t.Errorf("%s: code %d, want 3", script, code)
		}
	}
}

// TestLateOutput has children that keep the output open.
func TestLateOutput(t *testing.T) {
	c := startGuest(t)
	stdout, _, code := run(t, c.Client, sh("(sleep 0.05; echo late) & echo early"), nil)
	if stdout != "early\nlate\n" || code != 0 {
		t.Errorf("stdout %q, code %d, want what a child writes soon after", stdout, code)
	}
	// A daemon that lives until its input ends, which is after the session has.
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	stdout, _, code = run(t, c.Client, sh("trap '' HUP; cat $1 & head -c 60000 /dev/zero | tr '\\0' x; exit 4", fifo), nil)
	if len(stdout) != 60000 || code != 4 {
		t.Errorf("with a daemon: %d bytes, code %d, want 60000 and 4", len(stdout), code)
	}
	file, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	file.Close()
}

// TestSlowReader loses nothing of an output that is read long after the command has ended.
func TestSlowReader(t *testing.T) {
	c := startGuest(t)
	r, w := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		code, err := c.Run(t.Context(), sh("head -c 4000000 /dev/zero; exit 5"), Streams{Stdout: w})
		if code != 5 || err != nil {
			t.Errorf("code %d, %v, want 5", code, err)
		}
		w.Close()
	}()
	// Other sessions go on meanwhile.
	for range 3 {
		if stdout, _, _ := run(t, c.Client, sh("head -c 3000000 /dev/zero"), nil); len(stdout) != 3000000 {
			t.Errorf("beside a stalled session: %d bytes, want 3000000", len(stdout))
		}
	}
	if n, err := io.Copy(io.Discard, r); n != 4000000 || err != nil {
		t.Errorf("%d bytes, %v, want 4000000", n, err)
	}
	<-done
}

func TestManySessions(t *testing.T) {
	c := startGuest(t)
	stalled, stop := context.WithCancel(t.Context())
	r, w := io.Pipe()
	var sessions sync.WaitGroup
	sessions.Go(func() {
		_, err := c.Run(stalled, sh("yes"), Streams{Stdout: w})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("stalled session: %v, want %v", err, context.Canceled)
		}
	})
	var others sync.WaitGroup
	for i := range 64 {
		others.Go(func() {
			want := fmt.Sprint(i)
			stdout, _, code := run(t, c.Client, sh("read x; echo $x; exit $x"), strings.NewReader(want+"\n"))
			if stdout != want+"\n" || code != i {
				t.Errorf("session %d: %q, code %d", i, stdout, code)
			}
		})
	}
	others.Wait()
	stop()
	r.Close()
	sessions.Wait()
}

// TestClientGone has a command see that its client is gone, in each way.
func TestClientGone(t *testing.T) {
	// A shell says that sleep was hung up, too, and would get SIGPIPE for that.
	const script = `exec 2>/dev/null; trap 'echo hup >$1; exit' HUP; echo ready; while :; do sleep 0.01; done`
	t.Run("cancel", func(t *testing.T) {
		c := startGuest(t)
		goneAfter(t, c.Client, script, func(cancel func()) { cancel() }, context.Canceled)
	})
	t.Run("close", func(t *testing.T) {
		c := startGuest(t)
		goneAfter(t, c.Client, script, func(func()) { c.Close() }, ErrGone)
	})
	t.Run("agent", func(t *testing.T) {
		c := startGuest(t)
		goneAfter(t, c.Client, script, func(func()) { c.cancel() }, ErrGone)
	})
	t.Run("terminal", func(t *testing.T) {
		c := startGuest(t)
		goneAfter(t, c.Client, script, func(cancel func()) { cancel() }, context.Canceled, func(c *Command) { c.PTY = &PTY{} })
	})
}

func goneAfter(t *testing.T, c *Client, script string, leave func(cancel func()), want error, change ...func(*Command)) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "signal")
	command := sh(script, file)
	for _, f := range change {
		f(&command)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out buffer
	result := make(chan error, 1)
	go func() {
		_, err := c.Run(ctx, command, Streams{Stdout: &out})
		result <- err
	}()
	eventually(t, "the command runs", func() bool { return strings.Contains(out.String(), "ready") })
	leave(cancel)
	if err := <-result; !errors.Is(err, want) {
		t.Errorf("Run = %v, want %v", err, want)
	}
	eventually(t, "the command gets SIGHUP", func() bool {
		data, _ := os.ReadFile(file)
		return string(data) == "hup\n"
	})
}

// TestWriterFails gives a command up whose output nobody takes.
func TestWriterFails(t *testing.T) {
	c := startGuest(t)
	r, w := io.Pipe()
	r.CloseWithError(io.ErrUnexpectedEOF)
	code, err := c.Run(t.Context(), sh("yes"), Streams{Stdout: w})
	if !errors.Is(err, io.ErrUnexpectedEOF) || code != 125 {
		t.Errorf("Run = %d, %v, want 125 and the Writer's error", code, err)
	}
}

func TestSignals(t *testing.T) {
	c := startGuest(t)
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGWINCH, syscall.SIGKILL, 40} {
		var out buffer
		signals := make(chan os.Signal, 1)
		result := make(chan int, 1)
		script := "trap 'exit 7' WINCH; echo ready; while :; do sleep 0.01; done"
		go func() {
			code, err := c.Run(t.Context(), sh(script), Streams{Stdout: &out, Signals: signals})
			if err != nil {
				t.Errorf("Run = %v", err)
			}
			result <- code
		}()
		eventually(t, "the command runs", func() bool { return out.String() == "ready\n" })
		want := 128 + int(sig)
		if sig == syscall.SIGWINCH {
			want = 7
		}
		signals <- sig
		if code := <-result; code != want {
			t.Errorf("after signal %d: code %d, want %d", sig, code, want)
		}
	}
}

func TestSignalNames(t *testing.T) {
	for n := 1; n <= maxSignal; n++ {
		name := signalName(syscall.Signal(n))
		if got, ok := signalNumber(name); !ok || int(got) != n {
			t.Errorf("signalNumber(%q) = %d, %t, want %d", name, got, ok, n)
		}
	}
	for name, want := range map[string]int{"TERM": 15, "SIGTERM": 15, "term": 15, "WINCH@x": 28, "": 0, "X": 0, "65": 0, "-1": 0} {
		if got, ok := signalNumber(name); int(got) != want && ok || ok != (want != 0) {
			t.Errorf("signalNumber(%q) = %d, %t, want %d", name, got, ok, want)
		}
	}
	if got := signalName(syscall.SIGTERM); got != "TERM" {
		t.Errorf("signalName(SIGTERM) = %q", got)
	}
	if got := signalName(syscall.SIGWINCH); got != "WINCH"+requestSuffix {
		t.Errorf("signalName(SIGWINCH) = %q", got)
	}
}

func TestTerminal(t *testing.T) {
	c := startGuest(t)
	command := sh("stty size; tty; echo $TERM; test -t 0 && test -t 1 && test -t 2 && echo all; cat /proc/self/stat | cut -d' ' -f7")
	command.PTY = &PTY{Term: "vt100", Size: Size{Rows: 33, Cols: 77}}
	stdout, _, code := run(t, c.Client, command, nil)
	lines := strings.Split(stdout, "\r\n")
	if code != 0 || len(lines) != 6 || lines[0] != "33 77" || !strings.HasPrefix(lines[1], "/dev/pts/") ||
		lines[2] != "vt100" || lines[3] != "all" || lines[4] == "0" {
		t.Errorf("code %d, output %q", code, lines)
	}
}

// TestTerminalKeys types into a terminal.
func TestTerminalKeys(t *testing.T) {
	c := startGuest(t)
	command := sh(`trap 'stty size' WINCH; trap 'echo interrupted; exit 9' INT; echo ready; while :; do sleep 0.01; done`)
	command.PTY = &PTY{Size: Size{Rows: 10, Cols: 20}}
	input, keys := io.Pipe()
	defer keys.Close()
	sizes := make(chan Size)
	var out buffer
	result := make(chan int, 1)
	go func() {
		code, err := c.Run(t.Context(), command, Streams{Stdin: input, Stdout: &out, Resize: sizes})
		if err != nil {
			t.Errorf("Run = %v", err)
		}
		result <- code
	}()
	eventually(t, "the command runs", func() bool { return strings.Contains(out.String(), "ready") })
	sizes <- Size{Rows: 44, Cols: 55}
	eventually(t, "the new size", func() bool { return strings.Contains(out.String(), "44 55") })
	if _, err := keys.Write([]byte{3}); err != nil {
		t.Fatal(err)
	}
	if code := <-result; code != 9 || !strings.Contains(out.String(), "interrupted") {
		t.Errorf("after Ctrl-C: code %d, output %q", code, out.String())
	}
}

// TestTerminalEOF ends the input of a terminal.
func TestTerminalEOF(t *testing.T) {
	c := startGuest(t)
	command := sh("stty -echo; cat; echo end")
	command.PTY = &PTY{}
	if stdout, _, code := run(t, c.Client, command, strings.NewReader("x\n")); code != 0 || !strings.HasSuffix(stdout, "end\r\n") {
		t.Errorf("code %d, output %q", code, stdout)
	}
}

// TestAgentDies kills the connection below a command.
func TestAgentDies(t *testing.T) {
	a, b := socketPair(t)
	c := newGuest(t, ServerOptions{}, a, b)
	runUntilGone(t, c.Client, a)
	<-c.Done()
	if code, err := c.Run(t.Context(), sh("true"), Streams{}); !errors.Is(err, ErrGone) || code != 125 {
		t.Errorf("Run afterwards = %d, %v, want 125, %v", code, err, ErrGone)
	}
	if err := c.Call(t.Context(), "x", nil, nil); !errors.Is(err, ErrGone) {
		t.Errorf("Call afterwards = %v, want %v", err, ErrGone)
	}
}

// runUntilGone has c run a command, and kills the agent's connection below it.
func runUntilGone(t *testing.T, c *Client, below io.Closer) {
	t.Helper()
	var out buffer
	result := make(chan error, 1)
	go func() {
		_, err := c.Run(t.Context(), sh("echo ready; cat"), Streams{Stdin: neverReader(t), Stdout: &out})
		result <- err
	}()
	eventually(t, "the command runs", func() bool { return out.String() == "ready\n" })
	below.Close()
	if err := <-result; !errors.Is(err, ErrGone) {
		t.Errorf("Run = %v, want %v", err, ErrGone)
	}
}

// neverReader is input that comes at the end of the test.
func neverReader(t *testing.T) io.Reader {
	r, w := io.Pipe()
	t.Cleanup(func() { w.Close() })
	return r
}

func TestCall(t *testing.T) {
	a, b := socketPair(t)
	c := newGuest(t, ServerOptions{Handle: func(name string, payload []byte) ([]byte, error) {
		if name != "echo" {
			return nil, fmt.Errorf("no %s here", name)
		}
		return payload, nil
	}}, a, b)
	type message struct{ A, B string }
	want := message{"x", "ü"}
	var got message
	if err := c.Call(t.Context(), "echo", want, &got); err != nil || got != want {
		t.Errorf("Call = %v, %v, want %v", got, err, want)
	}
	if err := c.Call(t.Context(), "other", nil, nil); err == nil || !strings.Contains(err.Error(), "no other here") {
		t.Errorf("Call of a request that fails = %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Call(ctx, "echo", want, nil); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("Call that was given up = %v", err)
	}
	if err := c.Call(t.Context(), "echo", strings.Repeat("x", 1<<20), nil); err == nil {
		t.Errorf("a request of 1 MiB: no error")
	}
}

func TestDialTimeout(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		io.ReadFull(a, make([]byte, 1))
		cancel()
		io.Copy(io.Discard, a)
	}()
	if _, err := Dial(ctx, b); !errors.Is(err, context.Canceled) {
		t.Errorf("Dial = %v, want %v", err, context.Canceled)
	}
}
