package uml

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Theory of operation
//
// A guest's system call is a hand-over between the thread of a virtual CPU and the process of the guest's program,
// which our kernel keeps on the thread's host CPU (kernel-config/patches/0003). The thread itself moves: whenever it
// wakes, the host's scheduler looks for an idle CPU, and each move drags the program along. Measured on two CPUs,
// 30,000 times read and write of a byte take 2.1-3.9 s with a thread that moves and 0.8 s with one that stays.
//
// So each thread is pinned to one of the CPUs that our own process may use, to where the scheduler has put it, and no
// two to the same one while there are others. It stays there as long as it gets the CPU when it wants it. When it has
// waited for it more than placementMaxDelay of the time, somebody else is busy there: all threads are then free for
// placementWindow, in which the scheduler puts them where there is room, and are pinned anew. So it is, too, when the
// set of our CPUs has changed (docker update --cpuset-cpus).
//
// The threads are looked at every placementInterval; those of an idle guest, which run for less than placementIdle of it,
// only every placementRest.

const (
	placementDelay    = 100 * time.Millisecond
	placementInterval = 100 * time.Millisecond
	placementRest     = time.Second
	placementWindow   = 20 * time.Millisecond
	// placementMaxDelay and placementIdle are parts of the time between two looks.
	placementMaxDelay = 0.15
	placementIdle     = 0.02
)

// cpuThreadName begins the names of the threads of all virtual CPUs but the first, which is the process's first thread
// (kernel-config/patches).
const cpuThreadName = "vcpu"

// cpuThread is the thread of a virtual CPU.
type cpuThread struct {
	tid int
	// ran and waited are how long it has had a CPU and has wanted one, in all (schedstat, Documentation/scheduler).
	ran, waited time.Duration
	// on is the CPU that it ran on last.
	on int
}

// place runs until the kernel has ended, or the host refuses.
func (k *Kernel) place() {
	var (
		threads []cpuThread
		cpus    unix.CPUSet // when they were pinned
	)
	for wait := placementDelay; k.sleep(wait); {
		var allowed unix.CPUSet
		if unix.SchedGetaffinity(0, &allowed) != nil {
			return
		}
		if allowed.Count() < 2 { // nothing to choose, until there is more
			cpus, wait = unix.CPUSet{}, placementRest
			continue
		}
		now := k.cpuThreads()
		ran, waited := growth(threads, now)
		switch {
		case len(now) != len(threads), allowed != cpus, waited > time.Duration(placementMaxDelay*float64(wait)):
			if now = k.replace(&allowed); now == nil {
				return
			}
			cpus, wait = allowed, placementInterval
		case ran < time.Duration(placementIdle*float64(wait)):
			wait = placementRest
		default:
			wait = placementInterval
		}
		threads = now
	}
}

// growth is the most that one of the threads has run, and waited, since before.
func growth(before, now []cpuThread) (ran, waited time.Duration) {
	for i := range min(len(before), len(now)) {
		ran = max(ran, now[i].ran-before[i].ran)
		waited = max(waited, now[i].waited-before[i].waited)
	}
	return ran, waited
}

// replace lets the scheduler choose anew, and keeps the threads there. It returns nil when the kernel has ended, or the
// host refuses.
func (k *Kernel) replace(all *unix.CPUSet) []cpuThread {
	before := k.cpuThreads()
	for _, t := range before {
		if unix.SchedSetaffinity(t.tid, all) != nil {
			return nil
		}
	}
	if !k.sleep(placementWindow) {
		return nil
	}
	threads := k.cpuThreads()
	for i, cpu := range assign(before, threads, all) {
		var one unix.CPUSet
		one.Set(cpu)
		if unix.SchedSetaffinity(threads[i].tid, &one) != nil {
			return nil
		}
	}
	return threads
}

// assign says which CPU each thread is to stay on: its present one, or where a busier thread has that, another one of all
// that no thread has.
func assign(before, threads []cpuThread, all *unix.CPUSet) []int {
	busiest := make([]int, len(threads))
	for i := range busiest {
		busiest[i] = i
	}
	ran := func(i int) time.Duration {
		if i >= len(before) {
			return threads[i].ran
		}
		return threads[i].ran - before[i].ran
	}
	slices.SortStableFunc(busiest, func(a, b int) int { return cmp.Compare(ran(b), ran(a)) })
	cpus := make([]int, len(threads))
	free := *all
	var homeless []int
	for _, i := range busiest {
		if cpus[i] = threads[i].on; free.IsSet(cpus[i]) {
			free.Clear(cpus[i])
		} else {
			homeless = append(homeless, i)
		}
	}
	next := 0
	for _, i := range homeless {
		if free.Count() == 0 { // more threads than CPUs: a second one for each
			free = *all
			next = 0
		}
		for !free.IsSet(next) {
			next++
		}
		free.Clear(next)
		cpus[i] = next
	}
	return cpus
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

// cpuThreads are the threads of the virtual CPUs, that of the first one first. A thread that is gone is left out.
func (k *Kernel) cpuThreads() []cpuThread {
	tasks := fmt.Sprintf("/proc/%d/task", k.PID())
	entries, err := os.ReadDir(tasks)
	if err != nil {
		return nil
	}
	var threads []cpuThread
	for _, e := range entries {
		tid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		dir := tasks + "/" + e.Name()
		if name, err := os.ReadFile(dir + "/comm"); tid != k.PID() &&
			(err != nil || !bytes.HasPrefix(name, []byte(cpuThreadName))) {
			continue
		}
		if t, err := readThread(dir, tid); err == nil {
			threads = append(threads, t)
		}
	}
	return threads
}

// readThread reads where and how long a thread has run.
func readThread(dir string, tid int) (cpuThread, error) {
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return cpuThread{}, err
	}
	on, err := lastCPU(string(stat))
	if err != nil {
		return cpuThread{}, fmt.Errorf("%s/stat: %w", dir, err)
	}
	t := cpuThread{tid: tid, on: on}
	// A host without schedstats has no such file: then nobody ever waits.
	if data, err := os.ReadFile(dir + "/schedstat"); err == nil {
		_, _ = fmt.Sscan(string(data), &t.ran, &t.waited)
	}
	return t, nil
}

// lastCPU is the host CPU that a thread ran on last, the field "processor" of proc_pid_stat(5).
func lastCPU(stat string) (int, error) {
	// The second field, a name in brackets, may hold anything; the third follows the last bracket.
	const third, processor = 3, 39
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) <= processor-third {
		return 0, fmt.Errorf("%d fields", len(fields)+third-1)
	}
	return strconv.Atoi(fields[processor-third])
}
