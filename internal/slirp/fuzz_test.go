package slirp

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// fuzzBridge is a bridge that reaches two servers of its own on the loopback, both at one port, and nothing else. It has
// a client of a forwarded UDP port, which is also of our own.
func fuzzBridge(f *testing.F) (b *bridge, server uint16, client net.PacketConn) {
	tcp := listenHost(f)
	server = port(tcp.Addr())
	udp, err := net.ListenPacket("udp4", tcp.Addr().String())
	if err != nil {
		f.Fatal(err)
	}
	client, err = net.ListenPacket("udp4", "127.0.0.1:0") // what is sent to it stays unread
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { client.Close() })
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	})
	serving.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := udp.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				udp.WriteTo(buf[:n], from)
			}
		}
	})
	f.Cleanup(func() { tcp.Close(); udp.Close(); serving.Wait() })
	b = newBridge(f, Options{
		Policy: Policy{
			Allow: []Rule{{Prefix: netip.PrefixFrom(GatewayAddr, 32), First: server, Last: server}},
			Deny:  rules("0.0.0.0/0", "::/0"),
		},
		Forwards: []Forward{{Proto: UDP, Host: netip.AddrPortFrom(loopback4, 0), Guest: 53}},
	}, func(n *Network) {
		// Flows come and go.
		n.limits.flows = [numProtos]int{TCP: 64, UDP: 16, ICMP: 4}
		n.limits.pendingSYNs = 64
		n.limits.udpNew, n.limits.udpAnswered, n.limits.udpDNS = 20*time.Millisecond, 20*time.Millisecond, 10*time.Millisecond
		n.limits.sweep = 10 * time.Millisecond
	})
	return b, server, client
}

// ethernet is a frame of the guest.
func ethernet(proto tcpip.NetworkProtocolNumber, packet []byte) []byte {
	b := make([]byte, header.EthernetMinimumSize, header.EthernetMinimumSize+len(packet))
	header.Ethernet(b).Encode(&header.EthernetFields{
		SrcAddr: linkAddress(GuestMAC), DstAddr: linkAddress(GatewayMAC), Type: proto,
	})
	return append(b, packet...)
}

// fragment makes a fragment of an IPv4 packet.
func fragment(packet []byte, more bool, offset uint16) []byte {
	p := append([]byte(nil), packet...)
	var flags uint8
	if more {
		flags = header.IPv4FlagMoreFragments
	}
	header.IPv4(p).SetFlagsFragmentOffset(flags, offset)
	header.IPv4(p).SetChecksum(0)
	header.IPv4(p).SetChecksum(^header.IPv4(p).CalculateChecksum())
	return p
}

// packetSeeds are packets of each kind that the bridge takes from the guest.
func packetSeeds(server uint16, client uint16) (seeds [][]byte) {
	add := func(p ...[]byte) { seeds = append(seeds, p...) }
	for _, e := range ends {
		from, numbers := netip.AddrPortFrom(e.guest, 4000), icmpOf(e.guest)
		gatewayAt := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(e.gateway, port) }
		add(synPacket(from, gatewayAt(server)), synPacket(from, gatewayAt(1)), synPacket(from, netip.AddrPortFrom(e.outside, 80)))
		dns := DNSAddr
		if e.guest.Is6() {
			dns = DNSAddr6
		}
		query := "\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04host\x03uml\x08internal\x00\x00\x01\x00\x01"
		for _, to := range []netip.AddrPort{
			gatewayAt(server), gatewayAt(1), gatewayAt(67), netip.AddrPortFrom(dns, 53), netip.AddrPortFrom(e.outside, 33434),
		} {
			for _, hops := range []uint8{1, 2, 64} {
				add(udpPacket(from, to, hops, hops == 2, query))
			}
		}
		answer := udpPacket(netip.AddrPortFrom(e.guest, 53), gatewayAt(client), 64, false, "answer")
		add(answer)
		for _, to := range []netip.Addr{e.gateway, dns, e.outside} {
			add(echoPacket(from, to, 64, 1), echoPacket(from, to, 1, 1))
		}
		// Errors about what we have sent.
		sent := udpPacket(gatewayAt(client), netip.AddrPortFrom(e.guest, 53), 64, false, "query")
		segment := ipPacket(header.TCPProtocolNumber, e.gateway, e.guest, 64, false, make([]byte, header.TCPMinimumSize))
		for _, quoted := range [][]byte{sent, segment, sent[:len(sent)-10], nil} {
			for _, k := range []struct{ kind, code uint8 }{
				{numbers.unreachable, 3},
				{numbers.unreachable, 4},
				{numbers.tooBig, numbers.tooBigCode},
				{numbers.timeExceeded, numbers.hopsExceeded},
			} {
				add(icmpPacket(e.guest, e.gateway, 64, append([]byte{k.kind, k.code, 0, 0, 0, 0, 5, 0}, quoted...)))
			}
		}
		add(ipPacket(132, e.guest, e.gateway, 64, false, make([]byte, 20))) // SCTP: a protocol that we do not know
	}
	add(
		solicitation(GuestAddr6, GatewayAddr6),
		solicitation(netip.IPv6Unspecified(), GuestAddr6),
		icmpPacket(guestLinkLocal, allRouters, neighborHopLimit, []byte{133, 0, 0, 0, 0, 0, 0, 0}),
	)
	// Fragments, of IPv6 with its extension header.
	whole := udpPacket(netip.AddrPortFrom(GuestAddr, 4000), netip.AddrPortFrom(GatewayAddr, server), 64, false, strings.Repeat("x", 64))
	first := append([]byte(nil), whole[:header.IPv4MinimumSize+32]...)
	header.IPv4(first).SetTotalLength(uint16(len(first)))
	last := append(append([]byte(nil), whole[:header.IPv4MinimumSize]...), whole[header.IPv4MinimumSize+32:]...)
	header.IPv4(last).SetTotalLength(uint16(len(last)))
	add(fragment(first, true, 0), fragment(last, false, 32), fragment(last, true, 65528))
	add(ipPacket(header.IPv6FragmentHeader, GuestAddr6, GatewayAddr6, 64, false,
		append([]byte{uint8(header.UDPProtocolNumber), 0, 0, 1, 0, 0, 0, 1}, whole[header.IPv4MinimumSize:]...)))
	add(ipPacket(0, GuestAddr6, GatewayAddr6, 64, false, // hop-by-hop options
		append([]byte{uint8(header.UDPProtocolNumber), 0, 1, 4, 0, 0, 0, 0}, whole[header.IPv4MinimumSize:]...)))
	return seeds
}

