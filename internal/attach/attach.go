// Package attach runs a command in the guest with the standard streams of this process: bytes, the terminal with its
// size, and signals. docker exec's side of it is "entrypoint exec", docker run's is the supervisor.
package attach

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"docker-usermode-linux/internal/agent"
)

// Streams are the standard streams that the command gets.
type Streams struct {
	Stdin, Stdout, Stderr *os.File
}

// TTY says whether the command gets a terminal.
type TTY int

// When there is a terminal in the guest.
const (
	Auto  TTY = iota // where stdin and stdout are one here
	Never            // not even then
	Force            // even if they are none
)

// wanted says whether there is to be one.
func (t TTY) wanted(s Streams) bool {
	switch t {
	case Never:
		return false
	case Force:
		return true
	}
	return term.IsTerminal(int(s.Stdin.Fd())) && term.IsTerminal(int(s.Stdout.Fd()))
}

// defaultSize is that of a terminal which nobody looks at.
var defaultSize = agent.Size{Rows: 24, Cols: 80}

// Run runs a command and returns its exit code as a shell shows it. The signals of that channel go to the command.
//
// The terminal of our own is raw meanwhile, and restored before Run returns. Stdin is read for as long as this process
// lives: a read that has begun cannot be interrupted.
func Run(
	ctx context.Context, client *agent.Client, c agent.Command, tty TTY, s Streams, signals <-chan os.Signal,
) (int, error) {
	streams := agent.Streams{Stdin: s.Stdin, Stdout: s.Stdout, Stderr: s.Stderr, Signals: signals}
	if tty.wanted(s) {
		terminal, err := openTerminal(s.Stdin)
		if err != nil {
			return 0, err
		}
		defer terminal.close()
		c.PTY = &agent.PTY{Term: os.Getenv("TERM"), Size: terminal.size()}
		streams.Resize = terminal.sizes
	}
	return client.Run(ctx, c, streams)
}

// terminal is that of our own, which may be none.
type terminal struct {
	file    *os.File
	state   *term.State // nil: it is none
	changed chan os.Signal
	sizes   chan agent.Size
	done    chan struct{}
	running sync.WaitGroup
}

func openTerminal(file *os.File) (*terminal, error) {
	t := &terminal{file: file, sizes: make(chan agent.Size), done: make(chan struct{})}
	if !term.IsTerminal(int(file.Fd())) {
		return t, nil
	}
	var err error
	if t.state, err = term.MakeRaw(int(file.Fd())); err != nil {
		return nil, fmt.Errorf("set up the terminal: %w", err)
	}
	t.changed = make(chan os.Signal, 1)
	signal.Notify(t.changed, unix.SIGWINCH)
	t.running.Go(t.follow)
	return t, nil
}

// follow passes on the size whenever it changes. Docker sets the first one a moment after the start, which is a change.
func (t *terminal) follow() {
	for {
		select {
		case <-t.changed:
		case <-t.done:
			return
		}
		select {
		case t.sizes <- t.size():
		case <-t.done:
			return
		}
	}
}

func (t *terminal) size() agent.Size {
	cols, rows, err := term.GetSize(int(t.file.Fd()))
	if err != nil || rows <= 0 || cols <= 0 {
		return defaultSize
	}
	return agent.Size{Rows: uint16(rows), Cols: uint16(cols)}
}

// close gives the terminal back as it was.
func (t *terminal) close() {
	if t.state == nil {
		return
	}
	signal.Stop(t.changed)
	close(t.done)
	t.running.Wait()
	_ = term.Restore(int(t.file.Fd()), t.state) // it worked before
}
