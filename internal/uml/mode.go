package uml

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// The ways to run the guest's processes, as the kernel's argument seccomp= chooses them.
const (
	ModeSeccomp = "seccomp"
	ModePtrace  = "ptrace"
)

// UserspaceMode says how the kernel with that pid runs the guest's processes: in mode ptrace it traces its stubs. It is
// empty while there is no stub, and for a process that is gone.
func UserspaceMode(pid int) string {
	statuses, _ := filepath.Glob("/proc/[0-9]*/status")
	for _, path := range statuses {
		fields := statusFields(path)
		if fields["PPid"] != strconv.Itoa(pid) {
			continue
		}
		if fields["TracerPid"] == fields["PPid"] {
			return ModePtrace
		}
		return ModeSeccomp
	}
	return ""
}

// statusFields reads proc_pid_status(5).
func statusFields(path string) map[string]string {
	data, _ := os.ReadFile(path) // a process may be gone
	fields := map[string]string{}
	for line := range strings.Lines(string(data)) {
		if name, value, ok := strings.Cut(line, ":"); ok {
			fields[name] = strings.TrimSpace(value)
		}
	}
	return fields
}
