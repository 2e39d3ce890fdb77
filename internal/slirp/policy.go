package slirp

import "net/netip"

// Policy says which addresses of the host's network the guest reaches. The zero value is the default: whatever the
// host reaches, except
//
//   - the host's own loopback, 127.0.0.0/8, which holds services that trust whoever can reach them (Docker's resolver,
//     sidecars of a pod), and 0.0.0.0/8, which Linux takes for loopback;
//   - link-local addresses, 169.254.0.0/16, where clouds hand out credentials (metadata services);
//   - the guest's own network, 10.0.2.0/24: the gateway's services are answered by us and nothing else lives there;
//   - multicast, broadcast and reserved addresses.
type Policy struct {
	// Allow opens addresses that are closed by default.
	Allow []netip.Prefix
	// GatewayIsLoopback makes the gateway's address stand for the host's 127.0.0.1, as the classic slirp did.
	GatewayIsLoopback bool
}

var (
	guestNet  = netip.PrefixFrom(GatewayAddr, PrefixBits).Masked()
	loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})

	closedByDefault = []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/8"),
		netip.MustParsePrefix("127.0.0.0/8"),
		netip.MustParsePrefix("169.254.0.0/16"),
		netip.MustParsePrefix("224.0.0.0/4"),
		netip.MustParsePrefix("240.0.0.0/4"), // with the limited broadcast address
		guestNet,
	}
)

// target returns the host's address for one that the guest wants to reach, or false where that is closed.
func (p Policy) target(guestView netip.AddrPort) (netip.AddrPort, bool) {
	addr := guestView.Addr()
	if p.GatewayIsLoopback && addr == GatewayAddr {
		return netip.AddrPortFrom(loopback4, guestView.Port()), guestView.Port() != 0
	}
	return guestView, guestView.Port() != 0 && p.open(addr)
}

// guestView is the inverse of target, for the address that an answer came from.
func (p Policy) guestView(host netip.AddrPort) (netip.AddrPort, bool) {
	addr := host.Addr().Unmap()
	if p.GatewayIsLoopback && addr == loopback4 {
		return netip.AddrPortFrom(GatewayAddr, host.Port()), true
	}
	return netip.AddrPortFrom(addr, host.Port()), p.open(addr)
}

// open says whether the guest reaches addr.
func (p Policy) open(addr netip.Addr) bool {
	if !addr.Is4() {
		return false // the guest has no IPv6 yet
	}
	for _, c := range closedByDefault {
		if c.Contains(addr) {
			return p.allowed(addr)
		}
	}
	return true
}

func (p Policy) allowed(addr netip.Addr) bool {
	for _, a := range p.Allow {
		if a.Contains(addr) {
			return true
		}
	}
	return false
}
