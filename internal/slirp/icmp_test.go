package slirp

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

func TestPingOurs(t *testing.T) {
	b := newBridge(t, Options{}, nil)
	for _, a := range []netip.Addr{GatewayAddr, DNSAddr, GatewayAddr6, DNSAddr6} {
		for _, size := range []int{0, 56, 1472, 5000} {
			want := strings.Repeat("p", size)
			got, err := b.guest.Ping(a, []byte(want), hang)
			if err != nil || string(got) != want {
				t.Errorf("Ping(%s, %d bytes) = %d bytes, %v", a, size, len(got), err)
			}
		}
	}
}

// TestPingNobody checks that an address without a host never answers. Netstack in promiscuous mode takes packets to
// all addresses.
func TestPingNobody(t *testing.T) {
	b := newBridge(t, Options{}, nil)
	for _, a := range []string{"10.0.2.99", "169.254.169.254", "192.0.2.1", "240.0.0.1", "fd00:10:0:2::99", "2001:db8::1"} {
		if got, err := b.guest.Ping(netip.MustParseAddr(a), []byte("hello"), 200*time.Millisecond); err == nil {
			t.Errorf("Ping(%s) = %q, want no answer", a, got)
		}
	}
}

// TestPingFromLinkLocal checks that the gateway can be pinged by who has no other address yet.
func TestPingFromLinkLocal(t *testing.T) {
	b := newBridge(t, Options{}, nil)
	seen := watchICMP(t, b)
	for _, a := range []netip.Addr{GatewayAddr6, GatewayLinkLocal} {
		b.guest.SendIP(echoPacket(netip.AddrPortFrom(guestLinkLocal, 7), a, 1, 1))
		if m := expectICMP(t, seen, a, icmp6.echoReply, 0, 7<<16|1); m.to != guestLinkLocal {
			t.Errorf("the answer is to %s, want %s", m.to, guestLinkLocal)
		}
	}
}

// ends are addresses of both families.
var ends = []struct{ guest, gateway, outside netip.Addr }{
	{GuestAddr, GatewayAddr, netip.MustParseAddr("198.51.100.1")},
	{GuestAddr6, GatewayAddr6, netip.MustParseAddr("2001:db8:1::1")},
}

// TestFirstHop checks that the gateway is the first hop of a traceroute, without the host having sent anything.
func TestFirstHop(t *testing.T) {
	b := newBridge(t, Options{}, nil)
	seen := watchICMP(t, b)
	for _, e := range ends {
		numbers := icmpOf(e.guest)
		from, to := netip.AddrPortFrom(e.guest, 4000), netip.AddrPortFrom(e.outside, 33434)
		b.guest.SendIP(udpPacket(from, to, 1, false, "probe"))
		m := expectICMP(t, seen, e.gateway, numbers.timeExceeded, numbers.hopsExceeded, 0)
		src, dst, proto, udp := m.quotes()
		if src != e.guest || dst != e.outside || proto != header.UDPProtocolNumber ||
			header.UDP(udp).SourcePort() != 4000 || header.UDP(udp).DestinationPort() != 33434 {
			t.Errorf("%s quotes %s -> %s, protocol %d, %x", m, src, dst, proto, udp)
		}
		b.guest.SendIP(echoPacket(from, e.outside, 1, 5))
		m = expectICMP(t, seen, e.gateway, numbers.timeExceeded, numbers.hopsExceeded, 0)
		if _, dst, proto, _ := m.quotes(); dst != e.outside || proto != numbers.proto {
			t.Errorf("%s quotes a packet to %s, protocol %d", m, dst, proto)
		}
	}
	if s := b.Snapshot(); s.UDPFlows != 0 || s.PingFlows != 0 {
		t.Errorf("Snapshot() = %+v, want no flows", s)
	}
}

// TestProhibited checks what the guest is told of addresses that are closed to it.
func TestProhibited(t *testing.T) {
	b := newBridge(t, Options{}, nil)
	seen := watchICMP(t, b)
	for _, c := range []struct{ guest, to netip.Addr }{
		{GuestAddr, netip.MustParseAddr("169.254.169.254")},
		{GuestAddr, netip.MustParseAddr("10.0.2.99")},
		{GuestAddr6, netip.MustParseAddr("fd00:ec2::254")},
		{GuestAddr6, netip.MustParseAddr("fe80::1")},
		{GuestAddr6, netip.MustParseAddr("64:ff9b::169.254.169.254")},
	} {
		numbers := icmpOf(c.guest)
		from := netip.AddrPortFrom(c.guest, 4000)
		b.guest.SendIP(udpPacket(from, netip.AddrPortFrom(c.to, 80), 64, true, "hello"))
		expectICMP(t, seen, gatewayOf(c.guest), numbers.unreachable, numbers.codes[prohibited], 0)
		b.guest.SendIP(echoPacket(from, c.to, 64, 1))
		expectICMP(t, seen, gatewayOf(c.guest), numbers.unreachable, numbers.codes[prohibited], 0)
	}
	if got := b.Snapshot().PolicyClosed; got != 10 {
		t.Errorf("Snapshot().PolicyClosed = %d, want 10", got)
	}
}

