package link

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// socketBufferBytes is asked for in both directions at both ends. The kernel books about 2.3 KiB for a frame of
	// 1,514 bytes, so it holds well over 1,000 of them, or 60 of 64 KiB once the link carries such.
	socketBufferBytes = 4 << 20
	// minSendBufferBytes is what both ends need at least: UML takes its NIC out of service for good when sendmmsg
	// fails with EMSGSIZE, as it does for a frame that is larger than SO_SNDBUF.
	minSendBufferBytes = 160 << 10
)

// SocketPair makes the two ends of a guest link, with buffers sized for it. The host's end goes to New, the guest's
// to the kernel.
func SocketPair() (host, guest *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make the guest link: %w", os.NewSyscallError("socketpair", err))
	}
	host, guest = os.NewFile(uintptr(fds[0]), "guest link, host end"), os.NewFile(uintptr(fds[1]), "guest link, guest end")
	if err := errors.Join(sizeBuffers(fds[0]), sizeBuffers(fds[1])); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("make the guest link: %w", err), host.Close(), guest.Close())
	}
	return host, guest, nil
}

// sizeBuffers asks for large socket buffers. Beyond net.core.wmem_max they need CAP_NET_ADMIN, which a container
// seldom has; less will do.
func sizeBuffers(fd int) error {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, socketBufferBytes) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, socketBufferBytes)
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBufferBytes) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, socketBufferBytes)
	}
	got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
	if err != nil {
		return os.NewSyscallError("getsockopt SO_SNDBUF", err)
	}
	if got < minSendBufferBytes {
		return fmt.Errorf("SO_SNDBUF is %d bytes, at least %d are needed: raise the host's sysctl net.core.wmem_max",
			got, minSendBufferBytes)
	}
	return nil
}

// own takes the descriptor out of f and gives it to Go's poller, whatever mode it was in.
func own(f *os.File) (*os.File, error) {
	if f == nil {
		return nil, errors.New("no socket")
	}
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	var dupErr error
	if err := raw.Control(func(old uintptr) {
		var kind int
		if kind, dupErr = unix.GetsockoptInt(int(old), unix.SOL_SOCKET, unix.SO_TYPE); dupErr != nil {
			return
		}
		if kind != unix.SOCK_SEQPACKET {
			dupErr = errors.New("not a SOCK_SEQPACKET socket")
			return
		}
		fd, dupErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0)
	}); err != nil {
		return nil, err
	}
	if dupErr != nil {
		return nil, dupErr
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

func recvmmsg(fd uintptr, msgs []mmsghdr) (int, error) {
	return mmsg(unix.SYS_RECVMMSG, fd, msgs)
}

func sendmmsg(fd uintptr, msgs []mmsghdr) (int, error) {
	return mmsg(unix.SYS_SENDMMSG, fd, msgs)
}

func mmsg(call, fd uintptr, msgs []mmsghdr) (int, error) {
	for {
		n, _, errno := unix.Syscall6(call, fd, uintptr(unsafe.Pointer(&msgs[0])), uintptr(len(msgs)),
			unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return 0, errno
		}
		return int(n), nil
	}
}

// hungUp says whether the other end of the socket was closed.
func hungUp(fd uintptr) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(p, 0)
	return err == nil && n == 1 && p[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
}
