package slirp

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"docker-usermode-linux/internal/netnstest"
	"docker-usermode-linux/internal/slirp/slirptest"
)

// inNamespace is netnstest.Inside with ping sockets and the loopback up.
func inNamespace(t *testing.T) bool {
	t.Helper()
	if !netnstest.Inside(t) {
		return false
	}
	sysctl(t, "net/ipv4/ping_group_range", "0 0")
	linkUp(t, "lo")
	return true
}

func sysctl(t testing.TB, name, value string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

func linkUp(t testing.TB, name string, addresses ...string) {
	t.Helper()
	if err := setUpLink(name, addresses...); err != nil {
		t.Fatal(err)
	}
}

func setUpLink(name string, addresses ...string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, a := range addresses {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		addr.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(l, addr); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(l)
}

// The network behind the router of newRouter. Everything to it goes back where it came from, but for its hop limit.
var (
	routerAddr  = netip.MustParseAddr("192.0.2.2")
	routerAddr6 = netip.MustParseAddr("2001:db8::2")
)

// ways are what the router does to packets of each family.
var ways = []struct{ guest, router, looping, unreachable, narrow netip.Addr }{
	{
		GuestAddr, routerAddr, netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("203.0.113.1"),
		netip.MustParseAddr("198.18.0.1"),
	},
	{
		GuestAddr6, routerAddr6, netip.MustParseAddr("2001:db8:1::1"), netip.MustParseAddr("2001:db8:2::1"),
		netip.MustParseAddr("2001:db8:3::1"),
	},
}

// narrowMTU is that of the routes to the narrow addresses.
const narrowMTU = 1300

// newRouter connects the namespace to a router in another one, and makes that its way out.
func newRouter(t *testing.T) {
	t.Helper()
	sysctl(t, "net/ipv6/conf/default/accept_redirects", "0") // the router says that what loops is on the link
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "out"}, PeerName: "in"}
	if err := netlink.LinkAdd(pair); err != nil {
		t.Skipf("no pair of NICs to be had: %v", err)
	}
	peer, err := netlink.LinkByName("in")
	if err != nil {
		t.Fatal(err)
	}
	namespace, moved, done := make(chan *os.File, 1), make(chan struct{}), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		ns, openErr := os.Open("/proc/thread-self/ns/net")
		if err := errors.Join(err, openErr); err != nil {
			close(namespace)
			done <- err
			return
		}
		namespace <- ns
		<-moved
		done <- setUpRouter()
	}()
	ns, ok := <-namespace
	if !ok {
		t.Skipf("no second network namespace to be had: %v", <-done)
	}
	t.Cleanup(func() { ns.Close() }) // without it the namespace would end with the thread, and its NIC too
	linkUp(t, "out", "192.0.2.1/24", "2001:db8::1/64")
	err = netlink.LinkSetNsFd(peer, int(ns.Fd()))
	close(moved)
	if err := errors.Join(err, <-done); err != nil {
		t.Fatal(err)
	}
	for _, w := range ways {
		if err := netlink.RouteAdd(&netlink.Route{Gw: w.router.AsSlice()}); err != nil {
			t.Fatal(err)
		}
		// The link takes its time. By TCP, which is refused without an ICMP error: those have a rate.
		eventually(t, "the router answers", func() bool {
			_, err := net.DialTimeout("tcp", netip.AddrPortFrom(w.router, 9).String(), time.Second)
			return errors.Is(err, unix.ECONNREFUSED)
		})
	}
}