// FuzzGuestPacket sends frames of the guest through the link to a whole bridge: the filter, netstack, and the handlers of
// TCP, UDP, ICMP and neighbour discovery. It has servers of its own on the loopback; all else is denied, so nothing leaves
// this machine.
func FuzzGuestPacket(f *testing.F) {
	b, server, client := fuzzBridge(f)
	arp := make([]byte, header.ARPSize)
	header.ARP(arp).SetIPv4OverEthernet()
	header.ARP(arp).SetOp(header.ARPRequest)
	copy(header.ARP(arp).ProtocolAddressTarget(), GatewayAddr.AsSlice())
	f.Add(ethernet(header.ARPProtocolNumber, arp), false)
	for _, p := range packetSeeds(server, port(client.LocalAddr())) {
		proto := header.IPv4ProtocolNumber
		if p[0]>>4 == header.IPv6Version {
			proto = header.IPv6ProtocolNumber
		}
		f.Add(ethernet(proto, p), false)
		for cut := 1; cut < len(p); cut += 9 {
			f.Add(ethernet(proto, p[:cut]), true)
		}
	}
	// A ping behind each frame: when it is answered, the frame has been dealt with.
	answered := make(chan uint16, 100)
	b.guest.Watch(func(packet []byte) {
		msg, proto, ok := cutIP(packet)
		if ok && proto == header.ICMPv4ProtocolNumber && len(msg) >= icmpBytes && msg[0] == icmp4.echoReply {
			select {
			case answered <- binary.BigEndian.Uint16(msg[6:]):
			default:
			}
		}
	})
	sequence := uint16(0)
	mark := netip.AddrPortFrom(GuestAddr, 0x6d61)
	forwarded := udpAddr(boundAddr(f, b.ports.all[0]))
	f.Fuzz(func(t *testing.T, frame []byte, complete bool) {
		if len(frame) > 1<<16 {
			return
		}
		if complete {
			completeICMP(frame)
		}
		if sequence++; sequence%64 == 1 { // the flow of the client, which expires
			client.WriteTo([]byte("query"), forwarded)
		}
		b.guest.NIC.Send(make([]byte, 12), frame)
		b.guest.SendIP(echoPacket(mark, GatewayAddr, 64, sequence))
		for end := time.After(hang); ; {
			select {
			case got := <-answered:
				if got == sequence {
					return
				}
			case <-end:
				t.Fatal("the gateway does not answer pings any more")
			}
		}
	})
}

