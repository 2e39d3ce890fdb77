//go:build linux

// Command work times what a kernel does for programs: a system call, a switch between two processes, a page fault, fork
// and exec, a walk over a tree of files. It needs sh, true and find, and prints one line for each: name, value, unit.
//
//	work [NAME]...
package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// workloads in the order of the output.
var workloads = []struct {
	name, unit string
	measure    func() (float64, error)
}{
	{"system-call", "us", systemCall},
	{"pipe-round-trip", "us", pipeRoundTrip},
	{"page-fault", "us", pageFault},
	{"fork-exec", "ms", forkExec},
	{"find", "us/file", find},
	{"two-jobs", "x", twoJobs},
}

// pongArg makes this program the other end of pipeRoundTrip, burnArg a job of twoJobs.
const (
	pongArg = "pong"
	burnArg = "burn"
)

func main() {
	if len(os.Args) == 2 {
		switch os.Args[1] {
		case pongArg:
			pong()
			return
		case burnArg:
			burn()
			return
		}
	}
	for _, w := range workloads {
		if len(os.Args) > 1 && !slices.Contains(os.Args[1:], w.name) {
			continue
		}
		value, err := w.measure()
		if err != nil {
			fmt.Fprintf(os.Stderr, "work: %s: %v\n", w.name, err)
			os.Exit(1)
		}
		fmt.Printf("%s %.3g %s\n", w.name, value, w.unit)
	}
}

// perRound is the time of n rounds of f, in microseconds each.
func perRound(n int, f func()) float64 {
	began := time.Now()
	for range n {
		f()
	}
	return float64(time.Since(began).Nanoseconds()) / 1e3 / float64(n)
}

// systemCall is getppid(2).
func systemCall() (float64, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	call := func() { unix.RawSyscall(unix.SYS_GETPPID, 0, 0, 0) }
	perRound(1000, call)
	return perRound(100_000, call), nil
}

// pipeRoundTrip is a byte to another process on the same CPU and back, through two pipes.
func pipeRoundTrip() (float64, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return 0, err
	}
	for cpu := range len(all) * 64 {
		if all.IsSet(cpu) {
			one.Set(cpu)
			break
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil { // the child inherits it
		return 0, err
	}
	defer func() { _ = unix.SchedSetaffinity(0, &all) }()
	var there, back [2]int
	for _, p := range []*[2]int{&there, &back} {
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			return 0, err
		}
	}
	pid, err := syscall.ForkExec("/proc/self/exe", []string{"work", pongArg}, &syscall.ProcAttr{
		Files: []uintptr{uintptr(there[0]), uintptr(back[1]), 2},
		Env:   []string{"GOMAXPROCS=1"},
	})
	if err != nil {
		return 0, err
	}
	_, _ = unix.Close(there[0]), unix.Close(back[1])
	b := []byte{0}
	trip := func() {
		if n, werr := unix.Write(there[1], b); n != 1 {
			err = werr
		}
		if n, rerr := unix.Read(back[0], b); n != 1 {
			err = fmt.Errorf("the other process is gone: %v", rerr)
		}
	}
	perRound(1000, trip)
	us := perRound(20_000, trip)
	_, _ = unix.Close(there[1]), unix.Close(back[0])
	if _, werr := unix.Wait4(pid, nil, 0, nil); err == nil {
		err = werr
	}
	return us, err
}

func pong() {
	b := []byte{0}
	for {
		if n, _ := unix.Read(0, b); n != 1 {
			return
		}
		if n, _ := unix.Write(1, b); n != 1 {
			return
		}
	}
}

// pageFault is the first write to a page of anonymous memory.
func pageFault() (float64, error) {
	const pages, size = 8192, 4096
	mem, err := unix.Mmap(-1, 0, pages*size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return 0, err
	}
	defer unix.Munmap(mem)
	_ = unix.Madvise(mem, unix.MADV_NOHUGEPAGE) // the kernel may have none
	at := 0
	return perRound(pages, func() { mem[at] = 1; at += size }), nil
}

// forkExec has a shell run /bin/true.
func forkExec() (float64, error) {
	const times = 200
	began := time.Now()
	err := exec.Command("sh", "-c", fmt.Sprintf("i=0; while [ $i -lt %d ]; do /bin/true; i=$((i+1)); done", times)).Run()
	return time.Since(began).Seconds() * 1e3 / times, err
}

// find looks at every file below /usr, for the second time.
func find() (us float64, err error) {
	var out []byte
	for range 2 {
		began := time.Now()
		if out, err = exec.Command("sh", "-c", "find /usr -type f -size +0 | wc -l").Output(); err != nil {
			return 0, err
		}
		us = float64(time.Since(began).Nanoseconds()) / 1e3
	}
	var files int
	if _, err := fmt.Sscan(string(out), &files); err != nil || files == 0 {
		return 0, fmt.Errorf("find has found %q files: %v", out, err)
	}
	return us / float64(files), nil
}

// twoJobs is how much more two processes that make system calls and compute get done at once than one after the other.
func twoJobs() (float64, error) {
	job := func(n int) (time.Duration, error) {
		began := time.Now()
		var cmds []*exec.Cmd
		for range n {
			cmd := exec.Command("/proc/self/exe", burnArg)
			cmd.Env = []string{"GOMAXPROCS=1"}
			if err := cmd.Start(); err != nil {
				return 0, err
			}
			cmds = append(cmds, cmd)
		}
		for _, cmd := range cmds {
			if err := cmd.Wait(); err != nil {
				return 0, err
			}
		}
		return time.Since(began), nil
	}
	one, err := job(1)
	if err != nil {
		return 0, err
	}
	two, err := job(2)
	return 2 * one.Seconds() / two.Seconds(), err
}

func burn() {
	n := uint64(1)
	for range 30_000 {
		unix.RawSyscall(unix.SYS_GETPPID, 0, 0, 0)
		for range 20_000 {
			n = n*6364136223846793005 + 1442695040888963407
		}
	}
	runtime.KeepAlive(n)
}
