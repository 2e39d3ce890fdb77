package slirp

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// Theory of operation
//
// Netstack answers pings to the gateway's addresses. A ping to any other address is sent by the host, through an
// unprivileged ping socket (net.ipv4.ping_group_range, for both families; Docker opens it to all), one per identifier
// that the guest uses, and the answer goes back with the guest's identifier in place of the kernel's. Where such
// sockets are not to be had, the guest is told that ping is prohibited. It never gets an answer that nobody sent.
//
// Errors of the host's network travel back as the ICMP messages that they were (hostsocket.go reads them), quoting
// the guest's packet, from whoever reported them. With the guest's hop limit on what the host sends, that makes
// traceroute work. Errors of the guest about what we sent to it end with the flow that it is about; netstack sees to
// those of TCP.
//
// ICMP and ICMPv6 have different numbers and the same layout: type, code, checksum, a word, and then either the data of
// an echo or the quote of an error. So one code serves both, with the numbers in icmpNumbers.

// icmpBytes is the header of the messages that are handled here.
const icmpBytes = header.ICMPv4MinimumSize

// reason is why we do not deliver the guest's packet.
type reason uint8

const (
	noRoute reason = iota
	noHost
	prohibited
)

// icmpNumbers are the numbers of one family.
type icmpNumbers struct {
	proto                      tcpip.TransportProtocolNumber
	echo, echoReply            uint8
	unreachable                uint8
	codes                      [prohibited + 1]uint8 // of unreachable, by reason
	timeExceeded, hopsExceeded uint8                 // type and code
	tooBig, tooBigCode         uint8
}

var (
	icmp4 = icmpNumbers{
		proto:       header.ICMPv4ProtocolNumber,
		echo:        uint8(header.ICMPv4Echo),
		echoReply:   uint8(header.ICMPv4EchoReply),
		unreachable: uint8(header.ICMPv4DstUnreachable),
		codes: [...]uint8{
			noRoute:    uint8(header.ICMPv4NetUnreachable),
			noHost:     uint8(header.ICMPv4HostUnreachable),
			prohibited: uint8(header.ICMPv4AdminProhibited),
		},
		timeExceeded: uint8(header.ICMPv4TimeExceeded),
		hopsExceeded: uint8(header.ICMPv4TTLExceeded),
		tooBig:       uint8(header.ICMPv4DstUnreachable),
		tooBigCode:   uint8(header.ICMPv4FragmentationNeeded),
	}
	icmp6 = icmpNumbers{
		proto:       header.ICMPv6ProtocolNumber,
		echo:        uint8(header.ICMPv6EchoRequest),
		echoReply:   uint8(header.ICMPv6EchoReply),
		unreachable: uint8(header.ICMPv6DstUnreachable),
		codes: [...]uint8{
			noRoute:    uint8(header.ICMPv6NetworkUnreachable),
			noHost:     uint8(header.ICMPv6AddressUnreachable),
			prohibited: uint8(header.ICMPv6Prohibited),
		},
		timeExceeded: uint8(header.ICMPv6TimeExceeded),
		hopsExceeded: uint8(header.ICMPv6HopLimitExceeded),
		tooBig:       uint8(header.ICMPv6PacketTooBig),
		tooBigCode:   uint8(header.ICMPv6UnusedCode),
	}
)

// icmpOf returns the numbers of an address's family.
func icmpOf(a netip.Addr) *icmpNumbers {
	if a.Is4() {
		return &icmp4
	}
	return &icmp6
}

// handleICMP gets the echo messages to any address, of both families. On false netstack answers itself.
func (n *Network) handleICMP(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	hdr := pkt.TransportHeader().Slice()
	guest, target := goAddr(id.RemoteAddress), goAddr(id.LocalAddress)
	if len(hdr) < icmpBytes || hdr[0] != icmpOf(target).echo {
		return true
	}
	if isOurs(target) {
		return false
	}
	ini := netip.AddrPortFrom(guest, binary.BigEndian.Uint16(hdr[4:]))
	host, ok := n.policy.target(ICMP, netip.AddrPortFrom(target, 0))
	if !ok {
		n.stats.policyClosed.Add(1)
		if !isBroadcast(target) {
			n.sendUnreachable(prohibited, quote(pkt))
		}
		return true
	}
	how, expired := carriageOf(pkt, target)
	if expired {
		n.sendHopsExceeded(quote(pkt))
		return true
	}
	f, err := n.pingFlow(ini)
	if err != nil {
		n.log.Debug().Stringer("proto", ICMP).Stringer("ini", ini).Stringer("tgt", target).Err(err).Msg("ping refused")
		n.sendUnreachable(flowRefusal(err), quote(pkt))
		return true
	}
	n.flows.touch(&f.flow, n.limits.ping)
	// The message as it came, but for the identifier and the checksum, which the host's kernel sets.
	data, _ := pkt.Data().PullUp(pkt.Data().Size())
	f.hostBytes.Add(uint64(len(hdr) + len(data)))
	if err := f.socket.send(host, how, hdr, data); err != nil {
		n.sendErrno(err, host, pkt)
	}
	return true
}

