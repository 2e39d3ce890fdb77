package e2e

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestThreads has threads of one program run at once in a guest with two CPUs, and change the memory that they share.
func TestThreads(t *testing.T) {
	t.Parallel()
	stdout, stderr, code := run(t, "", "-e", "CPUS=2", "-v", self(t)+":/rootfs/peer:ro", "--", "run", "/peer", "threads")
	if code != 0 {
		t.Errorf("exit code %d\n%s%s", code, stdout, stderr)
	}
}

// TestPageOut has the guest's kernel take pages from a program that writes to them on the other CPU: no write is lost.
func TestPageOut(t *testing.T) {
	t.Parallel()
	stdout, stderr, code := run(t, "", "-e", "CPUS=2", "-v", self(t)+":/rootfs/peer:ro", "--", "run", "/peer", "pageout")
	if code != 0 {
		t.Errorf("exit code %d\n%s%s", code, stdout, stderr)
	}
}

// pageOutPages are what the writer has, and pageOutTime is how long it writes.
const (
	pageOutPages = 400
	pageOutTime  = 3 * time.Second
)

// pageOut starts a writer and swaps its pages out to compressed memory, over and over.
func pageOut() error {
	if err := swapOnZram(); err != nil {
		return err
	}
	cmd := &exec.Cmd{Path: "/proc/self/exe", Args: []string{"/peer", "write"}, Stderr: os.Stderr}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := onCPU(0, cmd.Start); err != nil {
		return err
	}
	var address uintptr
	if _, err := fmt.Fscanf(out, "%d", &address); err != nil {
		return fmt.Errorf("the writer's address: %w", err)
	}
	pidfd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		return err
	}
	if err := onCPU(1, func() error {
		pages := unix.RemoteIovec{Base: address, Len: pageOutPages * os.Getpagesize()}
		for end := time.Now().Add(pageOutTime / 2); time.Now().Before(end); {
			_, _, errno := unix.Syscall6(unix.SYS_PROCESS_MADVISE, uintptr(pidfd), uintptr(unsafe.Pointer(&pages)), 1,
				unix.MADV_PAGEOUT, 0, 0)
			if errno != 0 {
				return errno
			}
		}
		return nil
	}); err != nil {
		return fmt.Errorf("process_madvise: %w", err)
	}
	return cmd.Wait()
}

// write counts in each word of some pages, and reads there what it has written last.
func write() error {
	memory, err := mapPages(pageOutPages)
	if err != nil {
		return err
	}
	defer unix.Munmap(memory)
	fmt.Println(uintptr(unsafe.Pointer(&memory[0])))
	lost := 0
	for round, end := uint64(1), time.Now().Add(pageOutTime); time.Now().Before(end); round++ {
		for i := 0; i < len(memory); i += os.Getpagesize() {
			word := (*atomic.Uint64)(unsafe.Pointer(&memory[i]))
			if word.Load() != round-1 {
				lost++
			}
			word.Store(round)
		}
	}
	if lost > 0 {
		return fmt.Errorf("%d writes were lost", lost)
	}
	return nil
}

// onCPU has this goroutine's thread run f on one CPU, and stay there; a process that f starts does, too.
func onCPU(cpu int, f func() error) error {
	runtime.LockOSThread()
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return err
	}
	return f()
}

// swapOnZram makes a swap space of 64 MiB (linux/swap.h: union swap_header) in compressed memory.
func swapOnZram() error {
	const size = 64 << 20
	if err := os.WriteFile("/sys/block/zram0/disksize", []byte(strconv.Itoa(size)), 0); err != nil {
		return err
	}
	header := make([]byte, os.Getpagesize())
	binary.NativeEndian.PutUint32(header[1024:], 1)
	binary.NativeEndian.PutUint32(header[1028:], uint32(size/len(header)-1))
	copy(header[len(header)-10:], "SWAPSPACE2")
	if err := os.WriteFile("/dev/zram0", header, 0); err != nil {
		return err
	}
	device, err := unix.BytePtrFromString("/dev/zram0")
	if err != nil {
		return err
	}
	if _, _, errno := unix.Syscall(unix.SYS_SWAPON, uintptr(unsafe.Pointer(device)), 0, 0); errno != 0 {
		return fmt.Errorf("swapon: %w", errno)
	}
	return nil
}

