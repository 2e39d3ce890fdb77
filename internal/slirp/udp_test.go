package slirp

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// echoUDP is a UDP server on the host's loopback that answers with what it got, behind the text "echo ".
func echoUDP(t testing.TB, address string) net.PacketConn {
	t.Helper()
	c, err := net.ListenPacket("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	var done sync.WaitGroup
	done.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				c.WriteTo(append([]byte("echo "), buf[:n]...), from)
			}
		}
	})
	t.Cleanup(func() { c.Close(); done.Wait() })
	return c
}

func guestUDP(t testing.TB, b *bridge, port uint16) *gonet.UDPConn {
	t.Helper()
	c, err := b.guest.ListenUDP(port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func udpAddr(a netip.AddrPort) *net.UDPAddr { return net.UDPAddrFromAddrPort(a) }

// ask sends a datagram until something comes back.
func ask(t testing.TB, c net.PacketConn, to net.Addr, text string) (answer string, from net.Addr) {
	t.Helper()
	buf := make([]byte, 1<<16)
	for end := time.Now().Add(hang); time.Now().Before(end); {
		if _, err := c.WriteTo([]byte(text), to); err != nil {
			t.Fatalf("WriteTo(%s) = %v", to, err)
		}
		c.SetReadDeadline(time.Now().Add(2 * time.Second))
		n, from, err := c.ReadFrom(buf)
		if err == nil {
			return string(buf[:n]), from
		}
	}
	t.Fatalf("no answer from %s", to)
	return "", nil
}

func TestUDPGuestToHost(t *testing.T) {
	b := newBridge(t, Options{Policy: testPolicy}, nil)
	c := guestUDP(t, b, 0)
	for i, at := range loopbacks(t) {
		to := gateway(echoUDP(t, at).LocalAddr())
		for _, size := range []int{0, 1, 1000, 1452, 1472, 1473, 9000, 60000} {
			text := strings.Repeat("x", size)
			got, from := ask(t, c, udpAddr(to), text)
			if got != "echo "+text {
				t.Errorf("%s: %d bytes: answer of %d bytes, want %d", to, size, len(got), size+5)
			}
			if from.String() != to.String() {
				t.Errorf("answer from %s, want %s", from, to)
			}
		}
		// One for each family.
		if got := b.Snapshot(); got.UDPFlows != uint64(i)+1 || got.LiveUDP != i+1 {
			t.Errorf("Snapshot() = %+v, want %d UDP flows", got, i+1)
		}
	}
}

// TestUDPAnySource checks that every address that the guest uses works (NAT66), its link-local one towards the gateway
// as well, and that each has a flow of its own.
func TestUDPAnySource(t *testing.T) {
	at := loopbacks(t)
	if len(at) < 2 {
		t.Skip("no IPv6")
	}
	b := newBridge(t, Options{Policy: testPolicy}, nil)
	to := gateway(echoUDP(t, at[1]).LocalAddr())
	answers := make(chan string, 10)
	b.guest.Watch(func(packet []byte) {
		if udp, proto, ok := cutIP(packet); ok && proto == header.UDPProtocolNumber {
			answers <- fmt.Sprintf("%s to %s", udp[header.UDPMinimumSize:], goAddr(header.IPv6(packet).DestinationAddress()))
		}
	})
	for i, a := range []netip.Addr{GuestAddr6, netip.MustParseAddr("fd00:10:0:2:5054:ff:fe12:3456"), guestLinkLocal} {
		b.guest.SendIP(udpPacket(netip.AddrPortFrom(a, 4000), to, 64, false, "hello"))
		want := fmt.Sprintf("echo hello to %s", a)
		if got := within(t, "the answer", func() string { return <-answers }); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if got := b.Snapshot().LiveUDP; got != i+1 {
			t.Errorf("Snapshot().LiveUDP = %d, want %d", got, i+1)
		}
	}
}

// TestUDPEndpointIndependent checks that one socket of the guest has one port on the host for all targets (RFC 4787
// REQ-1), and that it can be reached there by who was never asked.
func TestUDPEndpointIndependent(t *testing.T) {
	b := newBridge(t, Options{Policy: testPolicy}, nil)
	var ports []uint16
	c := guestUDP(t, b, 0)
	for range 3 {
		server, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		c.WriteTo([]byte("hello"), udpAddr(gateway(server.LocalAddr())))
		server.SetReadDeadline(time.Now().Add(hang))
		_, from, err := server.ReadFrom(make([]byte, 10))
		if err != nil {
			t.Fatal(err)
		}
		ports = append(ports, port(from))
	}
	if ports[0] != ports[1] || ports[1] != ports[2] {
		t.Errorf("the guest's port is %v on the host, want the same for all targets", ports)
	}
	stranger, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	stranger.WriteTo([]byte("knock"), &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(ports[0])})
	c.SetReadDeadline(time.Now().Add(hang))
	buf := make([]byte, 10)
	n, from, err := c.ReadFrom(buf)
	if err != nil || string(buf[:n]) != "knock" || from.String() != gateway(stranger.LocalAddr()).String() {
		t.Errorf("ReadFrom() = %q, %v, %v, want the stranger's datagram", buf[:n], from, err)
	}
}

// testUDPRefused checks that the guest is told when nobody listens, and that this keeps nothing busy: a bridge that
// does not take the error off its socket loops on ECONNREFUSED.
func testUDPRefused(t *testing.T) {
	b := newBridge(t, Options{Policy: testPolicy}, nil)
	seen := watchICMP(t, b)
	c := guestUDP(t, b, 0)
	for _, at := range loopbacks(t) {
		server := echoUDP(t, at)
		nobody := gateway(server.LocalAddr())
		server.Close()
		numbers, code := icmp4, uint8(header.ICMPv4PortUnreachable)
		if nobody.Addr().Is6() {
			numbers, code = icmp6, uint8(header.ICMPv6PortUnreachable)
		}
		for range 10 {
			c.WriteTo([]byte("anybody?"), udpAddr(nobody))
			expectICMP(t, seen, nobody.Addr(), numbers.unreachable, code, 0)
		}
		const idle = 100 * time.Millisecond
		cpu := cpuTime()
		time.Sleep(idle)
		if got := cpuTime() - cpu; got > idle*9/10 {
			t.Errorf("%s of CPU time in %s of nothing", got, idle)
		}
		if len(seen) != 0 {
			t.Errorf("more than 10 ICMP errors for 10 datagrams: %s", <-seen)
		}
		// The same socket still works.
		if got, _ := ask(t, c, udpAddr(gateway(echoUDP(t, at).LocalAddr())), "hello"); got != "echo hello" {
			t.Errorf("answer %q, want %q", got, "echo hello")
		}
	}
}

// testUDPStorm checks that a storm of queries, each from a port of its own, fills the table and no more, and that the
// table is empty soon after: other bridges let such flows pile up.
func testUDPStorm(t *testing.T) {
	const limit, queries = 100, 1000
	clock := newClock()
	b := newBridge(t, Options{}, func(n *Network) {
		n.now = clock.now
		n.flows = newFlowTable(n)
		n.limits.flows[UDP] = limit
	})
	for i := range queries {
		w := ends[i%len(ends)]
		from, to := netip.AddrPortFrom(w.guest, uint16(10000+i)), netip.AddrPortFrom(w.outside, 53)
		b.guest.SendIP(udpPacket(from, to, 64, true, "?"))
	}
	eventually(t, "all queries are counted", func() bool {
		s := b.Snapshot()
		return s.UDPFlows == limit && s.UDPRefused == queries-limit
	})
	clock.pass(defaultLimits.udpDNS)
	b.flows.expire()
	eventually(t, "the table is empty", func() bool { return b.Snapshot().LiveUDP == 0 })
	w := ends[0]
	b.guest.SendIP(udpPacket(netip.AddrPortFrom(w.guest, 9999), netip.AddrPortFrom(w.outside, 53), 64, true, "?"))
	eventually(t, "a new flow", func() bool { return b.Snapshot().UDPFlows == limit+1 })
}

// TestUDPScan checks that a scan from one port costs one flow, whatever the number of targets.
func TestUDPScan(t *testing.T) {
	b := newBridge(t, Options{}, nil)
	const probes = 1000
	for i := range probes {
		w := ends[i%len(ends)]
		from, to := netip.AddrPortFrom(w.guest, 4000), netip.AddrPortFrom(w.outside, uint16(i+1))
		b.guest.SendIP(udpPacket(from, to, 64, true, "?"))
	}
	eventually(t, "all probes are taken", func() bool { return b.Snapshot().FramesIn >= probes })
	b.guest.SendARP(header.ARPRequest, GuestAddr.As4(), GatewayAddr.As4()) // behind the last probe
	eventually(t, "it is answered", func() bool { return b.guest.Stack.Stats().ARP.RepliesReceived.Value() == 1 })
	if got := b.Snapshot().UDPFlows; got != 2 {
		t.Errorf("Snapshot().UDPFlows = %d, want one for each family", got)
	}
}

func TestFlowRefusal(t *testing.T) {
	for _, c := range []struct {
		err  error
		want reason
	}{
		{errFlowLimit, prohibited},
		{&net.OpError{Op: "listen", Err: os.NewSyscallError("socket", syscall.EAFNOSUPPORT)}, noRoute},
		{os.NewSyscallError("socket", syscall.EACCES), prohibited},
	} {
		if got := flowRefusal(c.err); got != c.want {
			t.Errorf("flowRefusal(%v) = %d, want %d", c.err, got, c.want)
		}
	}
}

// TestSendAllocates checks that a datagram costs no garbage, whatever the family and the header.
func TestSendAllocates(t *testing.T) {
	for _, at := range loopbacks(t) {
		server, err := net.ListenPacket("udp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		to := server.LocalAddr().(*net.UDPAddr).AddrPort()
		conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(to.Addr(), 0)))
		if err != nil {
			t.Fatal(err)
		}
		s, err := newHostSocket(conn, to.Addr().Is6(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer s.close()
		payload := []byte("hello")
		if got := testing.AllocsPerRun(100, func() {
			for _, how := range []carriage{{}, {hops: 3}, {whole: true}} {
				if err := s.send(to, how, payload, nil); err != nil {
					t.Fatal(err)
				}
			}
		}); got != 0 {
			t.Errorf("send to %s allocates %v times, want none", to, got)
		}
	}
}

func TestUDPClosedByPolicy(t *testing.T) {
	b := newBridge(t, Options{}, nil)
	server, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	c := guestUDP(t, b, 0)
	c.WriteTo([]byte("let me in"), udpAddr(gateway(server.LocalAddr())))
	eventually(t, "port unreachable", func() bool {
		return b.guest.Stack.Stats().ICMP.V4.PacketsReceived.DstUnreachable.Value() == 1
	})
	server.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, _, err := server.ReadFrom(make([]byte, 10)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("ReadFrom() = %v: the guest reached the host's loopback", err)
	}
	// A server on the host cannot reach the guest through the port of a flow either.
	c.WriteTo([]byte("x"), udpAddr(netip.MustParseAddrPort("192.0.2.1:9")))
	eventually(t, "a flow", func() bool { return b.Snapshot().LiveUDP == 1 })
	f := b.flows.get(flowKey{proto: UDP, ini: netip.AddrPortFrom(GuestAddr, port(c.LocalAddr()))}).(*guestFlow)
	server.WriteTo([]byte("hello"), &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(port(f.socket.conn.LocalAddr()))})
	eventually(t, "the datagram is refused", func() bool { return b.Snapshot().PolicyClosed == 2 })
}

func TestUDPFlowLimit(t *testing.T) {
	b := newBridge(t, Options{Policy: testPolicy}, func(n *Network) { n.limits.flows[UDP] = 2 })
	server := echoUDP(t, "127.0.0.1:0")
	to := udpAddr(gateway(server.LocalAddr()))
	first := guestUDP(t, b, 0)
	ask(t, first, to, "one")
	ask(t, guestUDP(t, b, 0), to, "two")
	guestUDP(t, b, 0).WriteTo([]byte("three"), to)
	eventually(t, "a refusal", func() bool { return b.Snapshot().UDPRefused == 1 })
	ask(t, first, to, "the others are not harmed")
	if got := b.Snapshot(); got.LiveUDP != 2 || got.UDPDropped != 0 {
		t.Errorf("%d flows live, want 2; %d datagrams dropped, want none: the guest was told", got.LiveUDP, got.UDPDropped)
	}
}

// testUDPTimeout checks that idle flows end, at their time, and that the guest's port works afterwards: other bridges
// lose it for good.
func testUDPTimeout(t *testing.T) {
	clock := newClock()
	b := newBridge(t, Options{Policy: testPolicy}, func(n *Network) {
		n.now = clock.now
		n.flows = newFlowTable(n)
	})
	server := echoUDP(t, "127.0.0.1:0")
	silent, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	answered, unanswered := guestUDP(t, b, 4000), guestUDP(t, b, 0)
	to := udpAddr(gateway(server.LocalAddr()))
	ask(t, answered, to, "hello")
	unanswered.WriteTo([]byte("hello"), udpAddr(gateway(silent.LocalAddr())))
	eventually(t, "two flows", func() bool { return b.Snapshot().LiveUDP == 2 })
	// A flow is in the table a moment before its time is set.
	if err := within(t, "the datagram", func() error { _, _, err := silent.ReadFrom(make([]byte, 8)); return err }); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		pass time.Duration
		want int
	}{
		{defaultLimits.udpNew - time.Second, 2},
		{time.Second, 1},
		{defaultLimits.udpAnswered - defaultLimits.udpNew - time.Second, 1},
		{time.Second, 0},
	} {
		clock.pass(c.pass)
		b.flows.expire()
		if got := b.Snapshot().LiveUDP; got != c.want {
			t.Errorf("%s later: %d live flows, want %d", c.pass, got, c.want)
		}
	}
	if got, _ := ask(t, answered, to, "again"); got != "echo again" {
		t.Errorf("answer %q, want %q", got, "echo again")
	}
}

