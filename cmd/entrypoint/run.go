package main

import (
	"os"
	"slices"

	"docker-usermode-linux/internal/supervisor"
)

// runDefaults are what a guest that is there for one command does not need: its output is the command's, and nobody
// comes from outside. The environment wins.
var runDefaults = map[string]string{"LOG_LEVEL": "warn", "PORTS": ""}

// runJob is the job of "run": boot, run a command, end with its exit code.
func runJob(args []string) (supervisor.Job, int, bool) {
	c, err := parseGuestCommand("run", args)
	if err != nil {
		return supervisor.Job{}, guestUsage("run", err), false
	}
	for name, value := range runDefaults {
		if _, set := os.LookupEnv(name); !set {
			_ = os.Setenv(name, value) // neither is malformed
		}
	}
	return supervisor.Job{Command: &supervisor.Command{
		Command: c.Command, TTY: c.tty, Init: c.init, Signals: commandSignals(),
	}}, 0, true
}

// commandSignals are those of the forwarded signals that do not ask for the end.
func commandSignals() []os.Signal {
	return slices.DeleteFunc(slices.Clone(forwardedSignals), func(s os.Signal) bool { return slices.Contains(stopSignals, s) })
}
