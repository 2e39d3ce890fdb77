package slirp

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// Theory of operation
//
// A guest that passes our connections on to networks of its own, with smaller MTUs than the link's, tells us by ICMP:
// "fragmentation needed", or IPv6's "packet too big". Netstack then sends the connection's data anew at once, in the
// goroutine that delivers the message, with the connection's lock held. Both may have to wait for the guest, which the
// link's reader must not; so these messages have a goroutine of their own. A few may wait for it. A guest repeats what
// is lost, whenever it gets a packet that is still too large.

const (
	// waitingTooBig is how many of these messages may wait.
	waitingTooBig = 64
	// minPathMTU is Linux's net.ipv4.route.min_pmtu: a message with less is no truth but an attack on a connection, whose
	// segments would get tiny (RFC 1191 section 3 knows 68).
	minPathMTU = 552
)

// lateDelivery is a packet that the link's reader leaves to another goroutine.
type lateDelivery struct {
	to    stack.NetworkDispatcher
	proto tcpip.NetworkProtocolNumber
	pkt   *stack.PacketBuffer
}

// deliverLater takes over a message about a path's MTU; packet is the whole of pkt. It reports false for others.
func (n *Network) deliverLater(to stack.NetworkDispatcher, proto tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer,
	packet []byte,
) bool {
	msg, _, ok := cutIP(packet)
	if !ok || len(msg) < icmpBytes {
		return false
	}
	numbers, mtu, least := &icmp4, uint32(binary.BigEndian.Uint16(msg[6:])), uint32(minPathMTU)
	if proto == header.IPv6ProtocolNumber {
		numbers, mtu, least = &icmp6, binary.BigEndian.Uint32(msg[4:]), header.IPv6MinimumMTU
	}
	if msg[0] != numbers.tooBig || msg[1] != numbers.tooBigCode {
		return false
	}
	if mtu < least {
		return true
	}
	select {
	case n.late <- lateDelivery{to, proto, pkt.IncRef()}:
	default:
		pkt.DecRef()
	}
	return true
}

// deliverLate delivers what the reader has left until the network ends.
func (n *Network) deliverLate() {
	for {
		select {
		case d := <-n.late:
			d.to.DeliverNetworkPacket(d.proto, d.pkt)
			d.pkt.DecRef()
		case <-n.ctx.Done():
			return
		}
	}
}
