package supervisor

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"docker-usermode-linux/internal/config"
)

// Streams are the standard streams of the container.
type Streams struct {
	Stdin, Stdout, Stderr *os.File
}

// console joins the guest's main console to the container's streams. Between them lies a pseudo-terminal of our
// own: UML cannot poll a plain file or /dev/null, it would leave the user's terminal in raw mode when killed, and
// window sizes have to reach the guest.
type console struct {
	streams Streams
	// format is how the guest's output is written, unless stdout is a terminal.
	format config.LogFormat
	// messages gets it where the streams are not the console's; nil: they are.
	messages *messageLog
	// host is our end, guest the kernel's.
	host, guest *os.File
	// restore is the terminal's state before ours; nil when stdin is none.
	restore *term.State
	// nudge makes the kernel look at what it may have missed.
	nudge func()
	winch chan os.Signal
	done  chan struct{}

	// input is the container's stdin; nil where the streams are not the console's.
	input *input
	mu    sync.Mutex
	// nudges is that of the input's writer; nil: the input has not started.
	nudges *time.Timer // guarded by mu
	closed bool        // guarded by mu
}

// openConsole joins the console to streams and in, which reads their stdin, or, if these are for something else (nil), its
// output to messages.
func openConsole(streams *Streams, in *input, format config.LogFormat, messages *messageLog) (*console, error) {
	host, guest, err := pty.Open()
	if err != nil {
		return nil, fmt.Errorf("open a terminal for the guest's console: %w", err)
	}
	c := &console{format: format, host: host, guest: guest, done: make(chan struct{})}
	// Until the kernel does so itself: nothing is echoed, no line is edited here.
	if _, err := term.MakeRaw(int(guest.Fd())); err != nil {
		c.close()
		return nil, fmt.Errorf("set up the guest's console: %w", err)
	}
	if streams == nil {
		c.messages = messages
		return c, nil
	}
	c.streams, c.input = *streams, in
	if term.IsTerminal(int(streams.Stdin.Fd())) {
		if c.restore, err = term.MakeRaw(int(streams.Stdin.Fd())); err != nil {
			c.close()
			return nil, fmt.Errorf("set up the container's terminal: %w", err)
		}
		c.winch = make(chan os.Signal, 1)
		signal.Notify(c.winch, unix.SIGWINCH)
		c.resize()
	}
	return c, nil
}

// start begins to copy the guest's output, once the kernel has its end.
func (c *console) start() {
	c.guest.Close()
	go c.output()
	if c.winch != nil {
		go func() {
			for range c.winch {
				c.resize()
			}
		}()
	}
}

// startInput begins to copy the container's stdin, the first time that it is called: when the kernel has opened the
// console. What comes before stays in the terminal unseen, until something else wakes the kernel.
func (c *console) startInput() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.input == nil || c.nudges != nil || c.closed {
		return
	}
	c.nudges = time.AfterFunc(time.Hour, c.nudge)
	c.input.connect(&nudgingWriter{w: c.host, timer: c.nudges})
}

// endInput leaves what comes from now on to the console of the next boot.
func (c *console) endInput() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.nudges != nil {
		c.input.disconnect()
		c.nudges.Stop()
	}
}

// nudgeDelay is how long after the last input the kernel is made to look again: longer than it takes to echo.
const nudgeDelay = 20 * time.Millisecond

// nudgingWriter writes to the guest's console. Linux sends SIGIO for a pseudo-terminal before it wakes those who poll it,
// so a kernel that is quick with the signal finds nothing, and the input would wait for the next event of any kind. (It
// was seen once in a hundred boots of a benchmark that writes a single line.)
type nudgingWriter struct {
	w     io.Writer
	timer *time.Timer
}

func (w *nudgingWriter) Write(p []byte) (int, error) {
	n, err := w.w.Write(p)
	w.timer.Reset(nudgeDelay)
	return n, err
}

// output copies until the kernel and all its children have closed their end.
func (c *console) output() {
	defer close(c.done)
	if c.messages != nil {
		c.messages.take(c.host, "console")
		return
	}
	var w io.Writer = c.streams.Stdout
	switch {
	case term.IsTerminal(int(c.streams.Stdout.Fd())):
	case c.format == config.JSON:
		lines := newLineWriter(w, consoleSilence)
		defer lines.close()
		w = lines
	default:
		w = &crlfWriter{w: w}
	}
	// The end of a terminal is an I/O error by nature (EIO), so there is none to report.
	_, _ = io.Copy(w, c.host)
}

// answers says whether a terminal is at the other end, which sees the question. One without a size has nobody before it
// (docker run -dt).
func (c *console) answers() bool {
	if c.restore == nil || !term.IsTerminal(int(c.streams.Stdout.Fd())) {
		return false
	}
	rows, _, err := pty.Getsize(c.streams.Stdin)
	return err == nil && rows > 0
}

func (c *console) resize() {
	// Without a size to be had the guest keeps its own idea of one.
	_ = pty.InheritSize(c.streams.Stdin, c.host)
}

// drain waits for the last output, but no longer than timeout.
func (c *console) drain(timeout time.Duration) {
	select {
	case <-c.done:
	case <-time.After(timeout):
	}
}

func (c *console) close() {
	c.endInput()
	if c.winch != nil {
		signal.Stop(c.winch)
		close(c.winch)
	}
	c.host.Close()
	c.guest.Close()
	if c.restore != nil {
		_ = term.Restore(int(c.streams.Stdin.Fd()), c.restore)
	}
}

// crlfWriter turns the terminal's line ends into those of a log file: a carriage return is dropped if a line feed
// follows, be it in the next write.
type crlfWriter struct {
	w io.Writer
	// held says that a carriage return waits for what follows.
	held bool
}

func (w *crlfWriter) Write(p []byte) (int, error) {
	out := make([]byte, 0, len(p)+1)
	for _, b := range p {
		if w.held && b != '\n' {
			out = append(out, '\r')
		}
		if w.held = b == '\r'; !w.held {
			out = append(out, b)
		}
	}
	if _, err := w.w.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}
