package slirp

import (
	"net/netip"
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

// askPktInfo makes the kernel tell the destination of each datagram.
func askPktInfo(fd, family int) error {
	if family == unix.AF_INET6 { // for IPv4 as well, on a socket for both
		return unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1)
	}
	return unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_PKTINFO, 1)
}

// parsePktInfo returns the address that a datagram was sent to, if it is one to answer from.
func parsePktInfo(oob []byte) netip.Addr {
	for len(oob) >= unix.SizeofCmsghdr {
		hdr, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			break
		}
		oob = rest
		var addr netip.Addr
		switch {
		case hdr.Level == unix.SOL_IP && hdr.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			addr = netip.AddrFrom4((*unix.Inet4Pktinfo)(unsafe.Pointer(&data[0])).Spec_dst)
		case hdr.Level == unix.SOL_IPV6 && hdr.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			addr = netip.AddrFrom16((*unix.Inet6Pktinfo)(unsafe.Pointer(&data[0])).Addr)
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

// datagramReader receives datagrams of clients. It holds what the system call needs, so that nothing is allocated, and
// its buffer once there was one.
type datagramReader struct {
	buf  []byte
	name unix.RawSockaddrInet6 // of either family
	oob  [128]byte
}

// read receives a datagram without waiting. The payload is valid until the next call.
func (r *datagramReader) read(fd int) (payload []byte, key clientKey, err error) {
	if r.buf == nil {
		r.buf = make([]byte, 1<<16)
	}
	iov := unix.Iovec{Base: &r.buf[0]}
	iov.SetLen(len(r.buf))
	msg := unix.Msghdr{
		Name: (*byte)(unsafe.Pointer(&r.name)), Namelen: unix.SizeofSockaddrInet6,
		Iov: &iov, Control: &r.oob[0],
	}
	msg.SetIovlen(1)
	msg.SetControllen(len(r.oob))
	n, errno := rawMessage(unix.SYS_RECVMSG, fd, &msg)
	if errno != 0 {
		return nil, key, errno
	}
	key.client = socketAddr(&r.name)
	if r.name.Family == unix.AF_INET6 {
		key.scope = r.name.Scope_id
	}
	key.host = parsePktInfo(r.oob[:msg.Controllen])
	return r.buf[:n], key, nil
}
