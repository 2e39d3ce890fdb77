package slirp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// Theory of operation
//
// A hostSocket is an unconnected datagram socket of the host (UDP or ping), of one family, on behalf of one socket of
// the guest.
//
// send is called by the link's reader and never waits: a full socket loses the datagram, as it may. Everything that
// arrives is handed to a receiver, by the goroutine in receive.
//
// With IP_RECVERR the kernel queues the ICMP errors that concern the socket, with the address they are about, so an
// unconnected socket can tell the guest which of its targets refused. The same error is also returned by the next
// call on the socket, once; that call then did nothing else. Both send and receive take that as the sign to drain the
// queue, and go on; the poller is edge-triggered, so an error that is drained by the other side causes no loop.
//
// What the guest put into the IP header and the network acts upon goes with the datagram: the hop limit as a control
// message, if it is not the default, and "don't fragment" as the socket's mode, which is set when it changes.
//
// Buffers are only held while there is something to read: an idle flow costs a goroutine, no buffer.

var datagramPool = sync.Pool{New: func() any { return new([1 << 16]byte) }}

// receiver gets what a hostSocket receives. The slices are valid during the call only.
type receiver interface {
	datagram(from netip.AddrPort, payload []byte)
	icmpError(e icmpError)
}

// icmpError is an ICMP error from the host's network, in the numbers of the family of its target.
type icmpError struct {
	kind, code uint8
	info       uint32         // second word of the ICMP header
	from       netip.Addr     // who reported it
	to         netip.AddrPort // the target that the datagram was sent to
	data       []byte         // the datagram's payload, as far as it was quoted
	// quote is what the guest sent, filled in by the receiver.
	quote packetQuote
}

type hostSocket struct {
	conn *net.UDPConn
	raw  syscall.RawConn
	to   receiver
	ipv6 bool

	mu     sync.Mutex // serialises send
	out    outgoing   // guarded by mu
	outRun func(uintptr) bool
}

// carriage is what an IP header asks of the way.
type carriage struct {
	hops  uint8 // hop limit; 0 leaves the choice to the host
	whole bool  // not to be fragmented
}

// outgoing is the argument of one send, and the memory that the system call needs.
type outgoing struct {
	how     carriage
	whole   bool // the socket's mode, if known
	known   bool
	name    unix.RawSockaddrInet6 // of either family
	control hopControl
	iovs    [2]unix.Iovec
	msg     unix.Msghdr
	err     error
}

// hopControl is a control message with a hop limit.
type hopControl struct {
	header unix.Cmsghdr
	hops   int32
	_      int32 // to the alignment of the next one
}

// newHostSocket takes ownership of conn when it succeeds.
func newHostSocket(conn *net.UDPConn, ipv6 bool, to receiver) (*hostSocket, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var optErr error
	if err := raw.Control(func(fd uintptr) {
		if ipv6 {
			optErr = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_RECVERR, 1)
		} else {
			optErr = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_RECVERR, 1)
		}
	}); err != nil {
		return nil, err
	}
	if optErr != nil {
		return nil, fmt.Errorf("ask for ICMP errors: %w", os.NewSyscallError("setsockopt", optErr))
	}
	s := &hostSocket{conn: conn, raw: raw, to: to, ipv6: ipv6}
	s.outRun = s.sendFD
	return s, nil
}

func (s *hostSocket) close() { _ = s.conn.Close() }

// send sends a datagram made of two parts, at once or not at all.
func (s *hostSocket) send(to netip.AddrPort, how carriage, head, tail []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := &s.out
	o.how = how
	n := 0
	for _, part := range [...][]byte{head, tail} {
		if len(part) > 0 {
			o.iovs[n].Base = &part[0]
			o.iovs[n].SetLen(len(part))
			n++
		}
	}
	o.msg = unix.Msghdr{Iov: &o.iovs[0]}
	o.msg.SetIovlen(n)
	o.msg.Name, o.msg.Namelen = (*byte)(unsafe.Pointer(&o.name)), putSocketAddr(&o.name, to)
	if how.hops != 0 {
		o.control.header = unix.Cmsghdr{Level: unix.SOL_IP, Type: unix.IP_TTL}
		if s.ipv6 {
			o.control.header = unix.Cmsghdr{Level: unix.SOL_IPV6, Type: unix.IPV6_HOPLIMIT}
		}
		o.control.header.SetLen(unix.CmsgLen(4))
		o.control.hops = int32(how.hops)
		o.msg.Control = (*byte)(unsafe.Pointer(&o.control))
		o.msg.SetControllen(unix.CmsgSpace(4))
	}
	err := s.raw.Write(s.outRun)
	o.iovs[0].Base, o.iovs[1].Base = nil, nil
	if err != nil {
		return err
	}
	return o.err
}

