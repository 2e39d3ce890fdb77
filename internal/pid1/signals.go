package pid1

import (
	"os"
	"syscall"
)

// lastSignal is the highest signal number of Linux on all architectures that UML runs on (_NSIG).
const lastSignal = 64

// kept are the signals that mean this process and not the child.
var kept = map[syscall.Signal]bool{
	// Nobody can catch these two.
	syscall.SIGKILL: true,
	syscall.SIGSTOP: true,
	// The end of a child is what PID 1 is there for.
	syscall.SIGCHLD: true,
	// The Go runtime preempts goroutines with SIGURG and profiles with SIGPROF.
	syscall.SIGURG:  true,
	syscall.SIGPROF: true,
	// Raised by what this process itself does: faults, an abort, output that nobody reads, use of the terminal from
	// the background.
	syscall.SIGSEGV: true,
	syscall.SIGBUS:  true,
	syscall.SIGFPE:  true,
	syscall.SIGILL:  true,
	syscall.SIGTRAP: true,
	syscall.SIGSYS:  true,
	syscall.SIGABRT: true,
	syscall.SIGPIPE: true,
	syscall.SIGTTIN: true,
	syscall.SIGTTOU: true,
	// C libraries keep these for their threads, and Go does not deliver them.
	32: true,
	33: true,
	34: true,
}

// forwarded are all other signals, with the real-time ones: SIGRTMIN+3 asks systemd for a halt.
var forwarded = forwardable()

func forwardable() []os.Signal {
	var signals []os.Signal
	for s := syscall.Signal(1); s <= lastSignal; s++ {
		if !kept[s] {
			signals = append(signals, s)
		}
	}
	return signals
}