// pingFlow is a series of echo requests with one identifier.
type pingFlow struct {
	flow
	n      *Network
	socket *hostSocket
}

// stop implements entry.
func (f *pingFlow) stop() { f.socket.close() }

// pingFlow returns the flow of the guest's identifier, a new one if need be.
func (n *Network) pingFlow(ini netip.AddrPort) (*pingFlow, error) {
	key := flowKey{proto: ICMP, ini: ini}
	if f, ok := n.flows.get(key).(*pingFlow); ok {
		return f, nil
	}
	if n.flows.full(ICMP) {
		return nil, errFlowLimit
	}
	family, proto := unix.AF_INET, unix.IPPROTO_ICMP
	if ini.Addr().Is6() {
		family, proto = unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if err != nil {
		return nil, fmt.Errorf("open a ping socket: %w", os.NewSyscallError("socket", err))
	}
	file := os.NewFile(uintptr(fd), "ping")
	conn, err := net.FilePacketConn(file)
	_ = file.Close() // conn has a duplicate
	if err != nil {
		return nil, fmt.Errorf("open a ping socket: %w", err)
	}
	f := &pingFlow{flow: flow{key: key}, n: n}
	f.socket, err = newHostSocket(conn.(*net.UDPConn), ini.Addr().Is6(), f)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	if err := n.flows.add(f); err != nil {
		f.socket.close()
		return nil, err
	}
	n.running.Go(f.run)
	return f, nil
}

func (f *pingFlow) run() {
	f.socket.receive()
	f.n.flows.remove(f)
	f.socket.close()
}

// datagram implements receiver: an echo reply.
func (f *pingFlow) datagram(from netip.AddrPort, msg []byte) {
	guest := f.key.ini
	from, ok := f.n.policy.guestView(ICMP, netip.AddrPortFrom(from.Addr(), 0))
	if !ok || len(msg) < icmpBytes || msg[0] != icmpOf(guest.Addr()).echoReply {
		return
	}
	f.n.flows.touch(&f.flow, f.n.limits.ping)
	f.guestBytes.Add(uint64(len(msg)))
	binary.BigEndian.PutUint16(msg[4:], guest.Port())
	f.n.sendICMP(from.Addr(), guest.Addr(), msg, defaultHops)
}

// icmpError implements receiver.
func (f *pingFlow) icmpError(e icmpError) {
	to, ok := f.n.policy.guestView(ICMP, netip.AddrPortFrom(e.to.Addr(), 0))
	if !ok {
		return
	}
	// The kernel gives back the ICMP header that was sent: sequence number and all.
	guest := f.key.ini
	var echo [8]byte
	copy(echo[:], e.data)
	binary.BigEndian.PutUint16(echo[4:], guest.Port())
	e.quote = quoteHeaders(icmpOf(guest.Addr()).proto, guest.Addr(), to.Addr(), echo)
	f.n.forwardICMPError(e, guest.Addr())
}

// forwardICMPError gives an error that the host's network reported to the guest, in the name of who reported it.
func (n *Network) forwardICMPError(e icmpError, guest netip.Addr) {
	from := e.from
	// No guest takes a packet from a loopback address, and one from its own network would be a lie.
	if from.BitLen() != guest.BitLen() || from.IsLoopback() || !n.policy.open(ICMP, from, 0) {
		from = gatewayOf(guest)
	}
	n.sendICMPError(from, guest, e.kind, e.code, e.info, e.quote)
}

// packetQuote is what an ICMP error quotes of the packet that the guest has sent: the IP header, without options, and
// the 8 bytes after it (RFC 792), by which the guest finds the socket.
type packetQuote struct {
	b [header.IPv6MinimumSize + 8]byte
	n int
}

func (q *packetQuote) source() netip.Addr {
	if q.b[0]>>4 == header.IPv4Version {
		return netip.AddrFrom4([4]byte(q.b[12:]))
	}
	return netip.AddrFrom16([16]byte(q.b[8:]))
}

// quote takes the quote from a packet.
func quote(pkt *stack.PacketBuffer) (q packetQuote) {
	ip := pkt.NetworkHeader().Slice()
	if pkt.NetworkProtocolNumber == header.IPv4ProtocolNumber {
		q.n = copy(q.b[:], ip[:header.IPv4MinimumSize])
		q.b[0] = header.IPv4Version<<4 | header.IPv4MinimumSize/4
	} else {
		q.n = copy(q.b[:], ip[:header.IPv6MinimumSize])
		header.IPv6(q.b[:]).SetNextHeader(uint8(pkt.TransportProtocolNumber))
	}
	copy(q.b[q.n:], pkt.TransportHeader().Slice())
	q.n += 8
	return q
}

// quoteHeaders makes the quote of a packet that is not at hand any more.
func quoteHeaders(proto tcpip.TransportProtocolNumber, src, dst netip.Addr, first8 [8]byte) (q packetQuote) {
	if src.Is4() {
		q.n = header.IPv4MinimumSize
		header.IPv4(q.b[:]).Encode(&header.IPv4Fields{
			TotalLength: uint16(q.n + len(first8)),
			TTL:         defaultHops,
			Protocol:    uint8(proto),
			SrcAddr:     stackAddr(src),
			DstAddr:     stackAddr(dst),
		})
	} else {
		q.n = header.IPv6MinimumSize
		header.IPv6(q.b[:]).Encode(&header.IPv6Fields{
			PayloadLength:     uint16(len(first8)),
			TransportProtocol: proto,
			HopLimit:          defaultHops,
			SrcAddr:           stackAddr(src),
			DstAddr:           stackAddr(dst),
		})
	}
	q.n += copy(q.b[q.n:], first8[:])
	return q
}

// quoteTCP quotes a SYN. Receivers check the sequence number (RFC 5927).
func quoteTCP(src, dst netip.AddrPort, seq uint32) packetQuote {
	var b [8]byte
	binary.BigEndian.PutUint16(b[0:], src.Port())
	binary.BigEndian.PutUint16(b[2:], dst.Port())
	binary.BigEndian.PutUint32(b[4:], seq)
	return quoteHeaders(header.TCPProtocolNumber, src.Addr(), dst.Addr(), b)
}

// quoteUDP quotes a datagram of the given payload size in bytes.
func quoteUDP(src, dst netip.AddrPort, size int) packetQuote {
	var b [8]byte
	binary.BigEndian.PutUint16(b[0:], src.Port())
	binary.BigEndian.PutUint16(b[2:], dst.Port())
	binary.BigEndian.PutUint16(b[4:], uint16(header.UDPMinimumSize+size))
	return quoteHeaders(header.UDPProtocolNumber, src.Addr(), dst.Addr(), b)
}

// sendUnreachable tells the guest, as its router, that what it sent cannot be delivered.
func (n *Network) sendUnreachable(why reason, q packetQuote) {
	numbers := icmpOf(q.source())
	n.sendGatewayError(numbers.unreachable, numbers.codes[why], 0, q)
}

// sendHopsExceeded tells the guest, as its router, that the hop limit of its packet ends here.
func (n *Network) sendHopsExceeded(q packetQuote) {
	numbers := icmpOf(q.source())
	n.sendGatewayError(numbers.timeExceeded, numbers.hopsExceeded, 0, q)
}

// sendTooBig tells the guest, as its router, that its packet is above the MTU in bytes of the way, and must not be
// fragmented.
func (n *Network) sendTooBig(mtu int, q packetQuote) {
	numbers := icmpOf(q.source())
	n.sendGatewayError(numbers.tooBig, numbers.tooBigCode, uint32(mtu), q)
}

func (n *Network) sendGatewayError(kind, code uint8, info uint32, q packetQuote) {
	guest := q.source()
	n.sendICMPError(gatewayOf(guest), guest, kind, code, info, q)
}

// sendICMPError sends an ICMP error. info is the second word of the header.
func (n *Network) sendICMPError(from, to netip.Addr, kind, code uint8, info uint32, q packetQuote) {
	var msg [icmpBytes + len(q.b)]byte
	msg[0], msg[1] = kind, code
	binary.BigEndian.PutUint32(msg[4:], info)
	copy(msg[icmpBytes:], q.b[:q.n])
	n.sendICMP(from, to, msg[:icmpBytes+q.n], defaultHops)
}

// sendICMP sends a whole message to the guest. The checksum is set here. It never waits: ICMP is what the link may
// drop.
func (n *Network) sendICMP(from, to netip.Addr, msg []byte, hops uint8) {
	r, err := n.routeToGuest(from, to)
	if err != nil {
		return
	}
	defer r.Release()
	proto := icmpOf(to).proto
	var sum uint16
	if to.Is6() {
		sum = header.PseudoHeaderChecksum(proto, r.LocalAddress(), r.RemoteAddress(), uint16(len(msg)))
	}
	msg[2], msg[3] = 0, 0
	binary.BigEndian.PutUint16(msg[2:], ^checksum.Checksum(msg, sum))
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: int(r.MaxHeaderLength()),
		Payload:            buffer.MakeWithData(msg),
	})
	defer pkt.DecRef()
	pkt.TransportProtocolNumber = proto
	_ = r.WritePacket(stack.NetworkHeaderParams{Protocol: proto, TTL: hops, TOS: stack.DefaultTOS}, pkt)
}

