package slirp

import (
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// clientKey names a client of a forwarded UDP port by its address and the one of the host that it sent to. Addresses
// are as the socket has them: on a socket for both families those of IPv4 are IPv4-mapped.
type clientKey struct {
	client netip.AddrPort
	scope  uint32     // interface of a link-local client
	host   netip.Addr // invalid: leave the choice to the kernel
}

// view is the client's address as people write it.
func (k clientKey) view() netip.AddrPort {
	return netip.AddrPortFrom(k.client.Addr().Unmap(), k.client.Port())
}

// askPktInfo makes the kernel tell the destination of each datagram: IPV6_PKTINFO on a socket for IPv6 or both
// families, else IP_PKTINFO.
func askPktInfo(raw syscall.RawConn) error {
	var optErr error
	if err := raw.Control(func(fd uintptr) {
		if optErr = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1); optErr != nil {
			optErr = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_PKTINFO, 1)
		}
	}); err != nil {
		return err
	}
	return optErr
}

// parsePktInfo returns the address that a datagram was sent to, if it is one to answer from.
func parsePktInfo(oob []byte) netip.Addr {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return netip.Addr{}
	}
	for _, m := range msgs {
		var addr netip.Addr
		switch {
		case m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			addr = netip.AddrFrom4((*unix.Inet4Pktinfo)(unsafe.Pointer(&m.Data[0])).Spec_dst)
		case m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			addr = netip.AddrFrom16((*unix.Inet6Pktinfo)(unsafe.Pointer(&m.Data[0])).Addr)
		}
		if addr.IsValid() && !addr.IsMulticast() && !addr.Unmap().IsMulticast() {
			return addr
		}
	}
	return netip.Addr{}
}

// control is the control message that makes an answer leave from the address that the client sent to.
func (k clientKey) control() []byte {
	switch {
	case k.host.Is4():
		return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: k.host.As4()})
	case k.host.Is6():
		return unix.PktInfo6(&unix.Inet6Pktinfo{Addr: k.host.As16(), Ifindex: k.scope})
	}
	return nil
}

// sockaddr is the client's address for the kernel.
func (k clientKey) sockaddr() unix.Sockaddr {
	if k.client.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(k.client.Port()), Addr: k.client.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(k.client.Port()), Addr: k.client.Addr().As16(), ZoneId: k.scope}
}

// recvFrom receives a datagram without waiting.
func recvFrom(fd uintptr, buf, oob []byte) (n int, key clientKey, err error) {
	n, oobn, _, from, err := unix.Recvmsg(int(fd), buf, oob, unix.MSG_DONTWAIT)
	if err != nil {
		return 0, key, err
	}
	switch sa := from.(type) {
	case *unix.SockaddrInet4:
		key.client = netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		key.client = netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
		key.scope = sa.ZoneId
	}
	key.host = parsePktInfo(oob[:oobn])
	return n, key, nil
}

// sendTo sends a datagram to a client without waiting.
func sendTo(raw syscall.RawConn, to clientKey, payload []byte) error {
	var sendErr error
	if err := raw.Write(func(fd uintptr) bool {
		sendErr = unix.Sendmsg(int(fd), payload, to.control(), to.sockaddr(), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		return true
	}); err != nil {
		return err
	}
	return sendErr
}
