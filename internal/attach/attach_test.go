package attach

import (
	"os"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"docker-usermode-linux/internal/agent"
)

// hang turns a hang into a failure.
const hang = 30 * time.Second

// openPTY returns both ends of a terminal.
func openPTY(t *testing.T) (host, tty *os.File) {
	t.Helper()
	host, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		host.Close()
		tty.Close()
	})
	return host, tty
}

func TestWanted(t *testing.T) {
	_, tty := openPTY(t)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	both, half, none := Streams{tty, tty, tty}, Streams{tty, null, tty}, Streams{null, null, null}
	for _, test := range []struct {
		tty     TTY
		streams Streams
		want    bool
	}{
		{Auto, both, true},
		{Auto, half, false},
		{Auto, none, false},
		{Never, both, false},
		{Force, none, true},
	} {
		if got := test.tty.wanted(test.streams); got != test.want {
			t.Errorf("TTY(%d).wanted(%v) = %v, want %v", test.tty, test.streams, got, test.want)
		}
	}
}

// TestTerminal has a terminal that is raw meanwhile, follows its window and is given back as it was.
func TestTerminal(t *testing.T) {
	host, tty := openPTY(t)
	if err := pty.Setsize(host, &pty.Winsize{Rows: 33, Cols: 111}); err != nil {
		t.Fatal(err)
	}
	before, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	terminal, err := openTerminal(tty)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := terminal.size(), (agent.Size{Rows: 33, Cols: 111}); got != want {
		t.Errorf("size() = %v, want %v", got, want)
	}
	raw, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil || raw.Lflag&(unix.ICANON|unix.ECHO|unix.ISIG) != 0 {
		t.Errorf("the terminal is not raw: %+v, %v", raw, err)
	}
	if err := pty.Setsize(host, &pty.Winsize{Rows: 20, Cols: 70}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(os.Getpid(), unix.SIGWINCH); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-terminal.sizes:
		if want := (agent.Size{Rows: 20, Cols: 70}); got != want {
			t.Errorf("after a change: %v, want %v", got, want)
		}
	case <-time.After(hang):
		t.Fatal("the new size did not come")
	}
	terminal.close()
	if after, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS); err != nil || *after != *before {
		t.Errorf("the terminal is %+v, %v, want it as before: %+v", after, err, before)
	}
}

// TestNoTerminal forces a terminal in the guest where there is none here.
func TestNoTerminal(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if term.IsTerminal(int(null.Fd())) {
		t.Fatal("/dev/null is a terminal")
	}
	terminal, err := openTerminal(null)
	if err != nil {
		t.Fatal(err)
	}
	if got := terminal.size(); got != defaultSize {
		t.Errorf("size() = %v, want %v", got, defaultSize)
	}
	terminal.close()
}
