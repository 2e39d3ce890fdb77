package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/creack/pty"
)

// greeting is what the guest's console says before it asks for a login. The prompt itself has no line end, and Docker
// keeps what has none out of its logs.
const greeting = "Debian GNU/Linux"

// detach is what Docker takes for its user's leave.
const detach = "\x10\x11" // Ctrl-P Ctrl-Q

// attach opens a terminal on the console of c. Docker shows nothing of what came before, so Enter asks for a new prompt.
func (c *container) attach(prompt string) *terminal {
	c.t.Helper()
	term := newTerminal(c.t.(*testing.T), "docker", "attach", "--detach-keys", "ctrl-p,ctrl-q", c.id)
	term.expectAfter("\r", prompt)
	return term
}

// expectAfter sends s until the answer comes: what is typed before Docker has attached is lost.
func (term *terminal) expectAfter(s, text string) {
	term.t.Helper()
	waitFor(term.t, fmt.Sprintf("%q on the terminal", text), func() error {
		term.send(s)
		term.mu.Lock()
		defer term.mu.Unlock()
		at := strings.Index(term.all[term.seen:], text)
		if at < 0 {
			return fmt.Errorf("not in %q", term.all[term.seen:])
		}
		term.seen += at + len(text)
		return nil
	})
}

// TestAttach leaves the console of a guest and comes back to it, twice, with a window of another size.
func TestAttach(t *testing.T) {
	t.Parallel()
	c := start(t, "-it")
	c.waitLog(greeting)
	term := c.attach("login: ")
	term.send("root\r")
	term.expect("Password: ")
	term.send(password + "\r")
	term.expect("# ")
	term.send("stty size\r")
	term.expect("33 111")
	term.send("echo first $((20+1))\r")
	term.expect("first 21")
	term.send(detach)
	term.wait()

	for i, size := range []pty.Winsize{{Rows: 40, Cols: 120}, {Rows: 24, Cols: 80}} {
		term = c.attach("# ")
		term.send(fmt.Sprintf("echo again $((%d+1))\r", i))
		term.expect(fmt.Sprintf("again %d", i+1))
		if err := pty.Setsize(term.file, &size); err != nil {
			t.Fatal(err)
		}
		term.expectAfter("stty size\r", fmt.Sprintf("%d %d\r\n", size.Rows, size.Cols))
		term.send("sleep 1000\r")
		term.expect("sleep 1000")
		waitFor(t, "the command", func() error { // a Ctrl-C before is for nobody
			_, err := c.exec("sh", "-c", "grep -lx sleep /proc/[0-9]*/comm")
			return err
		})
		term.send("\x03")
		term.expect("# ")
		term.send(detach)
		term.wait()
		if got := docker(t, "inspect", "-f", "{{.State.Running}}", c.id); got != "true" {
			t.Fatalf("the container is gone after the detach")
		}
	}
	term = c.attach("# ")
	term.send("poweroff\r")
	if code := c.wait(); code != "0" {
		t.Errorf("exit code %s, want 0", code)
	}
}

// TestConsoleJSONTerminal has the console of a terminal stay what it is, whatever the format of the log.
func TestConsoleJSONTerminal(t *testing.T) {
	t.Parallel()
	c := start(t, "-it", "-e", "LOG_FORMAT=json")
	c.waitLog(greeting)
	if log := c.logs(); strings.Contains(log, `"stream":"console"`) {
		t.Errorf("the console of a terminal as JSON:\n%s", log)
	}
	c.stop()
}

// TestConsolePaste writes more to the console than its reader takes for a while: nothing is lost, and what comes later is
// read, too.
func TestConsolePaste(t *testing.T) {
	t.Parallel()
	var script strings.Builder
	script.WriteString("sleep 2\n")
	for i := range 200 {
		fmt.Fprintf(&script, "n=$((n+1)) # %d: as long as a line of a program that somebody pastes\n", i)
	}
	script.WriteString("sleep 1\necho counted $n\necho o > /proc/sysrq-trigger; sleep 60\n")
	stdout, stderr, code := run(t, script.String(), "--", "quiet", "init=/bin/sh")
	if code != 0 || !strings.Contains(stdout, "counted 200\n") {
		t.Errorf("exit code %d, no %q in\n%s\n%s", code, "counted 200", stdout, stderr)
	}
}
