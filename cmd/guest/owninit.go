//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stay is process 1 where the root file system has no init, or is to have none: it reaps, runs shell, if there is one, on
// the console, and powers the guest off when that ends or a signal asks for it: those that busybox's init knows, and that
// of Ctrl-Alt-Del. It returns only with an error.
//
// Preconditions: the root file system is /; signals are those of ownSignals.
func stay(shell string, signals <-chan os.Signal) error {
	debug.SetGCPercent(gcPercent)
	mountForPrograms()
	if _, _, err := unix.Syscall6(unix.SYS_REBOOT, unix.LINUX_REBOOT_MAGIC1, unix.LINUX_REBOOT_MAGIC2,
		unix.LINUX_REBOOT_CMD_CAD_OFF, 0, 0, 0); err != 0 {
		note(fmt.Errorf("Ctrl-Alt-Del stays a reboot: %w", err))
	}
	console := 0
	if shell != "" {
		var err error
		if console, err = startShell(shell); err != nil {
			return &exitError{codeExec, explainExec(shell, err)}
		}
	}
	for {
		if status, ok, _ := reap(console); ok {
			noteErr("set exit code: %w", setExitCode(exitCode(status)))
			break
		}
		if sig := <-signals; sig != unix.SIGCHLD {
			break
		}
	}
	endProcesses(func(grace <-chan time.Time) { reapAll(signals, grace) })
	unix.Sync()
	remountReadOnly()
	return fmt.Errorf("power off: %w", unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
}

// ownSignals subscribes to what stay acts upon. It comes before the agent, who sends one of them.
func ownSignals() <-chan os.Signal {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGCHLD, unix.SIGTERM, unix.SIGINT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGPWR)
	return signals
}

// reapAll is waitForOthers for process 1, which hears of each end and so need not look.
func reapAll(signals <-chan os.Signal, grace <-chan time.Time) {
	for {
		if _, _, alone := reap(0); alone {
			return
		}
		select {
		case <-signals:
		case <-grace:
			return
		}
	}
}

// reap takes all processes that have ended, and reports whether the one with the number console was among them, and
// whether none is left: of process 1 all are children in the end.
func reap(console int) (status unix.WaitStatus, ok, alone bool) {
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil || pid == 0:
			return status, ok, errors.Is(err, unix.ECHILD)
		case pid == console && console != 0:
			status, ok = ws, true
		}
	}
}

// exitCode is how a shell shows it.
func exitCode(ws unix.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

// startShell starts a login shell on the console.
func startShell(shell string) (pid int, err error) {
	tty := uintptr(0)
	if terminal != nil {
		tty = terminal.Fd()
	}
	return syscall.ForkExec(shell, []string{"-" + path.Base(shell)}, &syscall.ProcAttr{
		Dir:   "/",
		Env:   append(initEnv(os.Environ()), "USER=root", "LOGNAME=root", "SHELL="+shell),
		Files: []uintptr{tty, tty, tty},
		Sys:   &syscall.SysProcAttr{Setsid: true, Setctty: terminal != nil},
	})
}

// mountsForPrograms is what an init mounts besides the kernel's own file systems, as far as programs expect it of a
// container.
var mountsForPrograms = []kernelMount{
	{"/dev/shm", "tmpfs", "mode=1777", unix.MS_NOSUID | unix.MS_NODEV},
	{"/dev/mqueue", "mqueue", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	{"/run", "tmpfs", "mode=0755", unix.MS_NOSUID | unix.MS_NODEV},
	{"/sys/fs/cgroup", "cgroup2", "nsdelegate", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
}

// mountForPrograms mounts them, as far as there are directories for it and nothing is mounted there.
func mountForPrograms() {
	for _, m := range mountsForPrograms {
		if strings.HasPrefix(m.path, "/dev/") {
			_ = os.Mkdir(m.path, 0o755)
		}
		if !exists(m.path) || isMountPoint(m.path) {
			continue
		}
		if err := unix.Mount(m.fsType, m.path, m.fsType, m.flags, m.data); err != nil {
			note(fmt.Errorf("mount %s: %w", m.path, err))
		}
	}
}

// isMountPoint compares the device of a directory with that of the one above.
func isMountPoint(path string) bool {
	var here, above unix.Stat_t
	return unix.Stat(path, &here) == nil && unix.Stat(path+"/..", &above) == nil && here.Dev != above.Dev
}

// ownInit says whether process 1 is this program: both run from the same file.
func ownInit() bool {
	var ours, first unix.Stat_t
	return unix.Stat("/proc/self/exe", &ours) == nil && unix.Stat("/proc/1/exe", &first) == nil &&
		ours.Dev == first.Dev && ours.Ino == first.Ino
}
