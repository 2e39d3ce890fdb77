package agent

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// endOfFile is the default of the terminal's VEOF character, Ctrl-D (termios(3)).
const endOfFile = 4

// terminal is a pseudo-terminal (pty(7)) with its name for TERM.
type terminal struct {
	term   string
	master *os.File
	slave  *os.File // until the command has it
}

// newTerminal opens a terminal of that size that belongs to u, like login(1).
//
// Package creack/pty is of no use here: it takes the descriptor out of the runtime's poller, and then neither deadlines
// nor Close end a Read.
func newTerminal(u *user, ttyGroup uint32, want PTY) (*terminal, error) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("open a terminal: %w", err)
	}
	t := &terminal{term: want.Term, master: master}
	if t.term == "" {
		t.term = "xterm"
	}
	if err := t.openSlave(u, ttyGroup); err != nil {
		t.close()
		return nil, fmt.Errorf("open a terminal: %w", err)
	}
	t.resize(want.Size)
	return t, nil
}

func (t *terminal) openSlave(u *user, ttyGroup uint32) error {
	var number int
	err := control(t.master, func(fd int) (err error) {
		if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
			return err
		}
		number, err = unix.IoctlGetInt(fd, unix.TIOCGPTN)
		return err
	})
	if err != nil {
		return err
	}
	t.slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return fmt.Errorf("%w (is devpts mounted?)", err)
	}
	return control(t.slave, func(fd int) error {
		// As login(1): others write to it through the group only. Without root, it is ours anyway.
		if os.Geteuid() == 0 {
			if err := unix.Fchown(fd, int(u.uid), int(ttyGroup)); err != nil {
				return err
			}
			if err := unix.Fchmod(fd, 0o620); err != nil {
				return err
			}
		}
		// Backspace in the line discipline deletes characters and not bytes: all terminals are UTF-8 by now.
		attr, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err != nil {
			return err
		}
		attr.Iflag |= unix.IUTF8
		return unix.IoctlSetTermios(fd, unix.TCSETS, attr)
	})
}

// resize sets the size; programs in the foreground get SIGWINCH. A terminal without a size, as of a client that has
// none itself, stays so.
func (t *terminal) resize(size Size) {
	// It fails only once the terminal is closed.
	_ = control(t.master, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols})
	})
}

func (t *terminal) closeSlave() {
	if t.slave != nil {
		t.slave.Close()
		t.slave = nil
	}
}

func (t *terminal) close() {
	t.closeSlave()
	t.master.Close()
}

// control calls f with the descriptor, which stays in the runtime's poller.
func control(file *os.File, f func(fd int) error) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}