func (s *hostSocket) sendFD(fd uintptr) bool {
	if !s.out.known || s.out.whole != s.out.how.whole {
		s.setWhole(fd, s.out.how.whole)
	}
	// A second try: the first may return the error of an earlier datagram, and a third would be for a flood of them.
	for range 2 {
		_, errno := rawMessage(unix.SYS_SENDMSG, int(fd), &s.out.msg)
		s.out.err = nil
		if errno == 0 {
			return true
		}
		s.out.err = errno
		if !isICMPErrno(errno) {
			return true
		}
		s.drainErrors(fd)
	}
	return true
}

// setWhole sets whether datagrams must not be fragmented. DO refuses what is larger than the path's MTU and sets the
// don't-fragment bit; DONT cuts it up, here or on the way.
func (s *hostSocket) setWhole(fd uintptr, whole bool) {
	s.out.known, s.out.whole = true, whole
	level, option, mode := unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT
	if s.ipv6 {
		level, option = unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER // the modes have the same numbers
	}
	if whole {
		mode = unix.IP_PMTUDISC_DO
	}
	_ = unix.SetsockoptInt(int(fd), level, option, mode) // it cannot fail with these values
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
	var name unix.RawSockaddrInet6 // the larger one
	var nameLen uint32
	for range 64 { // then let Go's poller see whether the socket was closed
		nameLen = unix.SizeofSockaddrInet6
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)),
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

// drainErrors hands over the queued ICMP errors. Errors of the host itself are dropped: the call that caused one has
// returned it.
func (s *hostSocket) drainErrors(fd uintptr) {
	for range 64 {
		var data [128]byte // the beginning is enough
		var oob [128]byte
		n, oobn, _, from, err := unix.Recvmsg(int(fd), data[:], oob[:], unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		if err != nil {
			return
		}
		e, err := parseExtendedError(oob[:oobn])
		if err != nil {
			continue
		}
		switch to := from.(type) {
		case *unix.SockaddrInet4:
			e.to = netip.AddrPortFrom(netip.AddrFrom4(to.Addr), uint16(to.Port))
		case *unix.SockaddrInet6:
			e.to = netip.AddrPortFrom(netip.AddrFrom16(to.Addr), uint16(to.Port))
		default:
			continue
		}
		e.data = data[:n]
		s.to.icmpError(e)
	}
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
		v4 := m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_RECVERR
		v6 := m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_RECVERR
		if !v4 && !v6 || len(m.Data) < size {
			continue
		}
		ee := (*unix.SockExtendedErr)(unsafe.Pointer(&m.Data[0]))
		e := icmpError{kind: ee.Type, code: ee.Code}
		offender := m.Data[size:]
		switch {
		case v4 && ee.Origin == unix.SO_EE_ORIGIN_ICMP:
			if header.ICMPv4Type(e.kind) == header.ICMPv4DstUnreachable &&
				header.ICMPv4Code(e.code) == header.ICMPv4FragmentationNeeded {
				e.info = ee.Info & 0xffff
			}
			if len(offender) >= unix.SizeofSockaddrInet4 && binary.NativeEndian.Uint16(offender) == unix.AF_INET {
				e.from = netip.AddrFrom4([4]byte(offender[4:8]))
			}
		case v6 && ee.Origin == unix.SO_EE_ORIGIN_ICMP6:
			if header.ICMPv6Type(e.kind) == header.ICMPv6PacketTooBig {
				e.info = ee.Info
			}
			if len(offender) >= unix.SizeofSockaddrInet6 && binary.NativeEndian.Uint16(offender) == unix.AF_INET6 {
				e.from = netip.AddrFrom16([16]byte(offender[8:24]))
			}
		default:
			return icmpError{}, errNotICMP
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

// pathMTU returns what the host's kernel takes for the MTU of the way to an address, or 0.
func pathMTU(to netip.AddrPort) int {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return 0
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0
	}
	mtu := 0
	_ = raw.Control(func(fd uintptr) {
		level, option := unix.SOL_IP, unix.IP_MTU
		if to.Addr().Is6() {
			level, option = unix.SOL_IPV6, unix.IPV6_MTU
		}
		mtu, _ = unix.GetsockoptInt(int(fd), level, option)
	})
	return mtu
}
