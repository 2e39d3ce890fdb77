//go:build linux

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"docker-usermode-linux/internal/agent"
	"docker-usermode-linux/internal/boot"
)

const (
	// killGrace is how long processes may take to end once they are told to.
	killGrace = 2 * time.Second
	// othersPoll is how often they are looked at then.
	othersPoll = 10 * time.Millisecond
	// readyPoll is how often an init that was just started is looked at.
	readyPoll = 10 * time.Millisecond
)

// initSystem is how one kind of init is told apart, and how it is asked for an orderly power-off.
type initSystem struct {
	name string
	// is says whether process 1, the program exe whose name in ps is comm, is of this kind.
	is func(exe, comm string) bool
	// signal goes to process 1, or else command is run.
	signal  syscall.Signal
	command []string
	// early says that it takes the signal from its first moment on, although it does not always show (takesSignal).
	early bool
	// up says whether it has started what it starts at boot, and what it says of itself; nil: it cannot be known.
	up func() (bool, string)
}

// initSystems are tried in this order.
var initSystems = []initSystem{
	{
		name: "systemd", is: func(exe, comm string) bool { return filepath.Base(exe) == "systemd" },
		signal: signalRTMin + 4, // systemd(1): starts poweroff.target
		up:     systemdUp,
	},
	{
		name: "none", is: func(exe, comm string) bool { return ownInit() },
		signal: unix.SIGUSR2,
	},
	{
		name: "busybox", is: func(exe, comm string) bool { return filepath.Base(exe) == "busybox" && comm != "sh" },
		signal: unix.SIGUSR2, // busybox init.c: halt USR1, power off USR2, reboot TERM
		early:  true,         // blocked at once, then waited for with sigtimedwait(2)
		up:     busyboxUp,
	},
	{
		name: "runit", is: func(exe, comm string) bool { return strings.HasPrefix(filepath.Base(exe), "runit") },
		command: []string{"/sbin/init", "0"}, // runit-init(8)
		up:      func() (bool, string) { return processRuns("runsvdir"), "" },
	},
	{
		name: "openrc", is: func(exe, comm string) bool { return filepath.Base(exe) == "openrc-init" },
		command: []string{"openrc-shutdown", "--poweroff", "now"},
		up:      openrcUp,
	},
	{
		name: "sysvinit", is: func(exe, comm string) bool { return comm == "init" && exists("/etc/inittab") },
		command: []string{"/sbin/init", "0"},
		up:      sysvUp,
	},
}

// signalRTMin is SIGRTMIN of the C libraries, which keep the first two for themselves.
const signalRTMin = syscall.Signal(34)

// findInit returns what is known of process 1. The name of an unknown one is that of its program.
func findInit() initSystem {
	exe, _ := os.Readlink("/proc/1/exe")
	exe = strings.TrimSuffix(exe, " (deleted)")
	data, _ := os.ReadFile("/proc/1/comm")
	comm := strings.TrimSpace(string(data))
	for _, system := range initSystems {
		if system.is(exe, comm) {
			return system
		}
	}
	return initSystem{name: comm}
}

// powerOff has the hooks for the stop run, and then asks for the end. That is done once; whoever asks again while hooks
// run gets the end at once.
func (r *requests) powerOff() (how agent.PowerOff, err error) {
	first := false
	r.stopping.Do(func() { first = true })
	system := findInit()
	runHooks := first && r.hooks != nil
	if !runHooks && r.ready(system) {
		return system.powerOff()
	}
	go func() {
		if runHooks {
			noteErr("%w", r.hooks.run(boot.StageStop, r.hookEnv))
		}
		for system = findInit(); !r.ready(system); system = findInit() {
			time.Sleep(readyPoll)
		}
		_, err := system.powerOff()
		noteErr("agent: %w", err)
	}()
	if runHooks {
		return agent.PowerOff{By: "hooks, and then the init"}, nil
	}
	return agent.PowerOff{By: "the init, as soon as it takes signals"}, nil
}