// TestGuestUnreachable checks that a flow is told when the guest refuses what was sent to it.
func TestGuestUnreachable(t *testing.T) {
	for _, e := range ends {
		b := newBridge(t, Options{}, nil)
		ini, guest := netip.AddrPortFrom(e.outside, 4000), netip.AddrPortFrom(e.guest, 53)
		f := &refusable{flow: flow{key: flowKey{proto: UDP, ini: ini, tgt: guest}}, refused: make(chan struct{}, 1)}
		if err := b.flows.add(f); err != nil {
			t.Fatal(err)
		}
		b.sendUDP(ini, guest, []byte("hello")) // nobody listens there: the guest's stack says so
		within(t, "the refusal", func() struct{} { return <-f.refused })
	}
}

// refusable is a flow that can be refused.
type refusable struct {
	flow
	refused chan struct{}
}

func (*refusable) stop() {}

func (f *refusable) guestUnreachable() { f.refused <- struct{}{} }

func TestQuotedUDP(t *testing.T) {
	for _, e := range ends {
		numbers := icmpOf(e.guest)
		ini, guest := netip.AddrPortFrom(e.outside, 4000), netip.AddrPortFrom(e.guest, 53)
		message := func(kind uint8, quoted []byte) []byte {
			return icmpPacket(e.guest, e.outside, 64, append([]byte{kind, 3, 0, 0, 0, 0, 0, 0}, quoted...))
		}
		datagram := udpPacket(ini, guest, 64, false, "hello")
		full := message(numbers.unreachable, datagram)
		if src, dst, ok := quotedUDP(full); !ok || src != ini || dst != guest {
			t.Errorf("quotedUDP() = %s, %s, %v, want %s, %s", src, dst, ok, ini, guest)
		}
		segment := ipPacket(header.TCPProtocolNumber, e.outside, e.guest, 64, false, make([]byte, 20))
		for name, packet := range map[string][]byte{
			"time exceeded": message(numbers.timeExceeded, datagram),
			"TCP":           message(numbers.unreachable, segment),
			"nothing":       message(numbers.unreachable, nil),
			"cut short":     full[:len(full)-len("hello")-header.UDPMinimumSize+3],
		} {
			if src, dst, ok := quotedUDP(packet); ok {
				t.Errorf("%s: quotedUDP() = %s, %s, want nothing", name, src, dst)
			}
		}
	}
}

// TestPingOutside needs ping sockets: net.ipv4.ping_group_range has to include the group of this process.
func TestPingOutside(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	b := newBridge(t, Options{Policy: testPolicy}, nil)
	seen := watchICMP(t, b)
	for _, e := range []struct{ guest, to, want netip.Addr }{
		// The policy shows the loopback as the gateway, which only differs from a server outside in the address.
		{GuestAddr, loopback4, GatewayAddr},
		{GuestAddr6, loopback6, GatewayAddr6},
	} {
		for ident := range uint16(2) {
			f, err := b.pingFlow(netip.AddrPortFrom(e.guest, 700+ident))
			if err != nil {
				t.Fatal(err)
			}
			// The fake guest cannot send to the loopback, so the request is handed to the flow.
			msg := []byte{icmpOf(e.guest).echo, 0, 0, 0, 0, 0, 0, 7}
			if err := f.socket.send(netip.AddrPortFrom(e.to, 0), carriage{}, msg, []byte("payload")); err != nil {
				t.Fatal(err)
			}
			m := expectICMP(t, seen, e.want, icmpOf(e.guest).echoReply, 0, uint32(700+ident)<<16|7)
			if m.to != e.guest || string(m.body[4:]) != "payload" {
				t.Errorf("got %s, want the payload back", m)
			}
		}
	}
	if got := b.Snapshot().LivePing; got != 4 {
		t.Errorf("Snapshot().LivePing = %d, want 4", got)
	}
}

// TestARP checks that the gateway answers for its own addresses and for no other, the guest's least of all: duplicate
// address detection in the guest would fail.
func TestARP(t *testing.T) {
	b := newBridge(t, Options{}, nil)
	replies := func() uint64 { return b.guest.Stack.Stats().ARP.RepliesReceived.Value() }
	for _, a := range []netip.Addr{GuestAddr, netip.MustParseAddr("10.0.2.99"), netip.MustParseAddr("192.0.2.1")} {
		b.guest.SendARP(header.ARPRequest, [4]byte{}, a.As4())
	}
	for i, a := range []netip.Addr{GatewayAddr, DNSAddr} {
		b.guest.SendARP(header.ARPRequest, GuestAddr.As4(), a.As4())
		eventually(t, "a reply", func() bool { return replies() >= uint64(i)+1 })
	}
	if got := replies(); got != 2 {
		t.Errorf("%d ARP replies, want 2", got)
	}
}
