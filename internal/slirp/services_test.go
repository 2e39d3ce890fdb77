package slirp

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/rs/zerolog"
	"golang.org/x/net/dns/dnsmessage"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"docker-usermode-linux/internal/slirp/dhcp"
	"docker-usermode-linux/internal/slirp/slirptest"
)

// newGuest6 starts a network with a guest that speaks IPv6 alone, and returns the guest's stack.
func newGuest6(t *testing.T, o Options) *stack.Stack {
	t.Helper()
	o.Socket, o.Log = socketPath(t), zerolog.Nop()
	n, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()

	ep, err := slirptest.Connect(o.Socket, GuestMAC, MTU, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol},
	})
	if err := s.CreateNIC(nicID, ep); err != nil {
		t.Fatal(err)
	}
	for _, a := range []netip.Addr{GuestAddr6, guestLinkLocal} {
		p := tcpip.ProtocolAddress{
			Protocol:          ipv6.ProtocolNumber,
			AddressWithPrefix: tcpip.AddressWithPrefix{Address: stackAddr(a), PrefixLen: PrefixBits6},
		}
		if err := s.AddProtocolAddress(nicID, p, stack.AddressProperties{}); err != nil {
			t.Fatal(err)
		}
	}
	s.SetRouteTable([]tcpip.Route{{Destination: header.IPv6EmptySubnet, NIC: nicID}})
	t.Cleanup(func() {
		cancel()
		if err := within(t, "Run", func() error { return <-done }); err != nil {
			t.Errorf("Run() = %v", err)
		}
		ep.Close()
		s.Close()
		s.Wait()
	})
	return s
}

// dnsQuery asks for a name that the relay answers itself, and want is how the answer begins.
func dnsQuery(t testing.TB) (o Options, query, want string) {
	t.Helper()
	m := dnsmessage.Message{
		Header: dnsmessage.Header{ID: 0x1234},
		Questions: []dnsmessage.Question{{
			Name: dnsmessage.MustNewName("host.uml.internal."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET,
		}},
	}
	q, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	o = Options{Hosts: map[string][]netip.Addr{"host.uml.internal": {GatewayAddr}}}
	return o, string(q), "\x12\x34\x84\x80\x00\x01\x00\x01\x00\x00\x00\x00" + string(q[12:])
}

func testDNSThroughBridge(t *testing.T) {
	o, query, want := dnsQuery(t)
	b := newBridge(t, o, nil)
	got, _ := ask(t, guestUDP(t, b, 0), udpAddr(netip.AddrPortFrom(DNSAddr, 53)), query)
	if !strings.HasPrefix(got, want) {
		t.Errorf("over UDP: %x, want %x at its start", got, want)
	}
	conn, err := b.guest.DialTCP(hangContext(t), netip.AddrPortFrom(DNSAddr, 53))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...))
	expectRead(t, conn, string(binary.BigEndian.AppendUint16(nil, uint16(len(got))))+got)
	if s := b.Snapshot(); s.DNSQueries != 2 || s.DNSFailures != 0 || s.DNSDropped != 0 {
		t.Errorf("%d queries, %d failures, %d dropped; want 2 queries", s.DNSQueries, s.DNSFailures, s.DNSDropped)
	}
}

func TestDNSThroughBridge6(t *testing.T) {
	o, query, want := dnsQuery(t)
	s := newGuest6(t, o)
	at := fullAddress(netip.AddrPortFrom(DNSAddr6, 53))
	c, err := gonet.DialUDP(s, nil, &at, ipv6.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write([]byte(query))
	expectRead(t, c, want)
	conn, err := gonet.DialContextTCP(hangContext(t), s, at, ipv6.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...))
	const record = 16 // bytes of an A record whose name is compressed
	expectRead(t, conn, string(binary.BigEndian.AppendUint16(nil, uint16(len(query)+record)))+want)
}

// TestDHCPv6ThroughBridge asks as a client does: from the link-local address, by multicast.
func TestDHCPv6ThroughBridge(t *testing.T) {
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	writeFile(t, resolv, "search example.org\nnameserver 192.0.2.1\n")
	s := newGuest6(t, Options{ResolvConf: resolv})
	local := fullAddress(netip.AddrPortFrom(guestLinkLocal, dhcp.ClientPort6))
	c, err := gonet.DialUDP(s, &local, nil, ipv6.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	solicit, err := dhcpv6.NewSolicit(GuestMAC, dhcpv6.WithRapidCommit)
	if err != nil {
		t.Fatal(err)
	}
	text, _ := ask(t, c, &net.UDPAddr{IP: dhcp.AllServers.AsSlice(), Port: dhcp.ServerPort6}, string(solicit.ToBytes()))
	answer, err := dhcpv6.MessageFromBytes([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if answer.MessageType != dhcpv6.MessageTypeReply ||
		answer.Options.OneIANA().Options.OneAddress().IPv6Addr.String() != "fd00:10:0:2::15" ||
		answer.Options.DNS()[0].String() != "fd00:10:0:2::3" || answer.Options.DomainSearchList().Labels[0] != "example.org" {
		t.Errorf("answer to the solicitation: %s", answer.Summary())
	}
}
