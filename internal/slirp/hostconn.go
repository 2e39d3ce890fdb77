package slirp

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Theory of operation
//
// The host's end of a TCP flow is a bare socket. A connection of package net costs some twenty system calls, a
// goroutine and, for an accepted one, a duplicate of its descriptor; it also cannot say that the peer has reset the
// connection to somebody who waits for something else meanwhile.
//
// One goroutine, hostSockets.watch, waits for all of these sockets (epoll, edge-triggered) and leaves a token in the
// channel of whoever may wait. Tokens may be stale: who finds one tries, and waits again. A socket that has failed
// closes its channel broken, which everybody may look at.
//
// Life: whoever has made a hostConn closes it, once, when nobody uses it any more: a descriptor that is closed under
// another goroutine's call may be somebody else's by then. To end the use of it there is abort. An event of a socket
// that was closed since may reach the next one with its number, as a stale token.

// hostSockets watches the host's ends of all TCP flows.
type hostSockets struct {
	epoll epollFile

	mu    sync.RWMutex
	conns map[int32]*hostConn // guarded by mu, by descriptor
}

// hostEvents are edge-triggered. EPOLLERR and EPOLLHUP come by themselves.
const hostEvents = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET&(1<<32-1)

func (s *hostSockets) open() error {
	s.conns = make(map[int32]*hostConn)
	return s.epoll.open()
}

// stop ends watch.
func (s *hostSockets) stop() { s.epoll.close() }

// watch hands out tokens until stop.
func (s *hostSockets) watch() {
	var events [128]unix.EpollEvent
	for {
		n, err := s.epoll.wait(events[:])
		if err != nil {
			return
		}
		s.mu.RLock()
		for _, e := range events[:n] {
			if c := s.conns[e.Fd]; c != nil {
				c.wake(e.Events)
			}
		}
		s.mu.RUnlock()
	}
}

// hostConn is the host's end of a TCP flow.
type hostConn struct {
	set  *hostSockets
	fd   int
	peer netip.AddrPort // of IPv4 never IPv4-mapped

	readable, writable chan struct{} // tokens
	broken             chan struct{} // closed by abort
	failing            sync.Once
}

// errAborted is what a connection that was ended by us fails with.
var errAborted = errors.New("connection aborted")

// add takes over a connected or connecting socket that does not block.
func (s *hostSockets) add(fd int, peer netip.AddrPort) (*hostConn, error) {
	c := &hostConn{
		set: s, fd: fd, peer: peer,
		readable: make(chan struct{}, 1), writable: make(chan struct{}, 1), broken: make(chan struct{}),
	}
	s.mu.Lock()
	s.conns[int32(fd)] = c
	s.mu.Unlock()
	if err := s.epoll.control(unix.EPOLL_CTL_ADD, fd, int32(fd), hostEvents); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// wake leaves tokens for whoever is concerned. An error concerns everybody: they learn it from the socket.
func (c *hostConn) wake(events uint32) {
	if events&unix.EPOLLERR != 0 {
		c.abort()
	}
	if events&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		leaveToken(c.readable)
	}
	if events&(unix.EPOLLOUT|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		leaveToken(c.writable)
	}
}

func leaveToken(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// abort makes all who wait on the connection give up.
func (c *hostConn) abort() { c.failing.Do(func() { close(c.broken) }) }

// isBroken says whether the connection has failed or was aborted.
func (c *hostConn) isBroken() bool {
	select {
	case <-c.broken:
		return true
	default:
		return false
	}
}

// failure is why the connection is broken.
func (c *hostConn) failure() error {
	if errno := rawError(c.fd); errno != 0 {
		return errno
	}
	return errAborted
}

// The keep-alive of both sides: a dead peer is noticed 5 minutes later.
const (
	keepAliveIdle     = 3 * time.Minute
	keepAliveInterval = 15 * time.Second
	keepAliveCount    = 8
)

// setHostOptions sets what all TCP sockets have; clients inherit it from the socket that listens. No Nagle: the two
// ends of a flow decide how data is cut. Urgent data stays in its place, which is also what the guest sends: at the mark
// of data out of band the kernel would say that there is nothing to read, and have something.
func setHostOptions(fd int) error {
	for _, o := range [...]struct{ level, option, value int }{
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		{unix.SOL_SOCKET, unix.SO_OOBINLINE, 1},
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(keepAliveIdle / time.Second)},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(keepAliveInterval / time.Second)},
		{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepAliveCount},
	} {
		if errno := rawSetInt(fd, o.level, o.option, o.value); errno != 0 {
			return os.NewSyscallError("setsockopt", errno)
		}
	}
	return nil
}

// dial connects to the outside. The error wraps that of connect(2), os.ErrDeadlineExceeded after the timeout, or that of
// the context.
func (s *hostSockets) dial(ctx context.Context, to netip.AddrPort, timeout time.Duration) (*hostConn, error) {
	family := unix.AF_INET
	if to.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, errno := rawSocket(family)
	if errno != 0 {
		return nil, os.NewSyscallError("socket", errno)
	}
	if err := setHostOptions(fd); err != nil {
		rawClose(fd)
		return nil, err
	}
	c, err := s.add(fd, to)
	if err != nil {
		return nil, err
	}
	if err := c.connect(ctx, timeout); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *hostConn) connect(ctx context.Context, timeout time.Duration) error {
	patience := time.NewTimer(timeout)
	defer patience.Stop()
	for {
		// In turn it says that it has begun, that it goes on, and how it has ended.
		switch errno := rawConnect(c.fd, c.peer); errno {
		case 0, unix.EISCONN:
			return nil
		case unix.EINPROGRESS, unix.EALREADY, unix.EINTR:
		default:
			return os.NewSyscallError("connect", errno)
		}
		select {
		case <-c.writable:
		case <-ctx.Done():
			return ctx.Err()
		case <-patience.C:
			return os.ErrDeadlineExceeded
		}
	}
}

// closeWrite sends a FIN. A peer that has closed the connection altogether meanwhile is no error.
func (c *hostConn) closeWrite() error {
	if errno := rawShutdown(c.fd); errno != 0 && errno != unix.ENOTCONN {
		return os.NewSyscallError("shutdown", errno)
	}
	return nil
}

// reset closes the connection with a RST. Nobody may use it any more.
func (c *hostConn) reset() {
	_ = unix.SetsockoptLinger(c.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	c.close()
}

// close closes the connection. Nobody may use it any more.
func (c *hostConn) close() {
	c.set.mu.Lock()
	delete(c.set.conns, int32(c.fd))
	c.set.mu.Unlock()
	rawClose(c.fd)
}

// local is the address of this end.
func (c *hostConn) local() (netip.AddrPort, error) {
	at, errno := rawLocal(c.fd)
	if errno != 0 {
		return netip.AddrPort{}, os.NewSyscallError("getsockname", errno)
	}
	return at, nil
}
