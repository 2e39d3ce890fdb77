//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Sockets without Go's runtime: a thread that reads or writes one just blocks in the kernel, as in a C program. The
// scheduler takes such a thread for one that computes, so there must be more of GOMAXPROCS than streams, and nothing
// that stops the world may happen meanwhile: no garbage collection, no preemption by signals (agentEnv).

// agentEnv is for the environment of every agent.
const agentEnv = "GODEBUG=asyncpreemptoff=1"

// tick is how long a call blocks at most before it looks at the deadline and whether to stop.
const tick = 200 * time.Millisecond

// errDeadline ends what takes far longer than it was meant to: the network stalls.
var errDeadline = errors.New("no end in time")

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
}

func newSocket(kind int) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	return fd, os.NewSyscallError("socket", err)
}

// setTimeout bounds each call on fd that waits.
func setTimeout(fd int, d time.Duration) error {
	tv := unix.NsecToTimeval(d.Nanoseconds())
	return os.NewSyscallError("setsockopt", errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv)))
}

// listen makes a listening TCP socket, or a bound UDP socket. What it accepts has its timeout too.
func listen(kind int, at netip.AddrPort) (int, error) {
	fd, err := newSocket(kind)
	if err != nil {
		return -1, err
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	err = errors.Join(setTimeout(fd, tick), os.NewSyscallError("bind", unix.Bind(fd, sockaddr(at))))
	if err == nil && kind == unix.SOCK_STREAM {
		err = os.NewSyscallError("listen", unix.Listen(fd, 1024))
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("listen on %s: %w", at, err)
	}
	return fd, nil
}

// dial connects a socket, and sets its timeout when that is done.
func dial(kind int, to netip.AddrPort) (int, error) {
	fd, err := newSocket(kind)
	if err != nil {
		return -1, err
	}
	// For connect(2) the timeout is that of the whole handshake: some tries of a SYN.
	err = setTimeout(fd, 5*time.Second)
	if err == nil {
		err = os.NewSyscallError("connect", unix.Connect(fd, sockaddr(to)))
	}
	if err == nil {
		err = setTimeout(fd, tick)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("connect to %s: %w", to, err)
	}
	return fd, nil
}

// rawConnect is connect(2) without a timeout.
func rawConnect(fd int, to netip.AddrPort) error {
	sa := unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: to.Addr().As4()}
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&sa.Port))[:], to.Port())
	_, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), unix.SizeofSockaddrInet4)
	if errno != 0 {
		return fmt.Errorf("connect to %s: %w", to, errno)
	}
	return nil
}

// accept waits for a connection until the job's deadline or its end.
func (j *job) accept(listener int) (int, error) {
	for {
		fd, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(listener), 0, 0, unix.SOCK_CLOEXEC, 0, 0)
		if errno == 0 {
			return int(fd), nil
		}
		if err := j.again(errno); err != nil {
			return -1, fmt.Errorf("accept: %w", err)
		}
	}
}

// read and write are the system calls, repeated until they do something.
func (j *job) read(fd int, p []byte) (int, error) {
	return j.transfer(unix.SYS_READ, "read", fd, p)
}

func (j *job) write(fd int, p []byte) (int, error) {
	return j.transfer(unix.SYS_WRITE, "write", fd, p)
}

func (j *job) transfer(call uintptr, name string, fd int, p []byte) (int, error) {
	for {
		n, errno := transferOnce(call, fd, p)
		if errno == 0 {
			return n, nil
		}
		if err := j.again(errno); err != nil {
			return 0, fmt.Errorf("%s: %w", name, err)
		}
	}
}

// transferOnce is read(2) or write(2) on p, which must not be empty.
func transferOnce(call uintptr, fd int, p []byte) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
	return int(n), errno
}

// again returns nil if a call that failed with errno is to be repeated.
func (j *job) again(errno unix.Errno) error {
	switch {
	case errno != unix.EAGAIN && errno != unix.EINTR:
		return errno
	case j.stopped.Load():
		return errStopped
	case time.Now().After(j.deadline):
		return errDeadline
	}
	return nil
}
