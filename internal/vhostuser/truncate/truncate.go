// Package truncate takes memory away in tests, as a malicious front end could.
package truncate

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// File truncates a file that is mapped to 0 bytes: from then on each access to the mapping faults, with SIGBUS.
//
// Nothing else of this process runs meanwhile. Where the race detector is on, sync/atomic's functions look at their
// address in Go, where a fault becomes a panic, but go on to C (runtime/race_amd64.s), where it ends the process: the file
// must not go in between. There is no preemption there, so one processor for all goroutines sees to that, which a raw
// system call, other than a usual one, keeps.
func File(f *os.File) error {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	if _, _, errno := unix.RawSyscall(unix.SYS_FTRUNCATE, f.Fd(), 0, 0); errno != 0 {
		return os.NewSyscallError("ftruncate", errno)
	}
	return nil
}
