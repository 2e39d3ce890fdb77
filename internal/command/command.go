// Package command is what the commands of both programs on the host's side, entrypoint and uml, are made of: the roles,
// the signals that mean something, a command in the guest with its options, and the tables of those that ask a guest.
// Each program has its own way to read arguments, and its own name in messages.
package command

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"docker-usermode-linux/internal/pid1"
	"docker-usermode-linux/internal/supervisor"
)

// Exit codes of our own; the doc of cmd/entrypoint has the whole list.
const (
	ExitFailed = 1
	ExitUsage  = 2
	// ExitNotRun says that a command could not be run in the guest, as docker-run(1) has it.
	ExitNotRun = 125
)

// stopSignals ask for an orderly end. The last two are what images with OpenRC, sysvinit (SIGPWR) and systemd
// (SIGRTMIN+3) as their init name as STOPSIGNAL.
var stopSignals = []os.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGPWR, unix.Signal(37)}

// forwardedSignals go to a command in the guest. Those of the terminal are not among them where it has one, since they
// are bytes then.
var forwardedSignals = []os.Signal{
	unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM, unix.SIGCONT,
}

// commandSignals are those of the forwarded signals that do not ask for the end.
func commandSignals() []os.Signal {
	return slices.DeleteFunc(slices.Clone(forwardedSignals), func(s os.Signal) bool { return slices.Contains(stopSignals, s) })
}

// RunDefaults are what a guest that is there for one command does not need: its output is the command's, and nobody
// comes from outside. What the user says wins.
var RunDefaults = map[string]string{"LOG_LEVEL": "warn", "PORTS": ""}

// SetDefaults sets the variables that are unset.
func SetDefaults(defaults map[string]string) {
	for name, value := range defaults {
		if _, set := os.LookupEnv(name); !set {
			_ = os.Setenv(name, value) // none is malformed
		}
	}
}

// Init is the role of process 1: everything else happens in its only child, which is this program with args. program is
// the name for messages.
func Init(program string, args []string) int {
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, program+":", err)
		return pid1.CrashCode
	}
	code, err := pid1.Run(append([]string{self}, args...), os.Environ())
	if err != nil {
		fmt.Fprintln(os.Stderr, program+":", err)
	}
	return code
}

// Report tells the role Init the exit code, and returns it.
func Report(program string, code int) int {
	if err := pid1.Report(code); err != nil {
		fmt.Fprintln(os.Stderr, program+":", err)
	}
	return code
}

// Signals subscribes to the signals that mean something to the guest of job, and has the role Init pass on those that
// it has kept.
func Signals(program string, job supervisor.Job) <-chan os.Signal {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, stopSignals...)
	if job.Command != nil {
		signal.Notify(signals, job.Command.Signals...)
	}
	if err := pid1.Ready(); err != nil {
		fmt.Fprintln(os.Stderr, program+":", err)
	}
	return signals
}

// Streams are those of this process.
func Streams() supervisor.Streams {
	return supervisor.Streams{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
}

// Usage prints a line for each mistake in the settings, and returns the exit code.
func Usage(program string, err error) int {
	for line := range strings.SplitSeq(err.Error(), "\n") {
		fmt.Fprintln(os.Stderr, program+":", line)
	}
	return ExitUsage
}

// Show prints an answer of the guest's, for programs or, by write, for people.
func Show(asJSON bool, answer any, write func(io.Writer) error) error {
	if !asJSON {
		return write(os.Stdout)
	}
	out := json.NewEncoder(os.Stdout)
	out.SetIndent("", "  ")
	return out.Encode(answer)
}

// Version is a line about this program.
func Version() string {
	version := "(unknown)"
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		version = info.Main.Version
	}
	return fmt.Sprintf("docker-usermode-linux %s %s %s/%s", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
