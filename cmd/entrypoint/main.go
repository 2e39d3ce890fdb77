package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
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

func main() {
	os.Exit(dispatch(os.Args[1:]))
}

// dispatch chooses the role and returns the exit code.
func dispatch(args []string) int {
	switch {
	case uml.IsQuery(args):
		return query(args)
	case os.Getpid() == 1:
		return initRole(args)
	case len(args) > 0 && args[0] == superviseRole:
		args = args[1:]
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
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, stopSignals...)
	cfg, err := config.Load()
	if err := errors.Join(err, cfg.CheckFiles()); err != nil {
		return usage(err)
	}
	return supervisor.Run(cfg, args, signals, supervisor.Streams{
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
