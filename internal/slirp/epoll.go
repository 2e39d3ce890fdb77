package slirp

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// epollFile is an epoll instance that is itself a file in Go's poller: it is readable when one of its sockets is ready.
// So no thread sleeps in epoll_wait, closing the file ends whoever waits, and its read deadline wakes them. The zero
// value watches nothing; add opens it.
type epollFile struct {
	file *os.File
	raw  syscall.RawConn
}

// open makes the instance, once.
func (p *epollFile) open() error {
	if p.file != nil {
		return nil
	}
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // os.NewFile's sign for the poller
		return errors.Join(err, unix.Close(fd))
	}
	p.file = os.NewFile(uintptr(fd), "epoll")
	p.raw, err = p.file.SyscallConn()
	return err
}

// control adds a socket (EPOLL_CTL_ADD) or changes what is watched of it (EPOLL_CTL_MOD). id comes back with its events.
func (p *epollFile) control(op, fd int, id int32, events uint32) error {
	e := unix.EpollEvent{Events: events, Fd: id}
	var errno syscall.Errno
	if err := p.raw.Control(func(epoll uintptr) { errno = rawControl(int(epoll), op, fd, &e) }); err != nil {
		return err
	}
	if errno != 0 {
		return os.NewSyscallError("epoll_ctl", errno)
	}
	return nil
}

// wait waits for events and returns how many there are.
func (p *epollFile) wait(events []unix.EpollEvent) (int, error) {
	n := 0
	err := p.raw.Read(func(fd uintptr) bool {
		n = rawReady(int(fd), events)
		return n > 0
	})
	return n, err
}

// close ends wait.
func (p *epollFile) close() {
	if p.file != nil {
		_ = p.file.Close()
	}
}
