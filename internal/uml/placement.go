package uml

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Theory of operation
//
// A guest's system call is a hand-over between the thread of the virtual CPU and the process of the guest's program,
// which our kernel keeps on the thread's host CPU (kernel-config/patches/0003). The thread itself moves: whenever it
// wakes, the host's scheduler looks for an idle CPU, and each move drags the program along. Measured on two CPUs,
// 30,000 times read and write of a byte take 2.1-3.9 s with a thread that moves and 0.8 s with one that stays.
//
// So the thread is pinned, but never for long: once in placementInterval it is free for placementWindow, in which the
// scheduler puts it where there is room, and is pinned to where it then is. The host's load is thus followed within a
// second, and nothing has to be known of it.
//
// Only with one virtual CPU: several are threads that want several CPUs, and are left to the scheduler. Only the
// kernel's first thread is pinned, and not before it has started its helpers, which would inherit its CPU.

const (
	placementDelay    = 100 * time.Millisecond
	placementInterval = time.Second
	placementWindow   = 20 * time.Millisecond
)

// place runs until the kernel has ended, or the host refuses.
func (k *Kernel) place() {
	var all unix.CPUSet
	if unix.SchedGetaffinity(k.PID(), &all) != nil || all.Count() < 2 {
		return
	}
	for wait := placementDelay; k.sleep(wait); wait = placementInterval {
		if unix.SchedSetaffinity(k.PID(), &all) != nil || !k.sleep(placementWindow) {
			return
		}
		cpu, err := currentCPU(k.PID())
		if err != nil {
			return
		}
		var one unix.CPUSet
		one.Set(cpu)
		if unix.SchedSetaffinity(k.PID(), &one) != nil {
			return
		}
	}
}

// sleep reports false when the kernel has ended meanwhile.
func (k *Kernel) sleep(d time.Duration) bool {
	select {
	case <-k.ended:
		return false
	case <-time.After(d):
		return true
	}
}

// currentCPU is the host CPU that a process's first thread ran on last, the field "processor" of proc_pid_stat(5).
func currentCPU(pid int) (int, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The second field, a name in brackets, may hold anything; the third follows the last bracket.
	const third, processor = 3, 39
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(fields) <= processor-third {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields)+third-1)
	}
	return strconv.Atoi(fields[processor-third])
}

// hasOneCPU reports whether args, of which the last ncpus= counts, give the guest a single virtual CPU.
func hasOneCPU(args []string) bool {
	one := true
	for _, arg := range args {
		if n, ok := strings.CutPrefix(arg, "ncpus="); ok {
			one = n == "1"
		}
	}
	return one
}
