package uml

import (
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestPlacement wants a kernel with one virtual CPU on one host CPU most of the time, and one with two left alone.
func TestPlacement(t *testing.T) {
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
	pinned := func(args ...string) bool {
		o, _ := fakeKernel(t, "exec sleep 1000")
		o.Args = args
		k, err := Start(o)
		if err != nil {
			t.Fatal(err)
		}
		defer wait(t, k)
		defer func() {
			if err := k.Kill(); err != nil {
				t.Error(err)
			}
		}()
		for deadline := time.Now().Add(2 * time.Second); time.Now().Before(deadline); time.Sleep(placementWindow / 2) {
			var now unix.CPUSet
			if err := unix.SchedGetaffinity(k.PID(), &now); err != nil {
				t.Fatal(err)
			}
			if now.Count() == 1 {
				return true
			}
		}
		return false
	}
	if !pinned() {
		t.Errorf("one virtual CPU: not on one of the host's %d", all.Count())
	}
	if got, want := pinned("ncpus=2"), all.Count() == 1; got != want {
		t.Errorf("ncpus=2: pinned is %v, want %v", got, want)
	}
}

func TestCurrentCPU(t *testing.T) {
	cpu, err := currentCPU(os.Getpid())
	if err != nil || cpu < 0 {
		t.Errorf("currentCPU of this process = %d, %v", cpu, err)
	}
	if _, err := currentCPU(1 << 30); err == nil {
		t.Error("currentCPU of no process: no error")
	}
}

func TestHasOneCPU(t *testing.T) {
	for args, want := range map[string]bool{
		"": true, "ncpus=1": true, "ncpus=2": false, "ncpus=2 ncpus=1": true, "ncpus=": false,
	} {
		if got := hasOneCPU(strings.Fields(args)); got != want {
			t.Errorf("hasOneCPU(%q) = %v, want %v", args, got, want)
		}
	}
}
