//go:build linux

package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// openTerminal returns both ends of a pseudo-terminal.
func openTerminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no terminals here: %v", err)
	}
	t.Cleanup(func() { master.Close() })
	raw, err := master.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	number := 0
	if err := raw.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
			number, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
	}); err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no terminals here: %v", err)
	}
	t.Cleanup(func() { slave.Close() })
	return master, slave
}

// TestConsoleShellIgnoresSIGTERM is why processes with a terminal get SIGHUP at the stop: an interactive shell would take
// all of the grace.
func TestConsoleShellIgnoresSIGTERM(t *testing.T) {
	master, slave := openTerminal(t)
	shell := &exec.Cmd{
		Path: "/bin/sh", Args: []string{"sh"}, Env: []string{defaultPath, "PS1=ready"}, Dir: "/",
		Stdin: slave, Stdout: slave, Stderr: slave, SysProcAttr: &syscall.SysProcAttr{Setsid: true, Setctty: true},
	}
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	ended := make(chan error, 1)
	go func() { ended <- shell.Wait() }()
	defer time.AfterFunc(time.Minute, func() { _ = shell.Process.Kill() }).Stop() // hangs no test
	for seen, buf := []byte(nil), make([]byte, 256); !bytes.Contains(seen, []byte("ready")); {
		n, err := master.Read(buf)
		if err != nil {
			t.Fatalf("the shell says %q, %v", seen, err)
		}
		seen = append(seen, buf[:n]...)
	}
	go io.Copy(io.Discard, master)

	others := onTerminals()
	if !slices.Contains(others, shell.Process.Pid) || slices.Contains(others, os.Getpid()) || slices.Contains(others, 1) {
		t.Errorf("onTerminals() = %v, want the shell, %d, and neither 1 nor %d", others, shell.Process.Pid, os.Getpid())
	}
	_ = shell.Process.Signal(unix.SIGTERM)
	select {
	case err := <-ended:
		t.Fatalf("the shell ends by SIGTERM: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	_ = shell.Process.Signal(unix.SIGHUP)
	if err := <-ended; err == nil {
		t.Error("the shell ends with success after SIGHUP")
	}
}

func TestHasTerminal(t *testing.T) {
	for stat, want := range map[string]bool{
		"1 (init) S 0 1 1 0 -1 4194560":          false,
		"7 (a) S 1 2) R 3 4 5 0 -1 4194560":      false,
		"7 (a) b S 0 0) S 1 7 7 1025 7 4194560":  true,
		"7 (sh) S 1 7 7 34816 7 4194560 1 2 3 4": true,
		"":                                       false,
		"7 (sh":                                  false,
	} {
		if got := hasTerminal([]byte(stat)); got != want {
			t.Errorf("hasTerminal(%q) = %t, want %t", stat, got, want)
		}
	}
}
