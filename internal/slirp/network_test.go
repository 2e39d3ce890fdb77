package slirp

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/rs/zerolog"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// TestForwardErrors checks that all ports that cannot be bound are named at once, with the reason.
func TestForwardErrors(t *testing.T) {
	tcp := listenHost(t)
	udp := echoUDP(t, "127.0.0.1:0")
	_, err := New(Options{
		Socket: socketPath(t),
		Log:    zerolog.Nop(),
		Forwards: []Forward{
			{Proto: TCP, Host: netip.MustParseAddrPort("127.0.0.1:0"), Guest: 1},
			{Proto: TCP, Host: tcp.Addr().(*net.TCPAddr).AddrPort(), Guest: 22},
			{Proto: UDP, Host: udp.LocalAddr().(*net.UDPAddr).AddrPort(), Guest: 53},
			{Proto: TCP, Host: netip.MustParseAddrPort("192.0.2.1:8080"), Guest: 80},
			{Proto: TCP, Host: netip.AddrPortFrom(netip.Addr{}, port(tcp.Addr())), Guest: 80},
		},
	})
	if err == nil {
		t.Fatal("New() = nil, want an error")
	}
	holder := fmt.Sprintf("already taken by %s (pid %d)", ownName(t), os.Getpid())
	want := []string{
		fmt.Sprintf("listen on tcp %s: %s", tcp.Addr(), holder),
		fmt.Sprintf("listen on udp %s: %s", udp.LocalAddr(), holder),
		"listen on tcp 192.0.2.1:8080: 192.0.2.1 is not one of this host's addresses",
		fmt.Sprintf("listen on tcp *:%d: %s", port(tcp.Addr()), holder),
	}
	if got := strings.Split(err.Error(), "\n"); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("New() =\n%v\nwant\n%s", err, strings.Join(want, "\n"))
	}
}