// refusedByGuest reads an ICMP error of the guest, from its IP header on, and tells the flow that it is about.
func (n *Network) refusedByGuest(packet []byte) {
	ini, guest, ok := quotedUDP(packet)
	if !ok {
		return
	}
	if f, ok := n.flows.get(flowKey{proto: UDP, ini: ini, tgt: guest}).(unreachable); ok {
		f.guestUnreachable()
	}
}

// quotedUDP returns the source and the destination of the datagram that a destination-unreachable message is about.
// packet is an IP packet of either family whose header says ICMP.
func quotedUDP(packet []byte) (src, dst netip.AddrPort, ok bool) {
	msg, _, ok := cutIP(packet)
	if !ok || len(msg) < icmpBytes {
		return src, dst, false
	}
	numbers := &icmp4
	if packet[0]>>4 == header.IPv6Version {
		numbers = &icmp6
	}
	if msg[0] != numbers.unreachable {
		return src, dst, false
	}
	quoted := msg[icmpBytes:]
	datagram, proto, ok := cutIP(quoted)
	if !ok || quoted[0]>>4 != packet[0]>>4 || proto != header.UDPProtocolNumber || len(datagram) < 4 {
		return src, dst, false
	}
	var from, to tcpip.Address
	if quoted[0]>>4 == header.IPv4Version {
		from, to = header.IPv4(quoted).SourceAddress(), header.IPv4(quoted).DestinationAddress()
	} else {
		from, to = header.IPv6(quoted).SourceAddress(), header.IPv6(quoted).DestinationAddress()
	}
	udp := header.UDP(datagram)
	return addrPort(from, udp.SourcePort()), addrPort(to, udp.DestinationPort()), true
}

// cutIP cuts the header off an IP packet of either family, which may itself be cut short behind it. It reports false
// for fragments other than the first of IPv4. Extension headers of IPv6 are not followed: we send none but those of
// fragments, and neighbor discovery has none (RFC 6980).
func cutIP(packet []byte) (payload []byte, proto tcpip.TransportProtocolNumber, ok bool) {
	switch {
	case len(packet) >= header.IPv4MinimumSize && packet[0]>>4 == header.IPv4Version:
		ip := header.IPv4(packet)
		size := int(ip.HeaderLength())
		if size < header.IPv4MinimumSize || size > len(packet) || ip.FragmentOffset() != 0 {
			return nil, 0, false
		}
		return packet[size:], ip.TransportProtocol(), true
	case len(packet) >= header.IPv6MinimumSize && packet[0]>>4 == header.IPv6Version:
		return packet[header.IPv6MinimumSize:], tcpip.TransportProtocolNumber(header.IPv6(packet).NextHeader()), true
	}
	return nil, 0, false
}
