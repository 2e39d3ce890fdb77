package dhcp

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var mac = net.HardwareAddr{2, 0, 0, 0, 0, 1}

func newServer(search ...string) *Server {
	return New(Options{
		Guest:  netip.MustParsePrefix("10.0.2.15/24"),
		Server: netip.MustParseAddr("10.0.2.2"),
		Router: netip.MustParseAddr("10.0.2.2"),
		DNS:    []netip.Addr{netip.MustParseAddr("10.0.2.3")},
		MTU:    1500,
		Search: func() []string { return search },
	})
}

func message(t testing.TB, kind dhcpv4.MessageType, mods ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	t.Helper()
	m, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithHwAddr(mac), dhcpv4.WithMessageType(kind)}, mods...)...)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// answer returns the server's answer, or nil.
func answer(t testing.TB, s *Server, m *dhcpv4.DHCPv4, from string) (*dhcpv4.DHCPv4, string) {
	t.Helper()
	data, to := s.Answer(m.ToBytes(), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(from)))
	if data == nil {
		return nil, ""
	}
	a, err := dhcpv4.FromBytes(data)
	if err != nil {
		t.Fatalf("the answer is malformed: %v", err)
	}
	if a.TransactionID != m.TransactionID || !slices.Equal(a.ClientHWAddr, m.ClientHWAddr) ||
		a.OpCode != dhcpv4.OpcodeBootReply {
		t.Errorf("the answer is to another client: %s", a.Summary())
	}
	return a, to.String()
}

func TestLease(t *testing.T) {
	s := newServer("example.org", "corp.example.org")
	offer, to := answer(t, s, message(t, dhcpv4.MessageTypeDiscover), "0.0.0.0:68")
	if offer == nil || offer.MessageType() != dhcpv4.MessageTypeOffer || to != "255.255.255.255:68" {
		t.Fatalf("answer to DISCOVER: %v to %s, want an OFFER by broadcast", offer, to)
	}
	request, err := dhcpv4.NewRequestFromOffer(offer)
	if err != nil {
		t.Fatal(err)
	}
	ack, to := answer(t, s, request, "0.0.0.0:68")
	if ack == nil || ack.MessageType() != dhcpv4.MessageTypeAck || to != "255.255.255.255:68" {
		t.Fatalf("answer to REQUEST: %v to %s, want an ACK by broadcast", ack, to)
	}
	mtu, _ := dhcpv4.GetUint16(dhcpv4.OptionInterfaceMTU, ack.Options)
	got := fmt.Sprintln(ack.YourIPAddr, ack.SubnetMask(), ack.Router(), ack.DNS(), ack.ServerIdentifier(), mtu,
		ack.IPAddressLeaseTime(0), ack.DomainName(), ack.DomainSearch().Labels)
	want := "10.0.2.15 ffffff00 [10.0.2.2] [10.0.2.3] 10.0.2.2 1500 24h0m0s example.org [example.org corp.example.org]\n"
	if got != want {
		t.Errorf("lease %s, want %s", got, want)
	}

	// Renewing and rebinding differ only in where they are sent to.
	renewal := message(t, dhcpv4.MessageTypeRequest, dhcpv4.WithClientIP(net.IPv4(10, 0, 2, 15)),
		dhcpv4.WithOption(dhcpv4.OptClientIdentifier([]byte("me"))))
	ack, to = answer(t, s, renewal, "10.0.2.15:68")
	if ack == nil || ack.MessageType() != dhcpv4.MessageTypeAck || to != "10.0.2.15:68" ||
		!ack.YourIPAddr.Equal(net.IPv4(10, 0, 2, 15)) || ack.IPAddressLeaseTime(0) != leaseTime ||
		string(ack.Options.Get(dhcpv4.OptionClientIdentifier)) != "me" {
		t.Errorf("answer to a renewal: %v to %s, want an ACK to the client, with its identifier", ack, to)
	}
}

// TestInform checks that a guest that gave itself an address gets the settings there, and no lease.
func TestInform(t *testing.T) {
	for _, addr := range []string{"10.0.2.15", "10.0.2.77"} {
		m := message(t, dhcpv4.MessageTypeInform, dhcpv4.WithClientIP(net.ParseIP(addr)))
		ack, to := answer(t, newServer("example.org"), m, addr+":68")
		if ack == nil || ack.MessageType() != dhcpv4.MessageTypeAck || to != addr+":68" {
			t.Fatalf("answer to INFORM: %v to %s, want an ACK to %s", ack, to, addr)
		}
		if !ack.YourIPAddr.IsUnspecified() || ack.IPAddressLeaseTime(0) != 0 || ack.DomainName() != "example.org" {
			t.Errorf("answer to INFORM: %s, want the settings alone", ack.Summary())
		}
	}
}

