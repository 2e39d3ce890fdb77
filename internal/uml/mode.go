package uml

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// The ways to run the guest's processes. ModeAuto is ModeSeccomp, or ModePtrace where the host forbids that.
const (
	ModeAuto    = "auto"
	ModeSeccomp = "seccomp"
	ModePtrace  = "ptrace"
)

// seccompArg is the value of the kernel's argument seccomp= that chooses a mode.
var seccompArg = map[string]string{ModeAuto: "auto", ModeSeccomp: "on", ModePtrace: "off"}

// stubName is what the kernel calls its stubs (arch/um/kernel/skas/stub_exe.c).
const stubName = "uml-userspace"

// UserspaceMode says how the kernel with that pid runs the guest's processes: in mode ptrace it traces its stubs. It is
// empty while there is no stub, and for a process that is gone.
func UserspaceMode(pid int) string {
	statuses, _ := filepath.Glob("/proc/[0-9]*/status")
	for _, path := range statuses {
		fields := statusFields(path)
		if fields["PPid"] != strconv.Itoa(pid) || fields["Name"] != stubName {
			continue // the kernel has helpers, too
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
