//go:build linux

package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"

	"docker-usermode-linux/internal/agent"
	"docker-usermode-linux/internal/rootfs"
)

// sshRetry is how long after a failure port 22 is tried again: a server that was just removed may still have it.
const sshRetry = 5 * time.Second

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

// serveSSH serves port 22 of the guest until its root file system has an SSH server of its own.
func serveSSH(ctx context.Context) {
	for sshServer() == "" {
		ctx, cancel := context.WithCancel(ctx)
		go func() {
			defer cancel()
			waitForSSHServer(ctx)
		}()
		err := serveSSHUntil(ctx)
		if ctx.Err() == nil {
			note(fmt.Errorf("agent: SSH: %w", err))
			time.Sleep(sshRetry)
		}
		cancel()
	}
}

// serveSSHUntil serves until ctx ends, with the key that an SSH server installed later would take.
func serveSSHUntil(ctx context.Context) error {
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
	server := agent.NewServer(agent.ServerOptions{HostKey: key, Auth: &agent.Authenticator{}, Log: noteAgent})
	return server.ServeListener(ctx, l)
}

// waitForSSHServer returns when an SSH server has been installed, or ctx has ended. Without inotify it waits for ctx
// alone.
func waitForSSHServer(ctx context.Context) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		<-ctx.Done()
		return
	}
	events := os.NewFile(uintptr(fd), "inotify")
	defer events.Close()
	defer context.AfterFunc(ctx, func() { _ = events.SetReadDeadline(time.Unix(1, 0)) })()
	for _, server := range sshServers {
		_, _ = unix.InotifyAddWatch(fd, path.Dir(server), unix.IN_CREATE|unix.IN_MOVED_TO) // not there: nothing comes there
	}
	buf := make([]byte, 4096)
	for sshServer() == "" {
		if _, err := events.Read(buf); err != nil {
			return
		}
	}
}
