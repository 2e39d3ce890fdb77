package slirp

import (
	"encoding/binary"
	"net"
	"net/netip"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// Theory of operation
//
// Neighbor discovery (RFC 4861) is answered here and not by netstack, which would claim every address that the guest
// asks for (promiscuous mode and spoofing), so that the guest's duplicate address detection would fail, and deny that
// it is a router, whereupon a Linux guest drops its default route.
//
// The guest's init gets its addresses and routes configured before it starts, and needs none of this. Router
// advertisements are for user lands that configure the NIC again: prefix, MTU and name server, and a default route if
// the host has one for IPv6. A router without one must not claim to be one (RFC 7084, G-4): the guest would wait for
// nothing. They answer a solicitation, and after the first one are repeated, so that they do not expire.
//
// They say that addresses are managed (DHCPv6) besides: forwarded ports lead to GuestAddr6, and a user land that takes
// the NIC over, such as systemd-networkd or NetworkManager, would otherwise leave it with an address of its own making
// alone. One without a DHCPv6 client still makes itself one.

const (
	neighborSolicitBytes  = 24 // without options
	neighborAdvertBytes   = 24
	routerAdvertBytes     = 16
	linkAddressOptionType = 1 // source; 2 is target
	prefixOptionType      = 3
	mtuOptionType         = 5
	dnsOptionType         = 25 // RFC 8106

	// Lifetimes by RFC 4861 section 6.2.1 and RFC 8106 section 5.1.
	routerLifetime   = 30 * time.Minute
	prefixValid      = 30 * 24 * time.Hour
	prefixPreferred  = 7 * 24 * time.Hour
	prefixOnLink     = 0x80
	prefixAutonomous = 0x40
	routerManaged    = 0x80
	advertRouter     = 0x80
	advertSolicited  = 0x40
	advertOverride   = 0x20
	neighborHopLimit = header.NDPHopLimit
)

var allNodes = netip.MustParseAddr("ff02::1")

// handleNDP takes the guest's neighbor discovery out of its packets: it reports whether packet, from its IPv6 header
// on, was that. It is called by the link's reader.
func (n *Network) handleNDP(packet []byte) bool {
	msg, proto, ok := cutIP(packet)
	if !ok || proto != header.ICMPv6ProtocolNumber || len(msg) < icmpBytes {
		return false
	}
	kind := header.ICMPv6Type(msg[0])
	if kind < header.ICMPv6RouterSolicit || kind > header.ICMPv6RedirectMsg {
		return false
	}
	ip := header.IPv6(packet)
	if ip.HopLimit() != neighborHopLimit || msg[1] != 0 {
		return true // not from this link, or of no known kind
	}
	guest := goAddr(ip.SourceAddress())
	switch kind {
	case header.ICMPv6NeighborSolicit:
		if len(msg) >= neighborSolicitBytes {
			n.advertiseNeighbor(netip.AddrFrom16([16]byte(msg[8:])), guest)
		}
	case header.ICMPv6RouterSolicit:
		n.soliciting.Store(true)
		n.advertiseRouter(guest)
	}
	return true
}

// advertiseNeighbor tells a guest the gateway's link address, if target is the gateway's.
func (n *Network) advertiseNeighbor(target, guest netip.Addr) {
	if !isOurs(target) {
		return
	}
	flags := byte(advertRouter | advertOverride | advertSolicited)
	if guest.IsUnspecified() { // duplicate address detection: it wants one of ours (RFC 4861 section 7.2.4)
		guest, flags = allNodes, advertRouter|advertOverride
	}
	msg := make([]byte, neighborAdvertBytes, neighborAdvertBytes+8)
	msg[0], msg[4] = uint8(header.ICMPv6NeighborAdvert), flags
	copy(msg[8:], target.AsSlice())
	n.sendICMP(target, guest, appendLinkAddress(msg, linkAddressOptionType+1), neighborHopLimit)
}

// advertiseRouter sends a router advertisement to a guest's address.
func (n *Network) advertiseRouter(guest netip.Addr) {
	if guest.IsUnspecified() {
		guest = allNodes
	}
	n.sendICMP(GatewayLinkLocal, guest, routerAdvert(uint32(n.link.MTU()), hostRoutesIPv6()), neighborHopLimit)
}

// routerAdvert makes a router advertisement. isRouter says that there is a way out.
func routerAdvert(mtu uint32, isRouter bool) []byte {
	msg := make([]byte, routerAdvertBytes, 128)
	msg[0], msg[4], msg[5] = uint8(header.ICMPv6RouterAdvert), defaultHops, routerManaged
	if isRouter {
		binary.BigEndian.PutUint16(msg[6:], uint16(routerLifetime.Seconds()))
	}
	msg = appendLinkAddress(msg, linkAddressOptionType)
	msg = append(msg, mtuOptionType, 1, 0, 0)
	msg = binary.BigEndian.AppendUint32(msg, mtu)
	msg = append(msg, prefixOptionType, 4, PrefixBits6, prefixOnLink|prefixAutonomous)
	msg = binary.BigEndian.AppendUint32(msg, uint32(prefixValid.Seconds()))
	msg = binary.BigEndian.AppendUint32(msg, uint32(prefixPreferred.Seconds()))
	msg = append(msg, 0, 0, 0, 0)
	msg = append(msg, guestNet6.Addr().AsSlice()...)
	msg = append(msg, dnsOptionType, 3, 0, 0)
	msg = binary.BigEndian.AppendUint32(msg, uint32(routerLifetime.Seconds()))
	return append(msg, DNSAddr6.AsSlice()...)
}

// appendLinkAddress appends an option with the gateway's link address.
func appendLinkAddress(msg []byte, kind uint8) []byte {
	return append(append(msg, kind, 1), GatewayMAC...)
}

// hostRoutesIPv6 says whether the host has a route and an address for IPv6 outside. Connecting a UDP socket asks its
// kernel that, and sends nothing.
func hostRoutesIPv6() bool {
	conn, err := net.Dial("udp6", "[2000::1]:9")
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// advertiseAgain repeats the router advertisement to a guest that has asked for one.
func (n *Network) advertiseAgain() {
	if n.soliciting.Load() {
		n.advertiseRouter(allNodes)
	}
}