// TestForwardFamilies checks that 0.0.0.0 and :: are one family each: the same port can lead to two of the guest's.
func TestForwardFamilies(t *testing.T) {
	p := freePort(t, "tcp")
	for _, proto := range []Proto{TCP, UDP} {
		n, err := New(Options{Socket: socketPath(t), Log: zerolog.Nop(), Forwards: []Forward{
			{Proto: proto, Host: netip.AddrPortFrom(netip.IPv4Unspecified(), p), Guest: 80},
			{Proto: proto, Host: netip.AddrPortFrom(netip.IPv6Unspecified(), p), Guest: 81},
		}})
		if err != nil {
			t.Fatalf("New() for %s = %v", proto, err)
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestForwardAllAddresses checks that a port without an address is open on IPv4 and IPv6.
func TestForwardAllAddresses(t *testing.T) {
	p := freePort(t, "tcp")
	b := newBridge(t, Options{Forwards: []Forward{
		{Proto: TCP, Host: netip.AddrPortFrom(netip.Addr{}, p), Guest: 80},
	}}, nil)
	l, err := b.guest.ListenTCP(80)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, a := range []string{"127.0.0.1", "::1"} {
		c, err := net.Dial("tcp", net.JoinHostPort(a, fmt.Sprint(p)))
		if err != nil {
			t.Logf("%s: %v", a, err)
			continue
		}
		g, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(g, a)
		expectRead(t, c, a)
		c.Close()
		g.Close()
	}
}

// TestForwardBeforeGuestIsUp checks that an early client waits for the guest instead of being refused or lost.
func TestForwardBeforeGuestIsUp(t *testing.T) {
	o, addr := forwardOptions(t, TCP, 22)
	b := newSilentBridge(t, o, nil)
	c, err := net.Dial("tcp4", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	l, err := b.guest.ListenTCP(22)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	// What a NIC without an address sends does not count: neither a probe nor somebody else's ARP.
	b.guest.SendARP(header.ARPRequest, [4]byte{}, GuestAddr.As4())
	b.guest.SendARP(header.ARPRequest, [4]byte{169, 254, 1, 1}, GuestAddr.As4())
	eventually(t, "the frames arrive", func() bool { return b.Snapshot().FramesIn == 2 })
	if got := b.Snapshot().FramesOut; got != 0 {
		t.Errorf("%d frames were sent to a guest that is not up", got)
	}
	b.guest.Announce()
	g := accept(t, l)
	fmt.Fprint(g, "SSH-2.0-hello")
	expectRead(t, c, "SSH-2.0-hello")
	if got := b.stack.Stats().TCP.Retransmits.Value(); got != 0 {
		t.Errorf("%d retransmissions, want none", got)
	}
}

// TestGuestIsAskedFor has a guest that does not announce itself.
func TestGuestIsAskedFor(t *testing.T) {
	b := newSilentBridge(t, Options{}, func(n *Network) { n.limits.probe = time.Millisecond })
	within(t, "the guest's NIC", func() bool { <-b.Up(); return true })
}

// TestForwardBeforeServerIsUp checks that an early client waits for the guest's server too, while a later one is
// refused.
func TestForwardBeforeServerIsUp(t *testing.T) {
	o, addr := forwardOptions(t, TCP, 22)
	b := newSilentBridge(t, o, nil)
	c, err := net.Dial("tcp4", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	eventually(t, "the client is accepted", func() bool { return b.waitingClients.Load() == 1 })
	b.guest.Announce()
	eventually(t, "the guest refuses", func() bool { return b.guest.Stack.Stats().TCP.ResetsSent.Value() > 0 })
	expectReset(t, addr)
	l, err := b.guest.ListenTCP(22)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	g := accept(t, l)
	fmt.Fprint(g, "SSH-2.0-hello")
	expectRead(t, c, "SSH-2.0-hello")
}

// TestForwardWhileServersStart checks that a client waits for a server that may still start, and that a port which has
// served one is refused at once.
func TestForwardWhileServersStart(t *testing.T) {
	o, addr := forwardOptions(t, TCP, 22)
	b := newBridge(t, o, func(n *Network) { n.limits.servers = time.Hour })
	c, err := net.Dial("tcp4", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	eventually(t, "the guest refuses", func() bool { return b.guest.Stack.Stats().TCP.ResetsSent.Value() > 1 })
	l, err := b.guest.ListenTCP(22)
	if err != nil {
		t.Fatal(err)
	}
	g := accept(t, l)
	fmt.Fprint(g, "SSH-2.0-hello")
	expectRead(t, c, "SSH-2.0-hello")
	l.Close()
	expectReset(t, addr)
}

// TestForwardGuestNeverUp checks that the wait for the guest is bounded.
func TestForwardGuestNeverUp(t *testing.T) {
	o, addr := forwardOptions(t, TCP, 22)
	newSilentBridge(t, o, func(n *Network) { n.limits.guestUp = time.Millisecond })
	expectReset(t, addr)
}

func TestDHCP(t *testing.T) {
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	writeFile(t, resolv, "search example.org\nnameserver 192.0.2.1\n")
	b := newBridge(t, Options{ResolvConf: resolv}, nil)
	c, err := b.guest.ListenUDPAny(68)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	exchange := func(m *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
		t.Helper()
		text, _ := ask(t, c, &net.UDPAddr{IP: net.IPv4bcast, Port: 67}, string(m.ToBytes()))
		answer, err := dhcpv4.FromBytes([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	discover, err := dhcpv4.NewDiscovery(GuestMAC, dhcpv4.WithBroadcast(true))
	if err != nil {
		t.Fatal(err)
	}
	offer := exchange(discover)
	request, err := dhcpv4.NewRequestFromOffer(offer)
	if err != nil {
		t.Fatal(err)
	}
	ack := exchange(request)
	if ack.MessageType() != dhcpv4.MessageTypeAck || ack.YourIPAddr.String() != "10.0.2.15" ||
		ack.Router()[0].String() != "10.0.2.2" || ack.DNS()[0].String() != "10.0.2.3" || ack.DomainName() != "example.org" {
		t.Errorf("answer to the request: %s", ack.Summary())
	}
}

func TestRunEndsWithContext(t *testing.T) {
	n, err := New(Options{Socket: socketPath(t), Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := within(t, "Run", func() error { return n.Run(ctx) }); err != nil {
		t.Errorf("Run() = %v", err)
	}
	if err := n.Run(context.Background()); err == nil {
		t.Error("the second Run() = nil, want an error")
	}
}

func TestRunEndsWithGuest(t *testing.T) {
	b := newBridge(t, Options{}, nil)
	b.guest.Close()
	err := within(t, "Run", func() error { return <-b.done })
	if err != nil {
		t.Errorf("Run() = %v, want nil", err)
	}
	b.done <- nil // for newBridge
}

func TestCloseWithoutRun(t *testing.T) {
	n, err := New(Options{Socket: socketPath(t), Log: zerolog.Nop(), Forwards: []Forward{
		{Proto: TCP, Host: netip.MustParseAddrPort("127.0.0.1:0"), Guest: 22},
	}})
	if err != nil {
		t.Fatal(err)
	}
	n.Close()
	n.Close()
	if err := n.Run(context.Background()); err == nil {
		t.Error("Run() after Close() = nil, want an error")
	}
}

// TestCloseUnderLoad ends a network with connections in every state. goleak sees to the rest.
func TestCloseUnderLoad(t *testing.T) {
	o, addr := forwardOptions(t, TCP, 22)
	b := newBridge(t, o, nil)
	server := listenHost(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for range 50 {
		go b.guest.DialTCP(ctx, gateway(server.Addr())) // never accepted
	}
	for range 20 {
		guest, host := guestToHost(t, b)
		go io.Copy(guest, zeros{})
		go io.Copy(host, zeros{})
	}
	for range 20 {
		if c, err := net.Dial("tcp4", addr.String()); err == nil { // nobody listens in the guest
			defer c.Close()
		}
	}
	c := guestUDP(t, b, 0)
	c.WriteTo([]byte("x"), udpAddr(gateway(echoUDP(t, "127.0.0.1:0").LocalAddr())))
	b.Network.Close()
	if err := within(t, "Run", func() error { return <-b.done }); err != nil {
		t.Errorf("Run() = %v", err)
	}
	b.done <- nil // for newBridge
	if got := b.Snapshot(); got.LiveTCP != 0 || got.LiveUDP != 0 {
		t.Errorf("Snapshot() = %+v, want no live flows", got)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }
