package e2e

import (
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"testing"
)

// TestCPUs has the guest have as many CPUs as it is given, or with auto as its container may use.
func TestCPUs(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		options []string
		want    string
	}{
		{[]string{"-e", "CPUS=3"}, "3"},
		{nil, strconv.Itoa(min(runtime.NumCPU(), 8))},
		{[]string{"-e", "CPUS=auto", "--cpuset-cpus", "0"}, "1"},
		{[]string{"-e", "CPUS=auto", "--cpus", "0.5"}, "1"},
		{[]string{"-e", "CPUS=1", "-e", "CPU_PLACEMENT=off"}, "1"},
		{[]string{"-e", "USERSPACE=ptrace"}, "1"},
	} {
		stdout, stderr, code := run(t, "", append(test.options, "--", "run", "nproc")...)
		if strings.TrimSpace(stdout) != test.want || code != 0 {
			t.Errorf("%v: nproc in the guest = %q, exit code %d, want %s\n%s", test.options, stdout, code, test.want, stderr)
		}
	}
	_, stderr, code := run(t, "", "-e", "CPUS=2", "-e", "USERSPACE=ptrace", "--", "run", "true")
	if code != 2 || !strings.Contains(stderr, `CPUS="2": with USERSPACE=ptrace the guest has one CPU`) {
		t.Errorf("CPUS=2 with ptrace: exit code %d\n%s", code, stderr)
	}
}

// TestUserspace has the log say how the guest's programs are run, and status too.
func TestUserspace(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"seccomp", "ptrace"} {
		c := start(t, "-e", "USERSPACE="+mode, "-e", "PORTS=")
		c.mustExec("true")
		if log := c.logs(); !strings.Contains(log, "userspace="+mode) {
			t.Errorf("USERSPACE=%s: not in the log\n%s", mode, log)
		}
		if s, err := c.status(); err != nil || s.Mode != mode {
			t.Errorf("USERSPACE=%s: status says %q, %v", mode, s.Mode, err)
		}
	}
}

// TestMemoryReturns has a guest use memory and free it: the host gets it back.
func TestMemoryReturns(t *testing.T) {
	t.Parallel()
	const used = 600
	c := start(t, "-e", "MEM=1G", "-e", "PORTS=")
	resident := func() uint64 {
		s, err := c.status()
		if err != nil {
			t.Fatal(err)
		}
		return s.HostResident >> 20
	}
	c.mustExec("sh", "-c", "mkdir -p /mnt && mount -t tmpfs -o size=90% none /mnt && head -c "+strconv.Itoa(used)+"M /dev/zero > /mnt/file")
	before := resident()
	if before < used {
		t.Fatalf("%d MiB are resident, want more than the %d in use", before, used)
	}
	c.mustExec("rm", "/mnt/file")
	waitFor(t, "the memory", func() error {
		if now := resident(); now > before-used*9/10 {
			return fmt.Errorf("%d MiB resident, %d before", now, before)
		}
		return nil
	})
	if s, err := c.status(); err != nil || s.HostReturned>>20 < used*9/10 {
		t.Errorf("status says that %d MiB were given back, %v", s.HostReturned>>20, err)
	}
}
