package slirp

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

var (
	guestLinkLocal = goAddr(header.LinkLocalAddr(linkAddress(GuestMAC)))
	allRouters     = netip.MustParseAddr("ff02::2")
)

func TestGatewayLinkLocal(t *testing.T) {
	if want := goAddr(header.LinkLocalAddr(linkAddress(GatewayMAC))); GatewayLinkLocal != want {
		t.Errorf("GatewayLinkLocal = %s, want %s", GatewayLinkLocal, want)
	}
}

// solicitation asks for the link address of target. From :: it is duplicate address detection.
func solicitation(from, target netip.Addr) []byte {
	msg := make([]byte, neighborSolicitBytes, neighborSolicitBytes+8)
	msg[0] = uint8(header.ICMPv6NeighborSolicit)
	copy(msg[8:], target.AsSlice())
	if !from.IsUnspecified() {
		msg = append(append(msg, 1, 1), GuestMAC...)
	}
	return icmpPacket(from, goAddr(header.SolicitedNodeAddr(stackAddr(target))), neighborHopLimit, msg)
}

// TestNeighbors checks that the gateway answers for its own addresses, as a router, and for no other, the guest's least
// of all: duplicate address detection in the guest would fail.
func TestNeighbors(t *testing.T) {
	b := newBridge(t, Options{}, nil)
	seen := watchICMP(t, b)
	for _, a := range []netip.Addr{
		GuestAddr6, guestLinkLocal, netip.MustParseAddr("fd00:10:0:2::99"), netip.MustParseAddr("2001:db8::1"),
	} {
		b.guest.SendIP(solicitation(netip.IPv6Unspecified(), a))
		b.guest.SendIP(solicitation(GuestAddr6, a))
	}
	for _, c := range []struct {
		from, target, to netip.Addr
		flags            byte
	}{
		{GuestAddr6, GatewayAddr6, GuestAddr6, advertRouter | advertSolicited | advertOverride},
		{guestLinkLocal, DNSAddr6, guestLinkLocal, advertRouter | advertSolicited | advertOverride},
		{guestLinkLocal, GatewayLinkLocal, guestLinkLocal, advertRouter | advertSolicited | advertOverride},
		{netip.IPv6Unspecified(), GatewayAddr6, allNodes, advertRouter | advertOverride},
	} {
		b.guest.SendIP(solicitation(c.from, c.target))
		m := next(t, seen) // the first one of all: those above have no answer
		want := append([]byte{c.flags, 0, 0, 0}, c.target.AsSlice()...)
		want = append(append(want, 2, 1), GatewayMAC...)
		if m.kind != uint8(header.ICMPv6NeighborAdvert) || m.from != c.target || m.to != c.to ||
			m.hops != neighborHopLimit || string(m.body) != string(want) {
			t.Errorf("%s asks for %s: got %s, want %x to %s", c.from, c.target, m, want, c.to)
		}
	}
}

// TestNeighborsFromAfar checks that what a router has forwarded is not believed (RFC 4861 section 7.1.1).
func TestNeighborsFromAfar(t *testing.T) {
	b := newBridge(t, Options{}, nil)
	seen := watchICMP(t, b)
	far := solicitation(GuestAddr6, GatewayAddr6)
	header.IPv6(far).SetHopLimit(neighborHopLimit - 1)
	b.guest.SendIP(far)
	b.guest.SendIP(solicitation(GuestAddr6, DNSAddr6))
	if m := next(t, seen); m.from != DNSAddr6 {
		t.Errorf("got %s, want only an answer from %s", m, DNSAddr6)
	}
}

func TestRouterAdvertisement(t *testing.T) {
	b := newBridge(t, Options{MTU: 4000}, func(n *Network) { n.limits.advertise = 10 * time.Millisecond })
	seen := watchICMP(t, b)
	solicit := []byte{uint8(header.ICMPv6RouterSolicit), 0, 0, 0, 0, 0, 0, 0}
	b.guest.SendIP(icmpPacket(guestLinkLocal, allRouters, neighborHopLimit, solicit))
	for _, to := range []netip.Addr{guestLinkLocal, allNodes, allNodes} { // the answer, then unsolicited ones
		m := next(t, seen)
		if m.kind != uint8(header.ICMPv6RouterAdvert) || m.from != GatewayLinkLocal || m.to != to ||
			m.hops != neighborHopLimit {
			t.Fatalf("got %s, want a router advertisement from %s to %s", m, GatewayLinkLocal, to)
		}
	}
}