func TestUDPDNSTimeout(t *testing.T) {
	f := &guestFlow{n: &Network{limits: defaultLimits, now: time.Now}}
	f.n.flows = newFlowTable(f.n)
	f.sent(netip.MustParseAddrPort("192.0.2.1:53"))
	if got := f.idleTime(); got != defaultLimits.udpDNS {
		t.Errorf("only DNS: idle time %s, want %s", got, defaultLimits.udpDNS)
	}
	f.sent(netip.MustParseAddrPort("192.0.2.1:123"))
	if got := f.idleTime(); got != defaultLimits.udpNew {
		t.Errorf("not only DNS: idle time %s, want %s", got, defaultLimits.udpNew)
	}
}

func TestUDPForward(t *testing.T) {
	o, addr := forwardOptions(t, UDP, 53)
	b := newBridge(t, o, nil)
	server := guestUDP(t, b, 53)
	var done sync.WaitGroup
	done.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			server.WriteTo(fmt.Appendf(nil, "%s for %s", buf[:n], from.(*net.UDPAddr).IP), from)
		}
	})
	t.Cleanup(func() { server.Close(); done.Wait() })
	eventually(t, "the guest is up", func() bool {
		select {
		case <-b.Up():
			return true
		default:
			return false
		}
	})
	for i := range 5 {
		c, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for j := range 3 {
			text := fmt.Sprintf("client %d, %d", i, j)
			got, from := ask(t, c, udpAddr(addr), text)
			if want := text + " for 10.0.2.2"; got != want {
				t.Errorf("answer %q, want %q", got, want)
			}
			if from.String() != addr.String() {
				t.Errorf("answer from %s, want %s", from, addr)
			}
		}
	}
	if got := b.Snapshot().LiveUDP; got != 5 {
		t.Errorf("Snapshot().LiveUDP = %d, want 5", got)
	}
}