func TestOtherMessages(t *testing.T) {
	s := newServer()
	other := dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(192, 0, 2, 1)))
	wants := func(ip ...byte) dhcpv4.Modifier {
		return dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.IP(ip)))
	}
	for _, c := range []struct {
		name string
		msg  *dhcpv4.DHCPv4
		want dhcpv4.MessageType // 0 is silence
	}{
		{"request for another address", message(t, dhcpv4.MessageTypeRequest, wants(192, 168, 1, 5)), dhcpv4.MessageTypeNak},
		{"request for the address", message(t, dhcpv4.MessageTypeRequest, wants(10, 0, 2, 15)), dhcpv4.MessageTypeAck},
		{
			"request to another server",
			message(t, dhcpv4.MessageTypeRequest, wants(10, 0, 2, 15), other), dhcpv4.MessageTypeNone,
		},
		{"inform", message(t, dhcpv4.MessageTypeInform, dhcpv4.WithClientIP(net.IPv4(10, 0, 2, 15))), dhcpv4.MessageTypeAck},
		{"release", message(t, dhcpv4.MessageTypeRelease), dhcpv4.MessageTypeNone},
		{"decline", message(t, dhcpv4.MessageTypeDecline), dhcpv4.MessageTypeNone},
		{"bootp", message(t, dhcpv4.MessageTypeNone), dhcpv4.MessageTypeNone},
	} {
		a, _ := answer(t, s, c.msg, "0.0.0.0:68")
		got := dhcpv4.MessageTypeNone
		if a != nil {
			got = a.MessageType()
		}
		if got != c.want {
			t.Errorf("%s: answer %s, want %s", c.name, got, c.want)
		}
		if c.want == dhcpv4.MessageTypeNak && !a.YourIPAddr.IsUnspecified() {
			t.Errorf("%s: the NAK gives %s", c.name, a.YourIPAddr)
		}
	}
}

func longSearch() []string {
	var search []string
	for i := range 200 {
		search = append(search, fmt.Sprintf("d%d.%s.example", i, strings.Repeat("x", 30)))
	}
	return search
}

// testLongSearchList checks that a long list of domains is cut (other bridges die of one) and the answer fits any
// client.
func testLongSearchList(t *testing.T) {
	// The report's list has one short name many times.
	for _, search := range [][]string{longSearch(), slices.Repeat([]string{"home"}, 400)} {
		a, _ := answer(t, newServer(search...), message(t, dhcpv4.MessageTypeDiscover), "0.0.0.0:68")
		if got := len(a.DomainSearch().Labels); got == 0 || got > 100 {
			t.Errorf("%d search domains, want some", got)
		}
		if got := len(a.ToBytes()); got > 548 {
			t.Errorf("an answer of %d bytes, want at most 548", got)
		}
	}
}

func TestServe(t *testing.T) {
	_, end := serveNoise(t, newServer().Serve)
	end()
}

// serveNoise runs a server, and returns a client of it that has sent what is no message, and a function that ends the
// server and checks that this is no error.
func serveNoise(t *testing.T, serve func(context.Context, net.PacketConn) error) (c net.Conn, end func()) {
	t.Helper()
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- serve(ctx, conn) }()
	c, err = net.Dial("udp4", conn.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.Write([]byte("noise"))
	return c, func() {
		t.Helper()
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Serve() = %v", err)
			}
		case <-time.After(time.Minute):
			t.Fatal("Serve() does not return")
		}
	}
}

func FuzzAnswer(f *testing.F) {
	s := newServer("example.org")
	for _, kind := range []dhcpv4.MessageType{
		dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest, dhcpv4.MessageTypeInform,
	} {
		f.Add(message(f, kind).ToBytes())
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		out, to := s.Answer(data, &net.UDPAddr{IP: net.IPv4zero, Port: ClientPort})
		if out == nil {
			return
		}
		if to == nil {
			t.Error("an answer to nobody")
		}
		if _, err := dhcpv4.FromBytes(out); err != nil {
			t.Errorf("the answer is malformed: %v", err)
		}
		if len(out) > maxMessage {
			t.Errorf("an answer of %d bytes", len(out))
		}
	})
}