func TestRouterAdvertContents(t *testing.T) {
	for _, isRouter := range []bool{false, true} {
		ra := header.NDPRouterAdvert(routerAdvert(1500, isRouter)[4:])
		want := time.Duration(0)
		if isRouter {
			want = routerLifetime
		}
		if got := ra.RouterLifetime(); got != want {
			t.Errorf("router lifetime %s, want %s", got, want)
		}
		// Managed: DHCPv6 gives the address that forwarded ports lead to.
		if !ra.ManagedAddrConfFlag() || ra.OtherConfFlag() || ra.CurrHopLimit() != defaultHops {
			t.Errorf("flags or hop limit are wrong: %x", ra)
		}
		options, err := ra.Options().Iter(true)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		for {
			o, done, err := options.Next()
			if err != nil {
				t.Fatal(err)
			}
			if done {
				break
			}
			switch o := o.(type) {
			case header.NDPSourceLinkLayerAddressOption:
				seen["link address"] = o.EthernetAddress() == tcpip.LinkAddress(GatewayMAC)
			case header.NDPPrefixInformation:
				seen["prefix"] = o.Subnet().String() == "fd00:10:0:2::/64" && o.OnLinkFlag() &&
					o.AutonomousAddressConfigurationFlag() && o.ValidLifetime() == prefixValid &&
					o.PreferredLifetime() == prefixPreferred
			case header.NDPRecursiveDNSServer:
				servers, err := o.Addresses()
				seen["name server"] = err == nil && len(servers) == 1 && goAddr(servers[0]) == DNSAddr6 &&
					o.Lifetime() == routerLifetime
			}
		}
		// Netstack does not know the MTU option.
		mtu := ra[routerAdvertBytes-4+8:][:8]
		seen["mtu"] = mtu[0] == mtuOptionType && mtu[1] == 1 && binary.BigEndian.Uint32(mtu[4:]) == 1500
		for _, o := range []string{"link address", "prefix", "name server", "mtu"} {
			if !seen[o] {
				t.Errorf("the option of the %s is missing or wrong in %x", o, ra)
			}
		}
	}
}

// TestUp checks that the guest counts as up when a packet comes from its address of either family, and not before.
func TestUp(t *testing.T) {
	b := newSilentBridge(t, Options{}, nil)
	seen := watchICMP(t, b)
	b.guest.SendIP(solicitation(netip.IPv6Unspecified(), GuestAddr6))
	b.guest.SendIP(solicitation(guestLinkLocal, GatewayAddr6))
	next(t, seen)
	select {
	case <-b.Up():
		t.Fatal("Up() is closed before the guest has an address")
	default:
	}
	b.guest.SendIP(solicitation(GuestAddr6, GatewayAddr6))
	within(t, "Up", func() struct{} { return <-b.Up() })
}

// FuzzGuestICMP feeds the code that reads ICMP past netstack.
func FuzzGuestICMP(f *testing.F) {
	f.Add(solicitation(GuestAddr6, GatewayAddr6))
	f.Add(icmpPacket(guestLinkLocal, allRouters, neighborHopLimit, []byte{133, 0, 0, 0, 0, 0, 0, 0}))
	for _, a := range []netip.Addr{GuestAddr, GuestAddr6} {
		quoted := udpPacket(netip.AddrPortFrom(gatewayOf(a), 4000), netip.AddrPortFrom(a, 53), 64, false, "x")
		f.Add(icmpPacket(a, gatewayOf(a), 64, append([]byte{icmpOf(a).unreachable, 4, 0, 0, 0, 0, 0, 0}, quoted...)))
	}
	b := newBridge(f, Options{}, nil)
	f.Fuzz(func(_ *testing.T, packet []byte) {
		b.handleNDP(packet)
		b.refusedByGuest(packet)
	})
}