// setUpRouter makes a router of the namespace of this thread.
func setUpRouter() error {
	for name, value := range map[string]string{
		"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1",
		"net/ipv4/conf/all/send_redirects": "0", "net/ipv4/conf/in/send_redirects": "0",
		"net/ipv4/icmp_ratelimit": "0", "net/ipv6/icmp/ratelimit": "0",
	} {
		if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0); err != nil {
			return err
		}
	}
	if err := setUpLink("in", routerAddr.String()+"/24", routerAddr6.String()+"/64"); err != nil {
		return err
	}
	back := map[int]net.IP{4: net.IPv4(192, 0, 2, 1), 6: net.ParseIP("2001:db8::1")}
	for _, w := range ways {
		family := 4
		if w.guest.Is6() {
			family = 6
		}
		for _, r := range []netlink.Route{
			{Dst: one(w.looping), Gw: back[family]},
			{Dst: one(w.narrow), Gw: back[family], MTU: narrowMTU, MTULock: true},
			{Dst: one(w.unreachable), Type: unix.RTN_UNREACHABLE},
		} {
			if err := netlink.RouteAdd(&r); err != nil {
				return err
			}
		}
	}
	return nil
}

func one(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

// TestTraceroute checks what the guest hears of the routers on the way, by UDP and by ICMP, of both families.
func TestTraceroute(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	newRouter(t)
	b := newBridge(t, Options{}, nil)
	seen := watchICMP(t, b)
	for _, w := range ways {
		numbers := icmpOf(w.guest)
		from := netip.AddrPortFrom(w.guest, 4000)
		for hops, want := range []netip.Addr{gatewayOf(w.guest), w.router} {
			to := netip.AddrPortFrom(w.looping, uint16(33434+hops))
			b.guest.SendIP(udpPacket(from, to, uint8(hops+1), false, "probe"))
			m := expectICMP(t, seen, want, numbers.timeExceeded, numbers.hopsExceeded, 0)
			src, dst, proto, udp := m.quotes()
			if src != w.guest || dst != w.looping || proto != header.UDPProtocolNumber ||
				header.UDP(udp).SourcePort() != from.Port() || header.UDP(udp).DestinationPort() != to.Port() {
				t.Errorf("%s quotes %s -> %s, protocol %d, %x", m, src, dst, proto, udp)
			}
			b.guest.SendIP(echoPacket(from, w.looping, uint8(hops+1), uint16(hops)))
			m = expectICMP(t, seen, want, numbers.timeExceeded, numbers.hopsExceeded, 0)
			_, dst, proto, echo := m.quotes()
			if dst != w.looping || proto != numbers.proto || echo[5] != byte(from.Port()&0xff) || echo[7] != byte(hops) {
				t.Errorf("%s quotes a packet to %s, protocol %d, %x", m, dst, proto, echo)
			}
		}
		// The router itself is the target: nobody listens there, and it answers pings.
		b.guest.SendIP(udpPacket(from, netip.AddrPortFrom(w.router, 33436), 2, false, "probe"))
		portUnreachable := uint8(header.ICMPv4PortUnreachable)
		if w.guest.Is6() {
			portUnreachable = uint8(header.ICMPv6PortUnreachable)
		}
		expectICMP(t, seen, w.router, numbers.unreachable, portUnreachable, 0)
		b.guest.SendIP(echoPacket(from, w.router, 64, 9))
		expectICMP(t, seen, w.router, numbers.echoReply, 0, 4000<<16|9)
	}
}

// TestUnreachable checks that what a router says of a target reaches the guest.
func TestUnreachable(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	newRouter(t)
	b := newBridge(t, Options{}, nil)
	seen := watchICMP(t, b)
	for _, w := range ways {
		numbers := icmpOf(w.guest)
		code := numbers.codes[noHost] // what Linux says for an unreachable route
		if w.guest.Is6() {
			code = numbers.codes[noRoute]
		}
		b.guest.SendIP(udpPacket(netip.AddrPortFrom(w.guest, 4000), netip.AddrPortFrom(w.unreachable, 9), 64, false, "x"))
		expectICMP(t, seen, w.router, numbers.unreachable, code, 0)
		if _, err := b.guest.DialTCP(hangContext(t), netip.AddrPortFrom(w.unreachable, 80)); err == nil ||
			errors.Is(err, slirptest.ErrRefused) {
			t.Errorf("DialTCP(%s) = %v, want it unreachable", w.unreachable, err)
		}
		expectICMP(t, seen, gatewayOf(w.guest), numbers.unreachable, code, 0)
	}
}

// TestPathMTU checks that the guest learns the MTU of the way: first by the router that has no room, then by ourselves,
// from the host's kernel, which remembers. A datagram that may be fragmented gets through.
func TestPathMTU(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	newRouter(t)
	b := newBridge(t, Options{}, nil)
	seen := watchICMP(t, b)
	text := strings.Repeat("x", 1400)
	for _, w := range ways {
		numbers := icmpOf(w.guest)
		from, to := netip.AddrPortFrom(w.guest, 4000), netip.AddrPortFrom(w.narrow, 9)
		for _, reporter := range []netip.Addr{w.router, gatewayOf(w.guest)} {
			b.guest.SendIP(udpPacket(from, to, 64, true, text))
			m := expectICMP(t, seen, reporter, numbers.tooBig, numbers.tooBigCode, narrowMTU)
			if src, dst, proto, _ := m.quotes(); src != w.guest || dst != w.narrow || proto != header.UDPProtocolNumber {
				t.Errorf("%s quotes %s -> %s, protocol %d", m, src, dst, proto)
			}
		}
		ping := icmpPacket(w.guest, w.narrow, 64, append([]byte{numbers.echo, 0, 0, 0, 0, 1, 0, 1}, text...))
		b.guest.SendIP(ping)
		expectICMP(t, seen, gatewayOf(w.guest), numbers.tooBig, numbers.tooBigCode, narrowMTU)
	}
	// The guest fragments now, to the size that it was told.
	c := guestUDP(t, b, 0)
	for _, w := range ways {
		numbers := icmpOf(w.guest)
		before := b.Snapshot().UDPToHost
		if w.guest.Is4() {
			b.guest.SendIP(udpPacket(netip.AddrPortFrom(w.guest, 4000), netip.AddrPortFrom(w.narrow, 9), 64, false, text))
		} else {
			c.WriteTo([]byte(strings.Repeat("x", 2000)), udpAddr(netip.AddrPortFrom(w.narrow, 9)))
		}
		eventually(t, "the datagram leaves", func() bool { return b.Snapshot().UDPToHost > before })
		// Nothing comes back but for this.
		b.guest.SendIP(echoPacket(netip.AddrPortFrom(w.guest, 1), w.router, 64, 1))
		expectICMP(t, seen, w.router, numbers.echoReply, 0, 1<<16|1)
	}
	expectNoDrops(t, b)
}

// expectNoDrops checks that what the guest was told about does not count as lost.
func expectNoDrops(t *testing.T, b *bridge) {
	t.Helper()
	if got := b.Inspect().Drops; got != 0 {
		t.Errorf("%d drops, want none", got)
	}
}

// TestNoRoute checks that on a host without a route, or without a family, the guest is told at once: its programs then
// try the other family without delay.
func TestNoRoute(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	if hostRoutesIPv6() {
		t.Error("hostRoutesIPv6() = true, want false")
	}
	b := newBridge(t, Options{}, nil)
	seen := watchICMP(t, b)
	for _, w := range ways {
		numbers := icmpOf(w.guest)
		from := netip.AddrPortFrom(w.guest, 4000)
		b.guest.SendIP(udpPacket(from, netip.AddrPortFrom(w.looping, 9), 64, true, "x"))
		expectICMP(t, seen, gatewayOf(w.guest), numbers.unreachable, numbers.codes[noRoute], 0)
		b.guest.SendIP(echoPacket(from, w.looping, 64, 1))
		expectICMP(t, seen, gatewayOf(w.guest), numbers.unreachable, numbers.codes[noRoute], 0)
		_, err := b.guest.DialTCP(hangContext(t), netip.AddrPortFrom(w.looping, 80))
		if err == nil || !strings.Contains(err.Error(), "network is unreachable") {
			t.Errorf("DialTCP(%s) = %v, want no route", w.looping, err)
		}
		expectICMP(t, seen, gatewayOf(w.guest), numbers.unreachable, numbers.codes[noRoute], 0)
	}
	expectNoDrops(t, b)
	newRouter(t)
	if !hostRoutesIPv6() {
		t.Error("hostRoutesIPv6() = false with a default route, want true")
	}
}
