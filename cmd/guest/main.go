//go:build linux

// Command guest is /init of the initramfs: the first program that the guest kernel runs, and the one that makes
// any root file system usable as a guest. It configures the NIC, mounts the root file system, applies the settings
// of this boot, starts the agent, and becomes the guest's own init.
//
// # Theory of operation
//
//  1. /proc, /sys, /dev; the settings from /settings.json, which is deleted; the kernel's command line; the modules that a
//     kernel other than ours needs for what follows (modules.go).
//  2. lo and the NIC. This comes before the root file system so that the host side sees the guest's gratuitous ARP
//     as early as possible.
//  3. The root file system on /newroot: hostfs, or what root=, rootfstype=, rootflags=, ro and rw say (root.go).
//     Without an init in it nothing is written: it may be a directory that was mounted there by mistake. A read-only one
//     without /proc, /sys or /dev gets an overlay that has them.
//  4. The agent, a process of this program that stays and serves the supervisor (agent.go), and starts another one for
//     SSH where the guest has no server (ssh.go). Password, keys and SSH server, edited in place (package rootfs).
//  5. /etc/resolv.conf, /etc/hostname and /etc/hosts are files on a small tmpfs, bind-mounted over the root file
//     system's own as Docker does it, so that those stay as they are (etc.go).
//  6. The initramfs is emptied, and /newroot becomes / (switchroot.go).
//  7. The user's hooks run, if there are any (hooks.go). Until here they were kept in a file system without a place.
//  8. Init is executed with the arguments and the environment that the kernel gave us (init.go). Where there is no init,
//     or is to be none, this program stays (owninit.go).
//
// Goals: no user without an explanation, and no time: each step is a handful of system calls, without a process, a
// poll or a sleep unless a root device has still to appear, or hooks are there to run.
//
// What goes wrong before init runs is one line on the console, "guest: mount root file system: …". What the guest can
// live without (a network, a password that could not be written) is such a line and no more. Anything else powers
// the guest off with an exit code of the kernel process: 125 when this stage failed, 126 when init or a hook could not
// be executed and 127 when there is no init, the numbers of docker-run(1); or that of the hook that failed.
package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"

	"docker-usermode-linux/internal/agent"
	"docker-usermode-linux/internal/boot"
	"docker-usermode-linux/internal/rootfs"
)

// newRoot is where the root file system is mounted until it becomes /.
const newRoot = "/newroot"

// The exit codes of the kernel process.
const (
	codeStage    = 125
	codeExec     = 126
	codeNotFound = 127
)

// exitError is an error with the exit code that it ends the kernel with.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

func main() {
	// What comes from the channel goes on at once, without a hand-over to another CPU: with two, copies through the agent
	// were slower by a fifth (2026-11-26).
	runtime.GOMAXPROCS(1)
	if os.Getpid() != 1 && len(os.Args) > 1 {
		switch os.Args[1] {
		case agentRole:
			os.Exit(agentMain())
		case sshRole:
			os.Exit(sshMain(os.Args[2:]))
		case agent.SFTPServerArg:
			if err := agent.ServeSFTP(); err != nil {
				os.Exit(1) // the client sees that; stderr is its terminal
			}
			os.Exit(0)
		}
	}
	// Less than 4 MB are allocated until init takes over: a collection would only cost time.
	debug.SetGCPercent(-1)
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "guest: not process 1: this program is the /init of an initramfs")
		os.Exit(codeStage)
	}
	powerOff(run())
}

// run does not return unless something failed.
func run() (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("internal error: %v\n%s", r, debug.Stack())
		}
	}()
	if err := mountKernelFilesystems(); err != nil {
		return err
	}
	ensureConsole()
	noteErr("tell the supervisor: %w", os.WriteFile(notifyPath, []byte("guest stage"), 0))

	settings, err := takeSettings()
	if err != nil {
		return err
	}
	data, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return fmt.Errorf("read kernel command line: %w", err)
	}
	cmdline := parseCmdline(string(data))

	for _, err := range loadModules(settings.Modules, string(data)) {
		note(err)
	}
	noteErr("configure network: %w", setUpNetwork(settings.Network))

	if err := mountRoot(cmdline, settings.Ephemeral); err != nil {
		return fmt.Errorf("mount root file system: %w", err)
	}
	root, err := os.OpenRoot(newRoot)
	if err != nil {
		return fmt.Errorf("open root file system: %w", err)
	}
	inits, shell, err := chooseInit(root, cmdline.init, settings)
	if err != nil {
		return err
	}
	covered, err := ensureMountPoints(newRoot, coverDir)
	noteErr("make directories in the root file system: %w", err) // a kernel without overlays, say
	if covered {
		_ = root.Close()
		if root, err = os.OpenRoot(newRoot); err != nil {
			return fmt.Errorf("open root file system: %w", err)
		}
	}
	hooks, err := takeHooks()
	if err != nil {
		return fmt.Errorf("keep hooks: %w", err)
	}
	task, err := startAgent(hooks)
	if err != nil && settings.Command {
		return fmt.Errorf("start the agent: %w", err)
	}
	noteErr("start the agent: %w", err)
	for _, err := range rootfs.Apply(root, settings) {
		note(err)
	}
	for _, err := range placeEtcFiles(root, settings) {
		note(err)
	}
	if err := root.Close(); err != nil {
		return fmt.Errorf("close root file system: %w", err)
	}
	if err := switchRoot(); err != nil {
		return fmt.Errorf("switch root: %w", err)
	}
	if err := hooks.run(boot.StageStart, hookEnv(os.Environ())); err != nil {
		return err
	}
	own := len(inits) == 0
	var signals <-chan os.Signal
	if own {
		signals = ownSignals()
	}
	noteErr("start the agent: %w", giveTask(task, agentTask{
		SSH: settings.SSH, KeysOnly: settings.KeysOnly(), Command: settings.Command, OwnInit: own,
	}))
	if own {
		return stay(shell, signals)
	}
	return execInit(inits)
}

// takeSettings reads the settings and deletes the file, which holds a password in clear text.
func takeSettings() (boot.Settings, error) {
	data, err := os.ReadFile(boot.SettingsPath)
	if err != nil {
		return boot.Settings{}, fmt.Errorf("read settings: %w", err)
	}
	if err := os.Remove(boot.SettingsPath); err != nil {
		return boot.Settings{}, fmt.Errorf("delete settings: %w", err)
	}
	return boot.ParseSettings(data)
}

// note tells the user of something that the boot goes on without.
func note(err error) {
	fmt.Fprintf(os.Stderr, "guest: %s\n", strings.ReplaceAll(err.Error(), "\n", "\nguest: "))
}

// noteErr is note for an error that may be nil; format wraps it.
func noteErr(format string, err error) {
	if err != nil {
		note(fmt.Errorf(format, err))
	}
}

// powerOff prints why the guest cannot go on, and ends the kernel at once, with an exit code that says so.
func powerOff(err error) {
	note(err)
	code := codeStage
	if exit, ok := errors.AsType[*exitError](err); ok {
		code = exit.code
	}
	if err := setExitCode(code); err != nil {
		note(fmt.Errorf("set exit code: %w", err))
	}
	drainConsole()
	unix.Sync()
	err = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	note(fmt.Errorf("power off: %w", err))
	os.Exit(code) // of process 1 it ends in a kernel panic, which ends the kernel too
}
