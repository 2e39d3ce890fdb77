package slirp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// What the fake guest's stack would not send, or would not show, is made and read here by hand.

// ipPacket puts an IP header in front of a payload. whole is IPv4's don't-fragment bit.
func ipPacket(proto tcpip.TransportProtocolNumber, src, dst netip.Addr, hops uint8, whole bool, payload []byte) []byte {
	if src.Is6() {
		p := make([]byte, header.IPv6MinimumSize, header.IPv6MinimumSize+len(payload))
		header.IPv6(p).Encode(&header.IPv6Fields{
			PayloadLength: uint16(len(payload)), TransportProtocol: proto, HopLimit: hops,
			SrcAddr: stackAddr(src), DstAddr: stackAddr(dst),
		})
		return append(p, payload...)
	}
	p := make([]byte, header.IPv4MinimumSize, header.IPv4MinimumSize+len(payload))
	var flags uint8
	if whole {
		flags = header.IPv4FlagDontFragment
	}
	header.IPv4(p).Encode(&header.IPv4Fields{
		TotalLength: uint16(header.IPv4MinimumSize + len(payload)), TTL: hops, Protocol: uint8(proto), Flags: flags,
		SrcAddr: stackAddr(src), DstAddr: stackAddr(dst),
	})
	header.IPv4(p).SetChecksum(^header.IPv4(p).CalculateChecksum())
	return append(p, payload...)
}

// udpPacket is a datagram, without a UDP checksum.
func udpPacket(src, dst netip.AddrPort, hops uint8, whole bool, payload string) []byte {
	p := make([]byte, header.UDPMinimumSize, header.UDPMinimumSize+len(payload))
	header.UDP(p).Encode(&header.UDPFields{
		SrcPort: src.Port(), DstPort: dst.Port(), Length: uint16(header.UDPMinimumSize + len(payload)),
	})
	return ipPacket(header.UDPProtocolNumber, src.Addr(), dst.Addr(), hops, whole, append(p, payload...))
}

// icmpPacket is an ICMP message of either family, with its checksum.
func icmpPacket(src, dst netip.Addr, hops uint8, msg []byte) []byte {
	proto := icmpOf(src).proto
	var sum uint16
	if src.Is6() {
		sum = header.PseudoHeaderChecksum(proto, stackAddr(src), stackAddr(dst), uint16(len(msg)))
	}
	msg[2], msg[3] = 0, 0
	binary.BigEndian.PutUint16(msg[2:], ^checksum.Checksum(msg, sum))
	return ipPacket(proto, src, dst, hops, true, msg)
}

// echoPacket is a ping.
func echoPacket(src netip.AddrPort, dst netip.Addr, hops uint8, sequence uint16) []byte {
	msg := []byte{icmpOf(dst).echo, 0, 0, 0, 0, 0, 0, 0, 'p', 'i', 'n', 'g'}
	binary.BigEndian.PutUint16(msg[4:], src.Port())
	binary.BigEndian.PutUint16(msg[6:], sequence)
	return icmpPacket(src.Addr(), dst, hops, msg)
}

// icmpMessage is an ICMP message that the guest got.
type icmpMessage struct {
	from, to   netip.Addr
	hops       uint8
	kind, code uint8
	info       uint32
	body       []byte // from the word on
}

func (m icmpMessage) String() string {
	return fmt.Sprintf("type %d code %d info %d from %s to %s: %x", m.kind, m.code, m.info, m.from, m.to, m.body)
}

// quotes returns the addresses of the quoted packet and what is quoted of its transport header.
func (m icmpMessage) quotes() (src, dst netip.Addr, proto tcpip.TransportProtocolNumber, transport []byte) {
	quoted := m.body[4:]
	transport, proto, _ = cutIP(quoted)
	if m.from.Is4() {
		return goAddr(header.IPv4(quoted).SourceAddress()), goAddr(header.IPv4(quoted).DestinationAddress()), proto, transport
	}
	return goAddr(header.IPv6(quoted).SourceAddress()), goAddr(header.IPv6(quoted).DestinationAddress()), proto, transport
}

// watchICMP has every ICMP message that reaches the guest put into the channel. It checks their checksums.
func watchICMP(t testing.TB, b *bridge) <-chan icmpMessage {
	seen := make(chan icmpMessage, 100)
	b.guest.Watch(func(packet []byte) {
		msg, proto, ok := cutIP(packet)
		if !ok || len(msg) < icmpBytes || proto != header.ICMPv4ProtocolNumber && proto != header.ICMPv6ProtocolNumber {
			return
		}
		m := icmpMessage{kind: msg[0], code: msg[1], info: binary.BigEndian.Uint32(msg[4:]), body: bytes.Clone(msg[4:])}
		var sum uint16
		if proto == header.ICMPv4ProtocolNumber {
			ip := header.IPv4(packet)
			m.from, m.to, m.hops = goAddr(ip.SourceAddress()), goAddr(ip.DestinationAddress()), ip.TTL()
		} else {
			ip := header.IPv6(packet)
			m.from, m.to, m.hops = goAddr(ip.SourceAddress()), goAddr(ip.DestinationAddress()), ip.HopLimit()
			sum = header.PseudoHeaderChecksum(proto, ip.SourceAddress(), ip.DestinationAddress(), uint16(len(msg)))
		}
		if got := checksum.Checksum(msg, sum); got != 0xffff {
			t.Errorf("%s: checksum is wrong: %x", m, got)
		}
		select {
		case seen <- m:
		default:
		}
	})
	return seen
}

// next is the next message that the guest got.
func next(t testing.TB, seen <-chan icmpMessage) icmpMessage {
	t.Helper()
	select {
	case m := <-seen:
		return m
	case <-time.After(hang):
		t.Fatal("no ICMP message reaches the guest")
		panic("unreachable")
	}
}

// expectICMP checks the next message that the guest gets.
func expectICMP(t testing.TB, seen <-chan icmpMessage, from netip.Addr, kind, code uint8, info uint32) icmpMessage {
	t.Helper()
	m := next(t, seen)
	if m.from != from || m.kind != kind || m.code != code || m.info != info {
		t.Errorf("got %s, want type %d code %d info %d from %s", m, kind, code, info, from)
	}
	return m
}
