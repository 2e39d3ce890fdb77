package slirp

import (
	"encoding/binary"
	"net/netip"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// System calls that never wait, on sockets that do not block, are made without telling Go's scheduler. Told of one, it
// wakes the thread that watches over long calls (runtime.sysmon) whenever all had been idle before, and lets it look
// every 20 µs: two more threads for a guest's CPU to make way for, for each packet of a quiet connection. A round trip
// to a guest took 140 to 180 µs so, and takes 77 to 97 µs (2026-11-24, alternating runs).
//
// The price is that the goroutine cannot be preempted meanwhile, which takes some tens of microseconds at most.

// rawRead is read(2).
func rawRead(fd int, b []byte) (int, syscall.Errno) {
	return rawTransfer(unix.SYS_READ, fd, b, 0)
}

// rawWrite is write(2).
func rawWrite(fd int, b []byte) (int, syscall.Errno) {
	return rawTransfer(unix.SYS_WRITE, fd, b, 0)
}

// rawPeek is recv(2) that leaves in the socket what it returns.
func rawPeek(fd int, b []byte) (int, syscall.Errno) {
	return rawTransfer(unix.SYS_RECVFROM, fd, b, unix.MSG_PEEK|unix.MSG_DONTWAIT)
}

func rawTransfer(call uintptr, fd int, b []byte, flags uintptr) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall6(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), flags, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

// rawQueued is how many bytes a socket holds (SIOCINQ).
func rawQueued(fd int) (int, syscall.Errno) {
	var n int32
	_, _, errno := unix.RawSyscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCINQ, uintptr(unsafe.Pointer(&n)))
	return int(n), errno
}

// rawSocket is socket(2) of a TCP socket that does not block.
func rawSocket(family int) (int, syscall.Errno) {
	fd, _, errno := unix.RawSyscall(unix.SYS_SOCKET, uintptr(family), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	return int(fd), errno
}

// rawClose is close(2).
func rawClose(fd int) { _, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

// rawError takes the pending error of a socket (SO_ERROR).
func rawError(fd int) syscall.Errno {
	var value int32
	size := uint32(unsafe.Sizeof(value))
	_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_ERROR,
		uintptr(unsafe.Pointer(&value)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return syscall.Errno(value)
}

// rawConnect is connect(2).
func rawConnect(fd int, to netip.AddrPort) syscall.Errno {
	var name unix.RawSockaddrInet6
	size := putSocketAddr(&name, to)
	_, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&name)), uintptr(size))
	return errno
}

// rawAccept is accept4(2), with a socket that does not block.
func rawAccept(fd int) (int, netip.AddrPort, syscall.Errno) {
	var name unix.RawSockaddrInet6
	size := uint32(unix.SizeofSockaddrInet6)
	conn, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(&name)),
		uintptr(unsafe.Pointer(&size)), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0, 0)
	if errno != 0 {
		return -1, netip.AddrPort{}, errno
	}
	return int(conn), unmapped(socketAddr(&name)), 0
}

// rawLocal is getsockname(2).
func rawLocal(fd int) (netip.AddrPort, syscall.Errno) {
	var name unix.RawSockaddrInet6
	size := uint32(unix.SizeofSockaddrInet6)
	_, _, errno := unix.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(&name)),
		uintptr(unsafe.Pointer(&size)))
	return unmapped(socketAddr(&name)), errno
}

// rawShutdown is shutdown(2) of the sending direction.
func rawShutdown(fd int) syscall.Errno {
	_, _, errno := unix.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0)
	return errno
}

// rawSetInt is setsockopt(2) of an int.
func rawSetInt(fd, level, option, value int) syscall.Errno {
	v := int32(value)
	_, _, errno := unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(&v)), unsafe.Sizeof(v), 0)
	return errno
}

// rawMessage is sendmsg(2) or recvmsg(2) without waiting.
func rawMessage(call uintptr, fd int, msg *unix.Msghdr) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(msg)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	runtime.KeepAlive(msg)
	return int(n), errno
}

// rawControl is epoll_ctl(2).
func rawControl(epoll, op, fd int, event *unix.EpollEvent) syscall.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(epoll), uintptr(op), uintptr(fd),
		uintptr(unsafe.Pointer(event)), 0, 0)
	return errno
}

// rawReady is epoll_wait(2) without waiting: how many events there are.
func rawReady(epoll int, events []unix.EpollEvent) int {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epoll), uintptr(unsafe.Pointer(&events[0])),
		uintptr(len(events)), 0, 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}

// putSocketAddr writes an address of either family for the kernel and returns its size.
func putSocketAddr(name *unix.RawSockaddrInet6, a netip.AddrPort) uint32 {
	if a.Addr().Is4() {
		*(*unix.RawSockaddrInet4)(unsafe.Pointer(name)) = unix.RawSockaddrInet4{
			Family: unix.AF_INET, Addr: a.Addr().As4(), Port: networkOrder(a.Port()),
		}
		return unix.SizeofSockaddrInet4
	}
	*name = unix.RawSockaddrInet6{Family: unix.AF_INET6, Addr: a.Addr().As16(), Port: networkOrder(a.Port())}
	return unix.SizeofSockaddrInet6
}

// socketAddr reads an address of either family that the kernel wrote.
func socketAddr(a *unix.RawSockaddrInet6) netip.AddrPort {
	if a.Family == unix.AF_INET {
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(a))
		return netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), networkOrder(v4.Port))
	}
	return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), networkOrder(a.Port))
}

// unmapped is an address of IPv4 as such, also from a socket for both families.
func unmapped(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// networkOrder turns a port from the host's byte order into the network's, and back.
func networkOrder(port uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], port)
	return binary.NativeEndian.Uint16(b[:])
}
