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
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// Theory of operation
//
// Netstack answers pings to the gateway's addresses. A ping to any other address is sent by the host, through an
// unprivileged ping socket (net.ipv4.ping_group_range; Docker opens it to all), one per identifier that the guest
// uses, and the answer goes back with the guest's identifier in place of the kernel's. Where such sockets are not to
// be had, the guest is told that ping is prohibited. It never gets an answer that nobody sent.
//
// Errors of the host's network travel back as the ICMP messages that they were (hostsocket.go reads them), quoting
// the guest's packet.

// handleICMP gets what is sent to any address. On false netstack answers itself, if the address is its own.
func (n *Network) handleICMP(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	hdr := header.ICMPv4(pkt.TransportHeader().Slice())
	if len(hdr) < header.ICMPv4MinimumSize || hdr.Type() != header.ICMPv4Echo {
		return true
	}
	target := netip.AddrFrom4(id.LocalAddress.As4())
	if isOurs(target) {
		return false
	}
	ini := netip.AddrPortFrom(netip.AddrFrom4(id.RemoteAddress.As4()), hdr.Ident())
	if !n.policy.open(target) {
		n.stats.policyClosed.Add(1)
		if target.IsMulticast() || target == guestBroadcast || target == limitedBroadcast {
			return true
		}
		n.sendUnreachable(header.ICMPv4HostProhibited, quote(pkt))
		return true
	}
	f, err := n.pingFlow(ini)
	if err != nil {
		n.log.Debug().Stringer("proto", icmpEcho).Stringer("ini", ini).Stringer("tgt", target).Err(err).Msg("ping refused")
		n.sendUnreachable(header.ICMPv4AdminProhibited, quote(pkt))
		return true
	}
	n.flows.touch(&f.flow, n.limits.ping)
	// The message as it came, but for the identifier and the checksum, which the host's kernel sets.
	data, _ := pkt.Data().PullUp(pkt.Data().Size())
	f.socket.send(netip.AddrPortFrom(target, 0), hdr, data)
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
	key := flowKey{proto: icmpEcho, ini: ini}
	if f, ok := n.flows.get(key).(*pingFlow); ok {
		return f, nil
	}
	if n.flows.full(icmpEcho) {
		return nil, errFlowLimit
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_ICMP)
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
	f.socket, err = newHostSocket(conn.(*net.UDPConn), f)
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
	if len(msg) < header.ICMPv4MinimumSize {
		return
	}
	hdr := header.ICMPv4(msg)
	from, ok := f.n.policy.guestView(netip.AddrPortFrom(from.Addr(), 1))
	if !ok || hdr.Type() != header.ICMPv4EchoReply {
		return
	}
	f.n.flows.touch(&f.flow, f.n.limits.ping)
	hdr.SetIdent(f.key.ini.Port())
	f.n.sendICMP(from.Addr(), f.key.ini.Addr(), hdr)
}

// icmpError implements receiver.
func (f *pingFlow) icmpError(e icmpError) {
	to, ok := f.n.policy.guestView(netip.AddrPortFrom(e.to.Addr(), 1))
	if !ok {
		return
	}
	// The kernel gives back the ICMP header that was sent: sequence number and all.
	var echo [8]byte
	copy(echo[:], e.data)
	binary.BigEndian.PutUint16(echo[4:], f.key.ini.Port())
	e.quote = quoteHeaders(header.ICMPv4ProtocolNumber, f.key.ini.Addr(), to.Addr(), echo)
	f.n.forwardICMPError(e, f.key.ini.Addr())
}

// forwardICMPError gives an error that the host's network reported to the guest, in the name of who reported it.
func (n *Network) forwardICMPError(e icmpError, guest netip.Addr) {
	from := e.from
	if !from.Is4() || from.IsLoopback() || !n.policy.open(from) {
		from = GatewayAddr // no guest takes a packet from a loopback address
	}
	n.sendICMPError(from, guest, e.kind, e.code, e.info, e.quote)
}

// quoteBytes is an IPv4 header without options and the 8 bytes after it: what an ICMP error has to quote (RFC 792).
const quoteBytes = header.IPv4MinimumSize + 8

// packetQuote is the beginning of a packet that the guest has sent.
type packetQuote [quoteBytes]byte

func (q *packetQuote) source() netip.Addr { return netip.AddrFrom4([4]byte(q[12:16])) }

// quote takes the quote from a packet.
func quote(pkt *stack.PacketBuffer) packetQuote {
	var q packetQuote
	copy(q[:], pkt.NetworkHeader().Slice()[:header.IPv4MinimumSize])
	q[0] = 0x45 // options are left out
	copy(q[header.IPv4MinimumSize:], pkt.TransportHeader().Slice())
	return q
}

// quoteHeaders makes the quote of a packet that is not at hand any more.
func quoteHeaders(proto tcpip.TransportProtocolNumber, src, dst netip.Addr, first8 [8]byte) packetQuote {
	var q packetQuote
	header.IPv4(q[:]).Encode(&header.IPv4Fields{
		TotalLength: quoteBytes,
		TTL:         64,
		Protocol:    uint8(proto),
		SrcAddr:     tcpip.AddrFrom4(src.As4()),
		DstAddr:     tcpip.AddrFrom4(dst.As4()),
	})
	copy(q[header.IPv4MinimumSize:], first8[:])
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
func (n *Network) sendUnreachable(code header.ICMPv4Code, q packetQuote) {
	n.sendICMPError(GatewayAddr, q.source(), header.ICMPv4DstUnreachable, code, 0, q)
}

// sendICMPError sends an ICMP error. info is the second word of the header: the MTU of a "fragmentation needed".
func (n *Network) sendICMPError(
	from, to netip.Addr, kind header.ICMPv4Type, code header.ICMPv4Code, info uint32, q packetQuote,
) {
	var msg [header.ICMPv4MinimumSize + quoteBytes]byte
	hdr := header.ICMPv4(msg[:])
	hdr.SetType(kind)
	hdr.SetCode(code)
	binary.BigEndian.PutUint32(msg[4:], info)
	copy(msg[header.ICMPv4MinimumSize:], q[:])
	n.sendICMP(from, to, hdr)
}

// sendICMP sends a whole message to the guest. The checksum is set here. It never waits: ICMP is what the link may
// drop.
func (n *Network) sendICMP(from, to netip.Addr, msg header.ICMPv4) {
	msg.SetChecksum(0)
	msg.SetChecksum(^checksum.Checksum(msg, 0))
	r, err := n.routeToGuest(from, to)
	if err != nil {
		return
	}
	defer r.Release()
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: int(r.MaxHeaderLength()),
		Payload:            buffer.MakeWithData(msg),
	})
	defer pkt.DecRef()
	pkt.TransportProtocolNumber = header.ICMPv4ProtocolNumber
	_ = r.WritePacket(stack.NetworkHeaderParams{
		Protocol: header.ICMPv4ProtocolNumber, TTL: ipv4.DefaultTTL, TOS: stack.DefaultTOS,
	}, pkt)
}
