package slirp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// Theory of operation
//
// A hostSocket is an unconnected IPv4 datagram socket of the host (UDP or ping) on behalf of one socket of the guest.
//
// send is called by the link's reader and never waits: a full socket loses the datagram, as it may. Everything that
// arrives is handed to a receiver, by the goroutine in receive.
//
// With IP_RECVERR the kernel queues the ICMP errors that concern the socket, with the address they are about, so an
// unconnected socket can tell the guest which of its targets refused. The same error is also returned by the next
// call on the socket, once; that call then did nothing else. Both send and receive take that as the sign to drain the
// queue, and go on; the poller is edge-triggered, so an error that is drained by the other side causes no loop.
//
// Buffers are only held while there is something to read: an idle flow costs a goroutine, no buffer.

var datagramPool = sync.Pool{New: func() any { return new([1 << 16]byte) }}

// receiver gets what a hostSocket receives. The slices are valid during the call only.
type receiver interface {
	datagram(from netip.AddrPort, payload []byte)
	icmpError(e icmpError)
}

// icmpError is an ICMP error from the host's network.
type icmpError struct {
	kind header.ICMPv4Type
	code header.ICMPv4Code
	info uint32         // second word of the ICMP header
	from netip.Addr     // who reported it
	to   netip.AddrPort // the target that the datagram was sent to
	data []byte         // the datagram's payload, as far as it was quoted
	// quote is what the guest sent, filled in by the receiver.
	quote packetQuote
}

type hostSocket struct {
	conn *net.UDPConn
	raw  syscall.RawConn
	to   receiver

	mu     sync.Mutex // serialises send
	out    outgoing   // guarded by mu
	outRun func(uintptr) bool
}

// outgoing is the argument of one send.
type outgoing struct {
	name unix.RawSockaddrInet4
	iovs [2]unix.Iovec
	msg  unix.Msghdr
	err  error
}

// newHostSocket takes ownership of conn when it succeeds.
func newHostSocket(conn *net.UDPConn, to receiver) (*hostSocket, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var optErr error
	if err := raw.Control(func(fd uintptr) {
		optErr = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_RECVERR, 1)
	}); err != nil {
		return nil, err
	}
	if optErr != nil {
		return nil, fmt.Errorf("set IP_RECVERR: %w", optErr)
	}
	s := &hostSocket{conn: conn, raw: raw, to: to}
	s.outRun = s.sendFD
	return s, nil
}

func (s *hostSocket) close() { _ = s.conn.Close() }

// send sends a datagram made of two parts, at once or not at all.
func (s *hostSocket) send(to netip.AddrPort, head, tail []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := &s.out
	o.name = unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: to.Addr().As4()}
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&o.name.Port))[:], to.Port())
	n := 0
	for _, part := range [...][]byte{head, tail} {
		if len(part) > 0 {
			o.iovs[n].Base = &part[0]
			o.iovs[n].SetLen(len(part))
			n++
		}
	}
	o.msg = unix.Msghdr{Name: (*byte)(unsafe.Pointer(&o.name)), Namelen: unix.SizeofSockaddrInet4, Iov: &o.iovs[0]}
	o.msg.SetIovlen(n)
	err := s.raw.Write(s.outRun)
	o.iovs[0].Base, o.iovs[1].Base = nil, nil
	if err != nil {
		return err
	}
	return o.err
}

func (s *hostSocket) sendFD(fd uintptr) bool {
	// A second try: the first may return the error of an earlier datagram, and a third would be for a flood of them.
	for range 2 {
		_, _, errno := unix.Syscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&s.out.msg)),
			unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		s.out.err = nil
		if errno == 0 {
			return true
		}
		s.out.err = errno
		if !isICMPErrno(errno) || !s.drainErrors(fd) {
			return true
		}
	}
	return true
}

// receive hands over what arrives until the socket is closed.
func (s *hostSocket) receive() {
	run := s.receiveFD
	for s.raw.Read(run) == nil {
	}
}

// receiveFD takes all that has arrived. It always asks to be called again; closing the socket ends that.
func (s *hostSocket) receiveFD(fd uintptr) bool {
	buf := datagramPool.Get().(*[1 << 16]byte)
	defer datagramPool.Put(buf)
	var name unix.RawSockaddrInet4
	var nameLen uint32
	for range 64 { // then let Go's poller see whether the socket was closed
		nameLen = unix.SizeofSockaddrInet4
		n, _, errno := unix.Syscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)),
			unix.MSG_DONTWAIT, uintptr(unsafe.Pointer(&name)), uintptr(unsafe.Pointer(&nameLen)))
		switch {
		case errno == 0:
			s.to.datagram(socketAddr(&name), buf[:n])
		case errno == unix.EAGAIN:
			return false
		case errno == unix.EINTR:
		default:
			s.drainErrors(fd)
		}
	}
	return true
}

// drainErrors hands over the queued ICMP errors. It reports whether there were any.
func (s *hostSocket) drainErrors(fd uintptr) (any bool) {
	for range 64 {
		var data [128]byte // the beginning is enough
		var oob [128]byte
		n, oobn, _, from, err := unix.Recvmsg(int(fd), data[:], oob[:], unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		if err != nil {
			return any
		}
		any = true
		to, ok := from.(*unix.SockaddrInet4)
		if !ok {
			continue
		}
		e, err := parseExtendedError(oob[:oobn])
		if err != nil {
			continue // an error of the host itself, not of the network
		}
		e.to = netip.AddrPortFrom(netip.AddrFrom4(to.Addr), uint16(to.Port))
		e.data = data[:n]
		s.to.icmpError(e)
	}
	return any
}

var errNotICMP = errors.New("not an ICMP error")

// parseExtendedError reads the control message that comes with an error: struct sock_extended_err, followed by the
// address of the offender (ip(7), IP_RECVERR).
func parseExtendedError(oob []byte) (icmpError, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return icmpError{}, err
	}
	const size = int(unsafe.Sizeof(unix.SockExtendedErr{}))
	for _, m := range msgs {
		if m.Header.Level != unix.SOL_IP || m.Header.Type != unix.IP_RECVERR || len(m.Data) < size {
			continue
		}
		ee := (*unix.SockExtendedErr)(unsafe.Pointer(&m.Data[0]))
		if ee.Origin != unix.SO_EE_ORIGIN_ICMP {
			return icmpError{}, errNotICMP
		}
		e := icmpError{kind: header.ICMPv4Type(ee.Type), code: header.ICMPv4Code(ee.Code)}
		if e.kind == header.ICMPv4DstUnreachable && e.code == header.ICMPv4FragmentationNeeded {
			e.info = ee.Info & 0xffff
		}
		if offender := m.Data[size:]; len(offender) >= 8 && binary.NativeEndian.Uint16(offender) == unix.AF_INET {
			e.from = netip.AddrFrom4([4]byte(offender[4:8]))
		}
		return e, nil
	}
	return icmpError{}, errNotICMP
}

// isICMPErrno says whether an error of a call may be one that the network reported earlier.
func isICMPErrno(e syscall.Errno) bool {
	switch e {
	case unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EMSGSIZE, unix.EPROTO, unix.EHOSTDOWN, unix.ENONET,
		unix.ENOPROTOOPT, unix.EOPNOTSUPP, unix.EACCES:
		return true
	}
	return false
}

func socketAddr(a *unix.RawSockaddrInet4) netip.AddrPort {
	port := binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&a.Port))[:])
	return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), port)
}
