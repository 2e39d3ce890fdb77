package e2e

import (
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
)

// terminal is a command on a pseudo-terminal of 33 lines and 111 columns.
type terminal struct {
	t    *testing.T
	cmd  *exec.Cmd
	file *os.File

	mu sync.Mutex
	// all is what has come, seen how much of it expect has consumed.
	all  string // guarded by mu
	seen int    // guarded by mu
}

func newTerminal(t *testing.T, command ...string) *terminal {
	t.Helper()
	term := &terminal{t: t, cmd: exec.Command(command[0], command[1:]...)}
	var err error
	if term.file, err = pty.StartWithSize(term.cmd, &pty.Winsize{Rows: 33, Cols: 111}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { term.file.Close() })
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := term.file.Read(buf)
			term.mu.Lock()
			term.all += string(buf[:n])
			term.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return term
}

func (term *terminal) send(s string) {
	term.t.Helper()
	if _, err := term.file.WriteString(s); err != nil {
		term.t.Fatal(err)
	}
}

// expect waits for text in what came since the last expect.
func (term *terminal) expect(text string) {
	term.t.Helper()
	deadline := time.Now().Add(hangGuard)
	for {
		term.mu.Lock()
		at := strings.Index(term.all[term.seen:], text)
		if at >= 0 {
			term.seen += at + len(text)
		}
		all := term.all
		term.mu.Unlock()
		if at >= 0 {
			return
		}
		if time.Now().After(deadline) {
			term.t.Fatalf("no %q on the terminal:\n%s", text, all)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (term *terminal) resize(rows, cols uint16) {
	term.t.Helper()
	if err := pty.Setsize(term.file, &pty.Winsize{Rows: rows, Cols: cols}); err != nil {
		term.t.Fatal(err)
	}
}

// text is all that has come.
func (term *terminal) text() string {
	term.mu.Lock()
	defer term.mu.Unlock()
	return term.all
}

// wait returns the command's exit code.
func (term *terminal) wait() int {
	term.t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = term.cmd.Wait()
	}()
	select {
	case <-done:
	case <-time.After(hangGuard):
		term.t.Fatalf("the command hangs:\n%s", term.all)
	}
	return term.cmd.ProcessState.ExitCode()
}
