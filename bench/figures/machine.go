package figures

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// idleLimit is how busy a machine may be that figures are worth anything on.
const idleLimit = 0.05

// Machine says in comments of the raw output what this one is, and how busy it was in the last two seconds. A busy one
// is an error, unless force says that only the benchmark itself is tried.
func Machine(force bool) (string, error) {
	busy, err := busyness(2 * time.Second)
	if err != nil {
		return "", err
	}
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "", err
	}
	text := fmt.Sprintf("# Linux %s, %s, CPUs %s, %.1f %% busy before\n",
		strings.TrimSpace(string(release)), cpuModel(), CPUs(), busy*100)
	if busy <= idleLimit {
		return text, nil
	}
	if !force {
		return "", fmt.Errorf("this machine is %.0f %% busy with other things, so the figures would mean nothing; "+
			"wait, or set FORCE=1 to try the benchmark itself", busy*100)
	}
	return text + "# THE MACHINE WAS BUSY: these figures mean nothing\n", nil
}

// CPUs is the list of those that may be used.
func CPUs() string {
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		if list, ok := strings.CutPrefix(line, "Cpus_allowed_list:"); ok {
			return strings.TrimSpace(list)
		}
	}
	return "0"
}

func cpuModel() string {
	data, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(data)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown CPU"
}

// DebianVersion is names and versions of installed packages: the arguments of dpkg-query -W.
func DebianVersion(packages ...string) string {
	out, err := exec.Command("dpkg-query", append([]string{"-W"}, packages...)...).Output()
	if err != nil {
		return fmt.Sprintf("%s: %v", strings.Join(packages, " "), err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	for i, line := range lines {
		lines[i] = strings.Join(strings.Fields(line), " ")
	}
	return strings.Join(lines, ", ")
}

// ProgramVersion is the first line of what a program says when it is asked with --version.
func ProgramVersion(path string) string {
	out, err := exec.Command(path, "--version").CombinedOutput()
	if err != nil {
		return err.Error()
	}
	first, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return first
}

// busyness is how much of the machine's processor time was used in the given time, from 0 to 1, by anybody: other
// virtual machines on the same hardware too.
func busyness(d time.Duration) (float64, error) {
	before, err := machineTime()
	if err != nil {
		return 0, err
	}
	time.Sleep(d)
	after, err := machineTime()
	if err != nil {
		return 0, err
	}
	return 1 - float64(after.idle-before.idle)/float64(max(1, after.all-before.all)), nil
}

// machine holds times of all processors together, in ticks.
type machine struct{ all, idle int64 }

func machineTime() (machine, error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return machine{}, err
	}
	return parseMachine(string(stat))
}

// parseMachine reads the first line of /proc/stat, see proc_stat(5).
func parseMachine(stat string) (machine, error) {
	first, _, _ := strings.Cut(stat, "\n")
	fields := strings.Fields(first)
	const idle, iowait, guest = 4, 5, 9
	if len(fields) < guest || fields[0] != "cpu" {
		return machine{}, fmt.Errorf("/proc/stat begins with %q", first)
	}
	var m machine
	for i, field := range fields[1:guest] { // a guest's time is in user's as well
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return machine{}, err
		}
		m.all += n
		if i+1 == idle || i+1 == iowait {
			m.idle += n
		}
	}
	return m, nil
}
