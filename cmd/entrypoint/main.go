package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"docker-usermode-linux/internal/command"
	"docker-usermode-linux/internal/config"
	"docker-usermode-linux/internal/supervisor"
	"docker-usermode-linux/internal/uml"
)

// program is our name in messages.
const program = "entrypoint"

// superviseRole is the first argument with which PID 1 starts this binary again.
const superviseRole = "supervise"

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
		return command.Report(program, supervise(args[1:]))
	case !ok && uml.IsQuery(args):
		return query(args)
	case os.Getpid() == 1:
		return command.Init(program, append([]string{superviseRole}, args...))
	}
	return command.Report(program, supervise(args))
}

// query lets the kernel speak for itself.
func query(args []string) int {
	cfg, err := config.Load()
	if cfg.Kernel == "" {
		return command.Usage(program, err)
	}
	code, err := uml.Query(cfg.Kernel, args, os.Stdout, os.Stderr)
	if err != nil {
		fmt.Fprintln(os.Stderr, "entrypoint:", err)
		return command.ExitFailed
	}
	return code
}

func supervise(args []string) int {
	job := supervisor.Job{Args: args}
	if len(args) > 0 && args[0] == runRole {
		c, err := parseGuestCommand(runRole, args[1:])
		if err == nil {
			job, err = c.Job()
		}
		if err != nil {
			return guestUsage(runRole, err)
		}
		command.SetDefaults(command.RunDefaults)
	}
	signals := command.Signals(program, job)
	cfg, err := config.Load()
	if err := errors.Join(err, cfg.CheckFiles()); err != nil {
		return command.Usage(program, err)
	}
	return supervisor.Run(cfg, job, signals, command.Streams())
}
