package slirp

import (
	"net/netip"
	"slices"
)

// Theory of operation
//
// The question "may the guest talk to this address?" is asked for every connection and every datagram, in both
// directions, so it is answered from a few prefixes, without a lock or an allocation.
//
// What is closed by default is closed because programs trust whoever reaches it. So a wide rule, which somebody wrote
// with the outside in mind, must not open it by accident: only a rule that lies within a closed range does.
//
// IPv6 has addresses that hold one of IPv4, and a host may have a route for them that ends at it (NAT64, 6to4). They
// are judged as what they hold, too: otherwise they would be a way around all of the rules for IPv4.

// Rule names addresses and ports.
type Rule struct {
	// Protos that it is about; none means all.
	Protos []Proto
	// Prefix of the addresses, masked. IPv4 must not come IPv4-mapped.
	Prefix netip.Prefix
	// First and Last are the ports; 0, 0 is all. ICMP has none: a rule with ports is not about it.
	First, Last uint16
}

// Policy says which addresses of the host's network the guest reaches. What Allow names is open; else, what Deny names
// is closed; else, everything is open that the host reaches, except
//
//   - the host's own loopback, 127.0.0.0/8 and ::1, which holds services that trust whoever can reach them (Docker's
//     resolver, sidecars of a pod), and 0.0.0.0/8 and ::, which Linux takes for loopback;
//   - link-local addresses, 169.254.0.0/16 and fe80::/10, and those of IPv6 where clouds hand out credentials (metadata
//     services);
//   - multicast, broadcast and reserved addresses;
//   - the guest's own network, 10.0.2.0/24 and fd00:10:0:2::/64, where nothing lives but the gateway's own services.
//
// Of these a rule in Allow opens only what it names within one of them: 127.0.0.0/8 opens the loopback, 0.0.0.0/0 does
// not. In the guest's own network there is nothing to open but the gateway: a rule that matches GatewayAddr makes it
// stand for the host's 127.0.0.1, as the classic slirp did, and one that matches GatewayAddr6 does so for ::1.
type Policy struct {
	Allow, Deny []Rule
}

var (
	guestNet  = netip.PrefixFrom(GatewayAddr, PrefixBits).Masked()
	guestNet6 = netip.PrefixFrom(GatewayAddr6, PrefixBits6).Masked()
	loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	loopback6 = netip.IPv6Loopback()

	closed4 = []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/8"),
		netip.MustParsePrefix("127.0.0.0/8"),
		netip.MustParsePrefix("169.254.0.0/16"),
		netip.MustParsePrefix("224.0.0.0/4"),
		netip.MustParsePrefix("240.0.0.0/4"), // with the limited broadcast address
	}
	closed6 = []netip.Prefix{
		netip.MustParsePrefix("::1/128"),
		netip.MustParsePrefix("::/96"),               // the unspecified address, and IPv4-compatible ones
		netip.MustParsePrefix("::ffff:0:0/96"),       // IPv4-mapped: a socket would use IPv4
		netip.MustParsePrefix("::ffff:0:0:0/96"),     // IPv4-translated (RFC 7915)
		netip.MustParsePrefix("fd00:ec2::/32"),       // Amazon's services of an instance, with its metadata
		netip.MustParsePrefix("fd20:ce::254/128"),    // Google's metadata
		netip.MustParsePrefix("fd00:c1::a9fe:0/112"), // Oracle's link-local services, with its metadata
		netip.MustParsePrefix("fe80::/10"),
		netip.MustParsePrefix("ff00::/8"),
	}
	nat64      = netip.MustParsePrefix("64:ff9b::/96")   // RFC 6052
	localNAT64 = netip.MustParsePrefix("64:ff9b:1::/48") // RFC 8215; with its usual form, a /96
	sixToFour  = netip.MustParsePrefix("2002::/16")      // RFC 3056
)

// neverOpen is more bits than any rule has.
const neverOpen = 129