// threads checks what programs with threads rely on. Each check takes no second; one that the threads make by turns, each
// for a tick, takes minutes.
func threads() error {
	runtime.GOMAXPROCS(4)
	if err := threadsMeet(100_000); err != nil {
		return err
	}
	if err := threadsUnmap(3000); err != nil {
		return err
	}
	return threadsFork(100)
}

// other runs f in another thread, and returns how to wait for its end.
func other(f func()) (wait func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		f()
	}()
	return func() { <-done }
}

// threadsMeet has two threads wait for each other without a system call: they have to run at once.
func threadsMeet(rounds int64) error {
	var turn atomic.Int64
	wait := other(func() {
		for i := range rounds {
			for turn.Load() != 2*i+1 {
			}
			turn.Store(2*i + 2)
		}
	})
	for i := range rounds {
		turn.Store(2*i + 1)
		for turn.Load() != 2*i+2 {
		}
	}
	wait()
	return nil
}

// mapPages returns n pages of anonymous memory.
func mapPages(n int) ([]byte, error) {
	return unix.Mmap(-1, 0, n*os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
}

// page is a value in a page of its own, and that page.
func page() (*atomic.Int64, []byte, error) {
	memory, err := mapPages(1)
	if err != nil {
		return nil, nil, err
	}
	return (*atomic.Int64)(unsafe.Pointer(&memory[0])), memory, nil
}

// threadsUnmap takes a page from under a thread that reads it all the time: once madvise(2) has returned, nobody sees what
// was there.
func threadsUnmap(rounds int) error {
	value, memory, err := page()
	if err != nil {
		return err
	}
	defer unix.Munmap(memory)
	var turn atomic.Bool
	var failed error
	wait := other(func() {
		for i := range rounds {
			for turn.Load() {
			}
			value.Store(int64(i) + 1)
			if err := unix.Madvise(memory, unix.MADV_DONTNEED); err != nil && failed == nil {
				failed = err
			}
			turn.Store(true)
		}
	})
	stale := 0
	for range rounds {
		for !turn.Load() {
			value.Load()
		}
		if value.Load() != 0 {
			stale++
		}
		turn.Store(false)
	}
	wait()
	if failed != nil {
		return failed
	}
	if stale > 0 {
		return fmt.Errorf("in %d of %d rounds a thread saw what another one had unmapped", stale, rounds)
	}
	return nil
}

// threadsFork forks while a thread writes: what the child has of that does not change any more.
func threadsFork(rounds int) error {
	value, memory, err := page()
	if err != nil {
		return err
	}
	defer unix.Munmap(memory)
	var stop atomic.Bool
	wait := other(func() {
		for !stop.Load() {
			value.Add(1)
		}
	})
	changed := 0
	for range rounds {
		var status syscall.WaitStatus
		pid, err := forkAndWatch(value)
		if err == nil {
			_, err = syscall.Wait4(pid, &status, 0, nil)
		}
		if err != nil {
			return err
		}
		if status.ExitStatus() != 0 {
			changed++
		}
	}
	stop.Store(true)
	wait()
	if changed > 0 {
		return fmt.Errorf("%d of %d children saw their memory change", changed, rounds)
	}
	return nil
}

// forkAndWatch returns the process id of a child, whose exit code is 1 when value changes. The child is without Go's
// other threads, and so makes nothing but system calls.
func forkAndWatch(value *atomic.Int64) (int, error) {
	pid, _, errno := syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	if pid != 0 {
		return int(pid), nil
	}
	var code uintptr
	first := value.Load()
	for range 50 {
		syscall.RawSyscall(syscall.SYS_SCHED_YIELD, 0, 0, 0)
		if value.Load() != first {
			code = 1
		}
	}
	for {
		syscall.RawSyscall(syscall.SYS_EXIT_GROUP, code, 0, 0)
	}
}