// completeICMP gives an ICMP message the right checksum, which random changes would never hit. Those of IP, TCP and UDP
// are not looked at: the link has none.
func completeICMP(frame []byte) {
	if len(frame) < header.EthernetMinimumSize {
		return
	}
	packet := frame[header.EthernetMinimumSize:]
	msg, proto, ok := cutIP(packet)
	if !ok || len(msg) < 4 {
		return
	}
	var sum uint16
	switch proto {
	case header.ICMPv4ProtocolNumber:
	case header.ICMPv6ProtocolNumber:
		if packet[0]>>4 != header.IPv6Version {
			return
		}
		ip := header.IPv6(packet)
		sum = header.PseudoHeaderChecksum(proto, ip.SourceAddress(), ip.DestinationAddress(), uint16(len(msg)))
	default:
		return
	}
	msg[2], msg[3] = 0, 0
	binary.BigEndian.PutUint16(msg[2:], ^checksum.Checksum(msg, sum))
}

// controlMessage is a control message of the kernel's.
func controlMessage(level, kind int32, data []byte) []byte {
	b := make([]byte, unix.CmsgSpace(len(data)))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = level, kind
	h.SetLen(unix.CmsgLen(len(data)))
	copy(b[unix.CmsgLen(0):], data)
	return b
}

// aligned copies what the kernel would have written to where it would have: at an address that fits the header.
func aligned(oob []byte) []byte {
	words := make([]uint64, len(oob)/8+1)
	b := unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), len(oob))
	copy(b, oob)
	return b
}

// FuzzParsePktInfo feeds control messages. What comes out of the parser must be an address to answer from.
func FuzzParsePktInfo(f *testing.F) {
	f.Add(controlMessage(unix.SOL_IP, unix.IP_PKTINFO, []byte{1, 0, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1}))
	f.Add(controlMessage(unix.SOL_IP, unix.IP_PKTINFO, []byte{1, 0, 0, 0, 224, 0, 0, 1, 224, 0, 0, 1}))
	f.Add(controlMessage(unix.SOL_IPV6, unix.IPV6_PKTINFO, append(GuestAddr6.AsSlice(), 1, 0, 0, 0)))
	f.Add(controlMessage(unix.SOL_IPV6, unix.IPV6_PKTINFO, []byte{1}))
	f.Add(append(controlMessage(unix.SOL_SOCKET, unix.SO_TIMESTAMP, make([]byte, 16)),
		controlMessage(unix.SOL_IP, unix.IP_PKTINFO, []byte{1, 0, 0, 0, 10, 0, 0, 1, 10, 0, 0, 1})...))
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, oob []byte) {
		if a := parsePktInfo(aligned(oob)); a.IsValid() && a.Unmap().IsMulticast() {
			t.Errorf("parsePktInfo(%x) = %s", oob, a)
		}
	})
}

// FuzzParseExtendedError feeds control messages that come with an error.
func FuzzParseExtendedError(f *testing.F) {
	extended := func(origin, kind, code uint8, info uint32, offender []byte) []byte {
		ee := unix.SockExtendedErr{Errno: uint32(unix.ECONNREFUSED), Origin: origin, Type: kind, Code: code, Info: info}
		return append(append([]byte(nil), (*[unsafe.Sizeof(ee)]byte)(unsafe.Pointer(&ee))[:]...), offender...)
	}
	v4 := make([]byte, unix.SizeofSockaddrInet4)
	binary.NativeEndian.PutUint16(v4, unix.AF_INET)
	copy(v4[4:], GatewayAddr.AsSlice())
	v6 := make([]byte, unix.SizeofSockaddrInet6)
	binary.NativeEndian.PutUint16(v6, unix.AF_INET6)
	copy(v6[8:], GatewayAddr6.AsSlice())
	f.Add(controlMessage(unix.SOL_IP, unix.IP_RECVERR, extended(unix.SO_EE_ORIGIN_ICMP, 3, 3, 0, v4)))
	f.Add(controlMessage(unix.SOL_IP, unix.IP_RECVERR, extended(unix.SO_EE_ORIGIN_ICMP, 3, 4, 1300, v4[:8])))
	f.Add(controlMessage(unix.SOL_IP, unix.IP_RECVERR, extended(unix.SO_EE_ORIGIN_LOCAL, 0, 0, 1300, v4)))
	f.Add(controlMessage(unix.SOL_IPV6, unix.IPV6_RECVERR, extended(unix.SO_EE_ORIGIN_ICMP6, 2, 0, 1300, v6)))
	f.Add(controlMessage(unix.SOL_IPV6, unix.IPV6_RECVERR, extended(unix.SO_EE_ORIGIN_ICMP6, 1, 4, 0, nil)))
	f.Add(controlMessage(unix.SOL_IPV6, unix.IPV6_RECVERR, []byte{1, 2, 3}))
	f.Fuzz(func(t *testing.T, oob []byte) {
		e, err := parseExtendedError(aligned(oob))
		if err == nil && e.from.Is4() && e.info > 0xffff {
			t.Errorf("parseExtendedError(%x) = %+v", oob, e)
		}
	})
}