// closedBits returns the length of the prefix that closes addr by default, which is what a rule needs at least to open
// it. 0 is none.
func closedBits(addr netip.Addr) int {
	ranges := closed6
	if addr.Is4() {
		ranges = closed4
	}
	for _, r := range ranges {
		if r.Contains(addr) {
			return r.Bits()
		}
	}
	if guestNet.Contains(addr) || guestNet6.Contains(addr) {
		return neverOpen
	}
	if v4, before := embedded(addr); before > 0 {
		if bits := closedBits(v4); bits > 0 {
			return before + bits
		}
	}
	return 0
}

// embedded returns the IPv4 address that one of IPv6 holds, and how many bits are before it; 0 where it holds none.
func embedded(addr netip.Addr) (v4 netip.Addr, before int) {
	switch b := addr.As16(); {
	case addr.Is4():
		return netip.Addr{}, 0
	case nat64.Contains(addr), localNAT64.Contains(addr):
		return netip.AddrFrom4([4]byte(b[12:])), 96
	case sixToFour.Contains(addr):
		return netip.AddrFrom4([4]byte(b[2:])), 16
	}
	return netip.Addr{}, 0
}

// target returns the host's address for one that the guest wants to reach, or false where that is closed. ICMP has
// port 0.
func (p *Policy) target(proto Proto, guestView netip.AddrPort) (netip.AddrPort, bool) {
	addr, port := guestView.Addr(), guestView.Port()
	if port == 0 && proto != ICMP {
		return guestView, false
	}
	switch {
	case addr == GatewayAddr && p.gatewayOpen(proto, addr, port):
		return netip.AddrPortFrom(loopback4, port), true
	case addr == GatewayAddr6 && p.gatewayOpen(proto, addr, port):
		return netip.AddrPortFrom(loopback6, port), true
	}
	return guestView, p.open(proto, addr, port)
}

// guestView is the inverse of target, for the address that an answer came from.
func (p *Policy) guestView(proto Proto, host netip.AddrPort) (netip.AddrPort, bool) {
	addr, port := host.Addr().Unmap(), host.Port()
	switch {
	case addr == loopback4 && p.gatewayOpen(proto, GatewayAddr, port):
		return netip.AddrPortFrom(GatewayAddr, port), true
	case addr == loopback6 && p.gatewayOpen(proto, GatewayAddr6, port):
		return netip.AddrPortFrom(GatewayAddr6, port), true
	}
	return netip.AddrPortFrom(addr, port), p.open(proto, addr, port)
}

// gatewayOpen says whether a port of the gateway stands for one of the host's loopback.
func (p *Policy) gatewayOpen(proto Proto, gateway netip.Addr, port uint16) bool {
	bits := PrefixBits
	if gateway.Is6() {
		bits = PrefixBits6
	}
	return anyMatches(p.Allow, bits, proto, gateway, port)
}

// open says whether the guest reaches a port of addr, apart from the gateway.
func (p *Policy) open(proto Proto, addr netip.Addr, port uint16) bool {
	closed := closedBits(addr)
	switch {
	case anyMatches(p.Allow, closed, proto, addr, port):
		return true
	case closed > 0 || anyMatches(p.Deny, 0, proto, addr, port):
		return false
	}
	if v4, before := embedded(addr); before > 0 {
		return p.open(proto, v4, port)
	}
	return true
}

// anyMatches says whether one of the rules with a prefix of minBits or longer names a port of addr.
func anyMatches(rules []Rule, minBits int, proto Proto, addr netip.Addr, port uint16) bool {
	for i := range rules {
		if rules[i].Prefix.Bits() >= minBits && rules[i].matches(proto, addr, port) {
			return true
		}
	}
	return false
}

func (r *Rule) matches(proto Proto, addr netip.Addr, port uint16) bool {
	if !r.Prefix.Contains(addr) || len(r.Protos) > 0 && !slices.Contains(r.Protos, proto) {
		return false
	}
	return r.First == 0 && r.Last == 0 || proto != ICMP && r.First <= port && port <= r.Last
}