// TestUDPForwardAllAddresses checks that an answer comes from the address that was asked, of IPv4 and IPv6, on a
// socket for all.
func TestUDPForwardAllAddresses(t *testing.T) {
	p := freePort(t, "udp")
	b := newBridge(t, Options{Forwards: []Forward{
		{Proto: UDP, Host: netip.AddrPortFrom(netip.Addr{}, p), Guest: 53},
	}}, nil)
	<-b.Up()
	server := guestUDP(t, b, 53)
	var done sync.WaitGroup
	done.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			server.WriteTo(buf[:n], from)
		}
	})
	t.Cleanup(func() { server.Close(); done.Wait() })
	for _, a := range []string{"127.0.0.1", "127.0.0.2", "::1"} {
		to := netip.AddrPortFrom(netip.MustParseAddr(a), p)
		local := "127.0.0.1:0"
		if to.Addr().Is6() {
			local = "[::1]:0"
		}
		c, err := net.ListenPacket("udp", local)
		if err != nil {
			t.Logf("%s: %v", a, err)
			continue
		}
		defer c.Close()
		if _, from := ask(t, c, udpAddr(to), "hello"); from.String() != to.String() {
			t.Errorf("answer from %s, want %s", from, to)
		}
	}
}

// TestUDPForwardExpires checks that a client's flow ends and a new one begins.
func TestUDPForwardExpires(t *testing.T) {
	clock := newClock()
	o, addr := forwardOptions(t, UDP, 53)
	b := newBridge(t, o, func(n *Network) {
		n.now = clock.now
		n.flows = newFlowTable(n)
	})
	<-b.Up()
	server := guestUDP(t, b, 53)
	c, err := net.Dial("udp4", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 2 {
		c.Write([]byte("hello"))
		server.SetReadDeadline(time.Now().Add(hang))
		buf := make([]byte, 10)
		if n, _, err := server.ReadFrom(buf); err != nil || !bytes.Equal(buf[:n], []byte("hello")) {
			t.Fatalf("ReadFrom() = %q, %v", buf[:n], err)
		}
		clock.pass(defaultLimits.udpAnswered)
		b.flows.expire()
		if got := b.Snapshot().LiveUDP; got != 0 {
			t.Errorf("Snapshot().LiveUDP = %d, want 0", got)
		}
		b.clients.mu.Lock()
		if got := len(b.clients.flows); got != 0 {
			t.Errorf("%d clients left, want 0", got)
		}
		b.clients.mu.Unlock()
	}
}

// fakeClock is a clock that passes by hand.
type fakeClock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *fakeClock { return &fakeClock{t: time.Unix(1e9, 0)} }

func (c *fakeClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *fakeClock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}
