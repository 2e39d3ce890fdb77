//go:build linux

package main

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	consolePath  = "/dev/console"
	exitCodePath = "/proc/exitcode" // of UML only
	// notifyPath takes what the management console passes on to the supervisor (arch/um/drivers/mconsole_kern.c).
	notifyPath = "/proc/mconsole"
)

var (
	// exitCodeFile is opened early: /proc may have moved by the time it is needed.
	exitCodeFile *os.File
	// terminal is the console's own device, which unlike /dev/console can be a controlling terminal; nil if unknown.
	terminal *os.File
)

// ensureConsole makes the console our standard input and output, also where the initramfs has no node for it, and
// opens what is needed later on.
//
// Preconditions: /proc, /sys and /dev are mounted.
func ensureConsole() {
	var st unix.Stat_t
	if err := unix.Fstat(2, &st); err != nil || st.Rdev != unix.Mkdev(5, 1) {
		if fd, err := unix.Open(consolePath, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0); err == nil {
			makeStdio(fd)
			unix.Close(fd)
		}
	}
	openExitCode()
	if data, err := os.ReadFile("/sys/class/tty/console/active"); err == nil {
		if name := lastWord(string(data)); name != "" {
			fd, err := unix.Open("/dev/"+name, unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
			if err == nil && unix.SetNonblock(fd, false) == nil {
				terminal = os.NewFile(uintptr(fd), "/dev/"+name)
			}
		}
	}
}

// lastWord returns the last of several consoles, which is the one behind /dev/console.
func lastWord(s string) string {
	words := strings.Fields(s)
	if len(words) == 0 {
		return ""
	}
	return words[len(words)-1]
}

// takeTerminal makes the console the controlling terminal, so that a shell has job control and Ctrl-C reaches what
// it runs.
func takeTerminal() error {
	if terminal == nil {
		return nil
	}
	fd := int(terminal.Fd())
	if _, err := unix.Setsid(); err != nil && err != unix.EPERM { // EPERM: leads a session already
		return fmt.Errorf("start session: %w", err)
	}
	if err := unix.IoctlSetInt(fd, unix.TIOCSCTTY, 0); err != nil {
		return fmt.Errorf("make %s the controlling terminal: %w", terminal.Name(), err)
	}
	makeStdio(fd)
	return nil
}

func makeStdio(fd int) {
	for std := range 3 {
		_ = unix.Dup3(fd, std, 0)
	}
}

// drainConsole waits until the console has taken what was written.
func drainConsole() {
	_ = unix.IoctlSetInt(2, unix.TCSBRK, 1) // tcdrain(3)
}

// openExitCode prepares setExitCode, which reports what is missing.
func openExitCode() { exitCodeFile, _ = os.OpenFile(exitCodePath, os.O_WRONLY, 0) }

// setExitCode makes code that of the kernel process.
func setExitCode(code int) error {
	if exitCodeFile == nil {
		return fmt.Errorf("no %s: not a User-Mode Linux kernel", exitCodePath)
	}
	_, err := fmt.Fprintf(exitCodeFile, "%d\n", code)
	return err
}
