//go:build linux

package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"docker-usermode-linux/internal/agent"
	"docker-usermode-linux/internal/rootfs"
)

// Port 22 of a guest without an SSH server is served by a process of its own, this program again. Whoever can reach the
// port talks to it before any login, so it is none that the OOM killer spares, and it has not the agent's port, which is
// root without a password. Unlike the agent it ends with the other processes when the guest stops.

const (
	// sshRole is the first argument of that process, and keysOnlyArg may follow.
	sshRole     = "ssh"
	keysOnlyArg = "keys-only"
	// sshName is what ps shows.
	sshName = "guest-ssh"

	// sshRetry is how long after a failure port 22 is tried again: a server that was just removed may still have it.
	sshRetry = 5 * time.Second
)

// sshServers are where distributions have one.
var sshServers = []string{
	"/usr/sbin/sshd", "/usr/bin/sshd", "/sbin/sshd", "/usr/local/sbin/sshd", "/usr/sbin/dropbear", "/usr/bin/dropbear",
	"/usr/local/sbin/dropbear", "/usr/sbin/tinysshd", "/usr/bin/tinysshd",
}

// sshServer returns the path of the root file system's own SSH server, or "".
func sshServer() string {
	for _, path := range sshServers {
		if exists(path) {
			return path
		}
	}
	return ""
}

// keepSSH has port 22 served by a process until the root file system has an SSH server of its own: should it die before,
// another one follows.
func keepSSH(keysOnly bool) {
	for sshServer() == "" {
		cmd := sshCommand(keysOnly)
		err := runUnprotected(cmd)
		if err == nil {
			continue
		}
		// SIGTERM is how the guest's init ends all processes.
		if s := cmd.ProcessState; s == nil || s.Sys().(syscall.WaitStatus).Signal() != unix.SIGTERM {
			noteAgent(fmt.Errorf("SSH: %w", err))
		}
		time.Sleep(sshRetry)
	}
}

// sshCommand is that process. It inherits the console to write to, and no other file. Its input is a pipe, at its end: a
// root file system without /dev has no /dev/null, which is what package exec would open.
func sshCommand(keysOnly bool) *exec.Cmd {
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{sshName, sshRole}, Env: []string{defaultPath}, Dir: "/",
		Stdin: strings.NewReader(""), Stdout: os.Stdout, Stderr: os.Stderr,
	}
	if keysOnly {
		cmd.Args = append(cmd.Args, keysOnlyArg)
	}
	return cmd
}

// sshMain is the process; args are those after sshRole. It ends when an SSH server has been installed, and the last
// connection is over: among them may be the one that installed it.
func sshMain(args []string) int {
	debug.SetGCPercent(gcPercent)
	auth := &agent.Authenticator{KeysOnly: slices.Contains(args, keysOnlyArg)}
	installed, install := context.WithCancel(context.Background())
	go func() {
		if waitForSSHServer() == nil {
			install()
		}
	}()
	for sshServer() == "" {
		err := serveSSH(installed, auth)
		if err == nil {
			break // another process looks for the next server, should that one go
		}
		noteAgent(fmt.Errorf("SSH: %w", err))
		time.Sleep(sshRetry)
	}
	return 0
}

// serveSSH accepts connections until installed ends, and serves them until they do. The host key is the one that an SSH
// server installed later would take.
func serveSSH(installed context.Context, auth *agent.Authenticator) error {
	root, err := os.OpenRoot("/")
	if err != nil {
		return err
	}
	defer root.Close()
	key, err := rootfs.HostKey(root, noteAgent)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", ":22")
	if err != nil {
		return err
	}
	defer context.AfterFunc(installed, func() { l.Close() })()
	server := agent.NewServer(agent.ServerOptions{HostKey: key, Auth: auth, Log: noteAgent})
	return server.ServeListener(context.Background(), l)
}

// waitForSSHServer returns when an SSH server has been installed. An error means that nobody can tell.
func waitForSSHServer() error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watch for an SSH server: %w", err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	defer events.Close()
	for _, server := range sshServers {
		_, _ = unix.InotifyAddWatch(fd, path.Dir(server), unix.IN_CREATE|unix.IN_MOVED_TO) // not there: nothing comes there
	}
	buf := make([]byte, 4096)
	for sshServer() == "" {
		if _, err := events.Read(buf); err != nil {
			return fmt.Errorf("watch for an SSH server: %w", err)
		}
	}
	return nil
}
