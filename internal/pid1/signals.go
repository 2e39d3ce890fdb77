package pid1

import (
	"os"
	"syscall"
)

// lastSignal is the highest signal number of Linux on all architectures that UML runs on (_NSIG).
const lastSignal = 64

// keptSet are the signals that mean this process and not the child, signal 1 as the lowest bit.
const keptSet uint64 = 0 |
	// Nobody can catch these two.
	1<<(syscall.SIGKILL-1) | 1<<(syscall.SIGSTOP-1) |
	// The end of a child is what PID 1 is there for.
	1<<(syscall.SIGCHLD-1) |
	// The Go runtime preempts goroutines with SIGURG and profiles with SIGPROF.
	1<<(syscall.SIGURG-1) | 1<<(syscall.SIGPROF-1) |
	// Raised by what this process itself does: faults, an abort, output that nobody reads, use of the terminal from
	// the background.
	1<<(syscall.SIGSEGV-1) | 1<<(syscall.SIGBUS-1) | 1<<(syscall.SIGFPE-1) | 1<<(syscall.SIGILL-1) |
	1<<(syscall.SIGTRAP-1) | 1<<(syscall.SIGSYS-1) | 1<<(syscall.SIGABRT-1) | 1<<(syscall.SIGPIPE-1) |
	1<<(syscall.SIGTTIN-1) | 1<<(syscall.SIGTTOU-1) |
	// C libraries keep these for their threads, and Go does not deliver them.
	1<<(32-1) | 1<<(33-1) | 1<<(34-1)

// forwardedSet are all other signals, with the real-time ones: SIGRTMIN+3 asks systemd for a halt. A variable, and its value
// a constant, for entry_amd64.s, which needs it before anything is initialised.
var forwardedSet = ^keptSet

// forwarded are those of forwardedSet.
var forwarded = forwardable()

// deadly are those of forwarded that end a Go program which has not subscribed to them, unless pid1entry holds them.
var deadly = []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM}

func forwardable() []os.Signal {
	var signals []os.Signal
	for s := syscall.Signal(1); s <= lastSignal; s++ {
		if forwardedSet&(1<<(s-1)) != 0 {
			signals = append(signals, s)
		}
	}
	return signals
}
