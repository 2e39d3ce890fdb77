package agent

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxSignal is the last of the kernel's real-time signals (signal(7)).
const maxSignal = 64

// standardSignals are those that RFC 4254 section 6.10 names.
var standardSignals = map[string]bool{
	"ABRT": true, "ALRM": true, "FPE": true, "HUP": true, "ILL": true, "INT": true, "KILL": true, "PIPE": true,
	"QUIT": true, "SEGV": true, "TERM": true, "USR1": true, "USR2": true,
}

// signalName returns the name of a signal in SSH: "TERM", and "WINCH@docker-usermode-linux" where the RFC has none.
// Signals without a name, which are the real-time ones, go by the kernel's number: "40@docker-usermode-linux".
func signalName(sig unix.Signal) string {
	name := strings.TrimPrefix(unix.SignalName(sig), "SIG")
	if standardSignals[name] {
		return name
	}
	if name == "" {
		name = strconv.Itoa(int(sig))
	}
	return name + requestSuffix
}

// signalNumber is the inverse of signalName. It also takes a leading "SIG", lower case, and any suffix.
func signalNumber(name string) (sig unix.Signal, ok bool) {
	name, _, _ = strings.Cut(name, "@")
	name = strings.TrimPrefix(strings.ToUpper(name), "SIG")
	if n, err := strconv.Atoi(name); err == nil {
		return unix.Signal(n), n > 0 && n <= maxSignal
	}
	sig = unix.SignalNum("SIG" + name)
	return sig, sig != 0
}
