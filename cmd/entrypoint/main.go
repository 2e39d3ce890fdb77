package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"docker-usermode-linux/internal/config"
	"docker-usermode-linux/internal/pid1"
	"docker-usermode-linux/internal/supervisor"
	"docker-usermode-linux/internal/uml"
)

// Exit codes of our own; doc.go has the whole list.
const (
	exitFailed = 1
	exitUsage  = 2
)

// superviseRole is the first argument with which PID 1 starts this binary again.
const superviseRole = "supervise"

// stopSignals ask for an orderly end. The last two are what images with OpenRC, sysvinit (SIGPWR) and systemd
// (SIGRTMIN+3) as their init name as STOPSIGNAL.
var stopSignals = []os.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGPWR, unix.Signal(37)}

// runRole is the command that boots a guest for one command in it, and execName the name of this binary by which it is
// the command exec.
const (
	runRole  = "run"
	execName = "guest"
)

func main() {
	if filepath.Base(os.Args[0]) == execName {
		os.Exit(execCommand(os.Args[1:]))
	}
	os.Exit(dispatch(os.Args[1:]))
}

// dispatch chooses the role and returns the exit code.
func dispatch(args []string) int {
	c, ok := findCommand(args)
	switch {
	case ok && c.run != nil:
		return c.run(args[1:])
	case os.Getpid() != 1 && len(args) > 0 && args[0] == superviseRole:
		return superviseRoleMain(args[1:])
	case !ok && uml.IsQuery(args):
		return query(args)
	case os.Getpid() == 1:
		return initRole(args)
	}
	return superviseRoleMain(args)
}

// query lets the kernel speak for itself.
func query(args []string) int {
	cfg, err := config.Load()
	if cfg.Kernel == "" {
		return usage(err)
	}
	code, err := uml.Query(cfg.Kernel, args, os.Stdout, os.Stderr)
	if err != nil {
		fmt.Fprintln(os.Stderr, "entrypoint:", err)
		return exitFailed
	}
	return code
}

// initRole is PID 1: everything else happens in its only child.
func initRole(args []string) int {
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, "entrypoint:", err)
		return pid1.CrashCode
	}
	code, err := pid1.Run(append([]string{self, superviseRole}, args...), os.Environ())
	if err != nil {
		fmt.Fprintln(os.Stderr, "entrypoint:", err)
	}
	return code
}

func superviseRoleMain(args []string) int {
	code := supervise(args)
	if err := pid1.Report(code); err != nil {
		fmt.Fprintln(os.Stderr, "entrypoint:", err)
	}
	return code
}

func supervise(args []string) int {
	job := supervisor.Job{Args: args}
	if len(args) > 0 && args[0] == runRole {
		var code int
		var ok bool
		if job, code, ok = runJob(args[1:]); !ok {
			return code
		}
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, stopSignals...)
	if job.Command != nil {
		signal.Notify(signals, job.Command.Signals...)
	}
	if err := pid1.Ready(); err != nil {
		fmt.Fprintln(os.Stderr, "entrypoint:", err)
	}
	cfg, err := config.Load()
	if err := errors.Join(err, cfg.CheckFiles()); err != nil {
		return usage(err)
	}
	return supervisor.Run(cfg, job, signals, supervisor.Streams{
		Stdin:  os.Stdin,
		Stdout: os.Stdout,
		Stderr: os.Stderr,
	})
}

// usage prints a line for each mistake in the environment.
func usage(err error) int {
	for line := range strings.SplitSeq(err.Error(), "\n") {
		fmt.Fprintln(os.Stderr, "entrypoint:", line)
	}
	return exitUsage
}
