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
	// host is our end, guest the kernel's.
	host, guest *os.File
	// restore is the terminal's state before ours; nil when stdin is none.
	restore *term.State
	winch   chan os.Signal
	done    chan struct{}
	input   sync.Once
}

func openConsole(streams Streams) (*console, error) {
	host, guest, err := pty.Open()
	if err != nil {
		return nil, fmt.Errorf("open a terminal for the guest's console: %w", err)
	}
	c := &console{streams: streams, host: host, guest: guest, done: make(chan struct{})}
	// Until the kernel does so itself: nothing is echoed, no line is edited here.
	if _, err := term.MakeRaw(int(guest.Fd())); err != nil {
		c.close()
		return nil, fmt.Errorf("set up the guest's console: %w", err)
	}
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
	c.input.Do(func() {
		// Ends with the process: a read of the container's stdin cannot be interrupted.
		go io.Copy(c.host, c.streams.Stdin)
	})
}

// output copies until the kernel and all its children have closed their end.
func (c *console) output() {
	defer close(c.done)
	var w io.Writer = c.streams.Stdout
	if !term.IsTerminal(int(c.streams.Stdout.Fd())) {
		w = &crlfWriter{w: w}
	}
	// The end of a terminal is an I/O error by nature (EIO), so there is none to report.
	_, _ = io.Copy(w, c.host)
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
