package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// MaxCPUs is the highest number of virtual CPUs: NR_CPUS of the guest's kernel, whose limit is UML's.
	MaxCPUs = 64
	// maxAutoCPUs is the highest that auto gives. Each one is a thread of the host and 0.3 MB of its RAM.
	maxAutoCPUs = 8
)

// Userspace is how the kernel runs the guest's programs.
type Userspace uint8

const (
	// UserspaceAuto is UserspaceSeccomp, or where the host forbids that, UserspacePtrace.
	UserspaceAuto Userspace = iota
	// UserspaceSeccomp is the fast way, with several CPUs. A program in the guest that means harm can reach the
	// kernel's memory.
	UserspaceSeccomp
	// UserspacePtrace keeps programs out of the kernel's memory. It is slower, and has one CPU.
	UserspacePtrace
)

var userspaces = []string{"auto", "seccomp", "ptrace"}

// String is the mode as USERSPACE spells it.
func (u Userspace) String() string { return userspaces[u] }

func parseUserspace(s string) (Userspace, error) {
	for i, name := range userspaces {
		if strings.EqualFold(s, name) {
			return Userspace(i), nil
		}
	}
	return UserspaceAuto, errors.New("not a way to run programs; write auto, seccomp or ptrace")
}

// parseCPUs reads CPUS: a number, or auto for as many as the container may use, as far as the mode has them. allowed says
// how many that are.
func parseCPUs(s string, userspace Userspace, allowed func() int) (int, error) {
	if strings.EqualFold(s, "auto") {
		if userspace == UserspacePtrace {
			return 1, nil
		}
		return min(allowed(), maxAutoCPUs), nil
	}
	n, err := strconv.Atoi(strings.TrimSpace(s))
	switch {
	case err != nil || n < 1 || n > MaxCPUs:
		return 1, fmt.Errorf("not a number of CPUs; write 1 to %d, or auto", MaxCPUs)
	case n > 1 && userspace == UserspacePtrace:
		return 1, errors.New("with USERSPACE=ptrace the guest has one CPU; write CPUS=1, or USERSPACE=seccomp")
	}
	return n, nil
}

// containerCPUs is allowedCPUs of the container that we are in.
func containerCPUs() int { return allowedCPUs(os.DirFS("/sys/fs/cgroup")) }

// allowedCPUs is how many CPUs' time a container may use with the cgroup at root: those of our cpuset, and no more than
// its quota, rounded up, pays for.
func allowedCPUs(root fs.FS) int {
	allowed := 1
	var set unix.CPUSet
	if unix.SchedGetaffinity(0, &set) == nil {
		allowed = max(1, set.Count())
	}
	if quota, ok := cpuQuota(root); ok {
		allowed = min(allowed, quota)
	}
	return allowed
}

// cpuQuota is the CPU quota of the cgroup at root in CPUs, rounded up; ok is false when there is none.
func cpuQuota(root fs.FS) (cpus int, ok bool) {
	quota, period, ok := quotaV2(root)
	if !ok {
		quota, ok = readLimit(root, "cpu/cpu.cfs_quota_us") // -1 is no quota
		if ok {
			period, ok = readLimit(root, "cpu/cpu.cfs_period_us")
		}
	}
	if !ok || quota == 0 || period == 0 {
		return 0, false
	}
	return int((quota-1)/period) + 1, true
}

// quotaV2 reads "QUOTA PERIOD" in microseconds, of which QUOTA may be "max".
func quotaV2(root fs.FS) (quota, period uint64, ok bool) {
	data, err := fs.ReadFile(root, "cpu.max")
	if err != nil {
		return 0, 0, false
	}
	_, err = fmt.Sscan(string(data), &quota, &period)
	return quota, period, err == nil
}

// parseSwitch reads a setting that is auto or off.
func parseSwitch(s string) (on bool, err error) {
	switch strings.ToLower(s) {
	case "auto":
		return true, nil
	case "off":
		return false, nil
	}
	return true, errors.New("write auto or off")
}