// ready says whether process 1 is the guest's init, and has got as far as to take the signal that it would get: before, the
// kernel drops it, as process 1 has no default actions (signal(7)).
func (r *requests) ready(system initSystem) bool {
	if !r.ownInit && ownInit() {
		return false // it is still to be executed
	}
	if system.signal == 0 || system.early {
		return true
	}
	status, err := os.ReadFile("/proc/1/status")
	return err != nil || takesSignal(status, system.signal)
}

// takesSignal says whether a process catches a signal or blocks it, to read it from a signalfd (proc_pid_status(5)).
func takesSignal(status []byte, signal syscall.Signal) bool {
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		if name != "SigBlk" && name != "SigCgt" {
			continue
		}
		mask, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err == nil && mask&(1<<(signal-1)) != 0 {
			return true
		}
	}
	return false
}

// powerOff asks the guest's init to power off. An init that cannot be asked is not: then all processes are ended, the
// file systems synced and the kernel told.
func (system initSystem) powerOff() (agent.PowerOff, error) {
	go unix.Sync() // in case that what follows is cut off
	switch {
	case system.signal != 0:
		if err := unix.Kill(1, system.signal); err != nil {
			return agent.PowerOff{}, fmt.Errorf("ask %s: %w", system.name, err)
		}
		return agent.PowerOff{By: fmt.Sprintf("signal %d to %s", int(system.signal), system.name)}, nil
	case system.command != nil:
		if path, err := exec.LookPath(system.command[0]); err == nil {
			cmd := exec.Command(path, system.command[1:]...)
			if err := agent.StartUnprotected(cmd.Start); err == nil {
				go func() { _ = cmd.Wait() }() // how the guest ends tells all
				return agent.PowerOff{By: strings.Join(system.command, " ")}, nil
			}
		}
	}
	go endGuest()
	return agent.PowerOff{By: "ending all processes, " + system.name + " cannot be asked"}, nil
}

// endGuest ends all processes but the agent and process 1, and then the kernel.
func endGuest() {
	endProcesses(waitForOthers)
	unix.Sync()
	remountReadOnly()
	err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	note(fmt.Errorf("power off: %w", err))
}

// endProcesses tells all processes but this one and process 1 to end, waits until they have or their grace is over, and
// kills the rest. Those with a terminal are hung up, too: an interactive shell ignores SIGTERM.
func endProcesses(wait func(grace <-chan time.Time)) {
	_ = unix.Kill(-1, unix.SIGTERM) // fails if there are none
	for _, pid := range onTerminals() {
		_ = unix.Kill(pid, unix.SIGHUP) // fails if it has ended
	}
	_ = unix.Kill(-1, unix.SIGCONT)
	wait(time.After(killGrace))
	_ = unix.Kill(-1, unix.SIGKILL)
}

// onTerminals returns the processes that have a controlling terminal, but this one and process 1.
func onTerminals() (pids []int) {
	entries, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range entries {
		data, _ := os.ReadFile(path)
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err == nil && pid != 1 && pid != os.Getpid() && hasTerminal(data) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// hasTerminal reads /proc/PID/stat (proc_pid_stat(5)): behind the name in parentheses, which may hold anything, are the
// state, the parent, the group, the session and the terminal, which is 0 for none.
func hasTerminal(stat []byte) bool {
	const fieldTerminal = 4
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	return len(fields) > fieldTerminal && fields[fieldTerminal] != "0"
}

// waitForOthers returns when none but process 1 and this one are left, or the grace is over.
func waitForOthers(grace <-chan time.Time) {
	for othersRun() {
		select {
		case <-time.After(othersPoll):
		case <-grace:
			return
		}
	}
}

// othersRun says whether there is a process of a program besides process 1 and this one.
func othersRun() bool {
	entries, _ := filepath.Glob("/proc/[0-9]*/exe")
	self := fmt.Sprintf("/proc/%d/exe", os.Getpid())
	for _, exe := range entries {
		if exe == "/proc/1/exe" || exe == self {
			continue
		}
		if _, err := os.Readlink(exe); err == nil { // kernel threads and zombies have none
			return true
		}
	}
	return false
}

// remountReadOnly leaves the root file system in order.
func remountReadOnly() {
	_ = unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY, "") // busy: it is synced
}
