package uml

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestPlacement wants a kernel on one host CPU most of the time, and one that is not to be placed left alone.
func TestPlacement(t *testing.T) {
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
	for _, place := range []bool{true, false} {
		o, _ := fakeKernel(t, "exec sleep 1000")
		o.Place = place
		k, err := Start(o)
		if err != nil {
			t.Fatal(err)
		}
		pinned := false
		for deadline := time.Now().Add(2 * time.Second); !pinned && time.Now().Before(deadline); time.Sleep(placementWindow / 2) {
			var now unix.CPUSet
			if err := unix.SchedGetaffinity(k.PID(), &now); err != nil {
				t.Error(err)
			}
			pinned = now.Count() == 1
		}
		if want := place || all.Count() == 1; pinned != want {
			t.Errorf("Place %v: on one of the host's %d CPUs is %v, want %v", place, all.Count(), pinned, want)
		}
		if err := k.Kill(); err != nil {
			t.Error(err)
		}
		wait(t, k)
	}
}

// TestAssign has no two threads share a CPU as long as there are enough.
func TestAssign(t *testing.T) {
	type thread struct {
		on  int
		ran time.Duration
	}
	for _, test := range []struct {
		cpus    []int
		threads []thread
		want    []int
	}{
		{[]int{0, 1}, []thread{{1, 5}}, []int{1}},
		{[]int{0, 1}, []thread{{1, 5}, {0, 5}}, []int{1, 0}},
		{[]int{0, 1}, []thread{{1, 5}, {1, 9}}, []int{0, 1}},
		{[]int{2, 5, 7}, []thread{{5, 9}, {5, 3}, {5, 1}}, []int{5, 2, 7}},
		{[]int{3}, []thread{{3, 1}, {3, 2}}, []int{3, 3}},
		{[]int{0, 1}, []thread{{0, 9}, {0, 8}, {0, 7}, {0, 6}, {1, 5}}, []int{0, 0, 1, 0, 1}},
		{[]int{1, 2}, []thread{{0, 1}}, []int{1}}, // its CPU was taken away
	} {
		var all unix.CPUSet
		for _, cpu := range test.cpus {
			all.Set(cpu)
		}
		before, now := make([]cpuThread, len(test.threads)), make([]cpuThread, len(test.threads))
		for i, th := range test.threads {
			before[i].ran, now[i].ran, now[i].on = 100, 100+th.ran, th.on
		}
		if got := assign(before, now, &all); !slices.Equal(got, test.want) {
			t.Errorf("assign(%v) on CPUs %v = %v, want %v", test.threads, test.cpus, got, test.want)
		}
	}
}

func TestReadThread(t *testing.T) {
	th, err := readThread(fmt.Sprintf("/proc/self/task/%d", os.Getpid()), os.Getpid())
	if err != nil || th.on < 0 || th.tid != os.Getpid() {
		t.Errorf("readThread of this process = %+v, %v", th, err)
	}
	if _, err := readThread("/proc/self/task/0", 0); err == nil {
		t.Error("readThread of no thread: no error")
	}
	if cpu, err := lastCPU("1 (a) b) R 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 77 40 41"); cpu != 77 || err != nil {
		t.Errorf("lastCPU = %d, %v, want 77", cpu, err)
	}
}

// TestGrowth is what the placement goes by.
func TestGrowth(t *testing.T) {
	ran, waited := growth([]cpuThread{{ran: 10, waited: 5}, {ran: 20, waited: 6}}, []cpuThread{{ran: 12, waited: 9}, {ran: 29, waited: 6}, {ran: 99}})
	if ran != 9 || waited != 4 {
		t.Errorf("growth = %d, %d, want 9, 4", ran, waited)
	}
}
