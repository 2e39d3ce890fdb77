package dhcp

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
)

var (
	clientID = &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: mac}
	otherID  = &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: net.HardwareAddr{2, 0, 0, 0, 0, 9}}
)

func newServer6(search ...string) *Server6 {
	return New6(Options6{
		Guest:  netip.MustParsePrefix("fd00:10:0:2::15/64"),
		Server: net.HardwareAddr{2, 0, 0, 0, 0, 2},
		DNS:    []netip.Addr{netip.MustParseAddr("fd00:10:0:2::3")},
		Search: func() []string { return search },
	})
}

// message6 is a client's message with its identifier.
func message6(t testing.TB, kind dhcpv6.MessageType, mods ...dhcpv6.Modifier) *dhcpv6.Message {
	t.Helper()
	m, err := dhcpv6.NewMessage(append([]dhcpv6.Modifier{dhcpv6.WithClientID(clientID)}, mods...)...)
	if err != nil {
		t.Fatal(err)
	}
	m.MessageType = kind
	return m
}

// answer6 returns the server's answer, or nil.
func answer6(t testing.TB, s *Server6, m *dhcpv6.Message) *dhcpv6.Message {
	t.Helper()
	data := s.Answer(m.ToBytes())
	if data == nil {
		return nil
	}
	a, err := dhcpv6.MessageFromBytes(data)
	if err != nil {
		t.Fatalf("the answer is malformed: %v", err)
	}
	if a.TransactionID != m.TransactionID || a.Options.ServerID() == nil || !a.Options.ServerID().Equal(s.id) {
		t.Errorf("the answer is to another client, or from another server: %s", a.Summary())
	}
	return a
}

// ia asks for addresses.
func ia(number byte, addrs ...string) dhcpv6.Modifier {
	o := &dhcpv6.OptIANA{IaId: [4]byte{number}}
	for _, a := range addrs {
		o.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: net.ParseIP(a)})
	}
	return func(d dhcpv6.DHCPv6) { d.AddOption(o) }
}

// says renders what an answer says.
func says(m *dhcpv6.Message) string {
	if m == nil {
		return "nothing"
	}
	out := []string{m.MessageType.String()}
	if s := m.Options.Status(); s != nil {
		out = append(out, s.StatusCode.String())
	}
	for _, ia := range m.Options.IANA() {
		out = append(out, fmt.Sprint("ia", ia.IaId[0]))
		for _, a := range ia.Options.Addresses() {
			out = append(out, fmt.Sprint(a.IPv6Addr, " ", a.ValidLifetime))
		}
		if s := ia.Options.Status(); s != nil {
			out = append(out, s.StatusCode.String())
		}
	}
	for _, ia := range m.Options.IATA() {
		out = append(out, "ta "+ia.Options.Status().StatusCode.String())
	}
	for _, ia := range m.Options.IAPD() {
		out = append(out, "pd "+ia.Options.Status().StatusCode.String())
	}
	for _, a := range m.Options.DNS() {
		out = append(out, "dns "+a.String())
	}
	if l := m.Options.DomainSearchList(); l != nil {
		out = append(out, fmt.Sprint(l.Labels))
	}
	return strings.Join(out, ", ")
}

func TestAnswer6(t *testing.T) {
	s := newServer6("example.org", "corp.example.org")
	ours, other := dhcpv6.WithServerID(s.id), dhcpv6.WithServerID(otherID)
	const settings = ", dns fd00:10:0:2::3, [example.org corp.example.org]"
	for _, c := range []struct {
		name string
		msg  *dhcpv6.Message
		want string
	}{
		{
			"information request", message6(t, dhcpv6.MessageTypeInformationRequest),
			"REPLY" + settings,
		},
		{
			"information request to another", message6(t, dhcpv6.MessageTypeInformationRequest, other),
			"nothing",
		},
		{
			"solicit", message6(t, dhcpv6.MessageTypeSolicit, ia(1)),
			"ADVERTISE, ia1, fd00:10:0:2::15 24h0m0s" + settings,
		},
		{
			"rapid commit", message6(t, dhcpv6.MessageTypeSolicit, ia(1), dhcpv6.WithRapidCommit),
			"REPLY, ia1, fd00:10:0:2::15 24h0m0s" + settings,
		},
		{
			"all there is", message6(t, dhcpv6.MessageTypeSolicit, ia(1), ia(2), dhcpv6.WithIATA([4]byte{3}),
				dhcpv6.WithIAPD([4]byte{4})),
			"ADVERTISE, ia1, fd00:10:0:2::15 24h0m0s, ia2, NoAddrsAvail, ta NoAddrsAvail, pd NoPrefixAvail" + settings,
		},
		{"solicit with a server", message6(t, dhcpv6.MessageTypeSolicit, ia(1), ours), "nothing"},
		{
			"request", message6(t, dhcpv6.MessageTypeRequest, ia(1, "fd00:10:0:2::15"), ours),
			"REPLY, ia1, fd00:10:0:2::15 24h0m0s" + settings,
		},
		{"request to another", message6(t, dhcpv6.MessageTypeRequest, ia(1), other), "nothing"},
		{"request to nobody", message6(t, dhcpv6.MessageTypeRequest, ia(1)), "nothing"},
		{
			"renew", message6(t, dhcpv6.MessageTypeRenew, ia(1, "fd00:10:0:2::15"), ours),
			"REPLY, ia1, fd00:10:0:2::15 24h0m0s" + settings,
		},
		{
			"rebind of another address", message6(t, dhcpv6.MessageTypeRebind, ia(1, "fd00:10:0:2::77")),
			"REPLY, ia1, fd00:10:0:2::15 24h0m0s, fd00:10:0:2::77 0s" + settings,
		},
		{"confirm", message6(t, dhcpv6.MessageTypeConfirm, ia(1, "fd00:10:0:2::15")), "REPLY, Success"},
		{"confirm elsewhere", message6(t, dhcpv6.MessageTypeConfirm, ia(1, "2001:db8::1")), "REPLY, NotOnLink"},
		{"confirm nothing", message6(t, dhcpv6.MessageTypeConfirm, ia(1)), "nothing"},
		{"release", message6(t, dhcpv6.MessageTypeRelease, ia(1, "fd00:10:0:2::15"), ours), "REPLY, Success"},
		{"decline", message6(t, dhcpv6.MessageTypeDecline, ia(1, "fd00:10:0:2::15"), ours), "REPLY, Success"},
		{"an answer", message6(t, dhcpv6.MessageTypeReply, ours), "nothing"},
	} {
		a := answer6(t, s, c.msg)
		if got := says(a); got != c.want {
			t.Errorf("%s: answer %s, want %s", c.name, got, c.want)
		}
		if a != nil && !clientID.Equal(a.Options.ClientID()) {
			t.Errorf("%s: the answer is for client %v", c.name, a.Options.ClientID())
		}
	}
	anonymous := message6(t, dhcpv6.MessageTypeInformationRequest)
	anonymous.Options.Del(dhcpv6.OptionClientID)
	if got, want := says(answer6(t, s, anonymous)), "REPLY"+settings; got != want {
		t.Errorf("without an identifier: answer %s, want %s", got, want)
	}
}

func testLongSearchList6(t *testing.T) {
	m := message6(t, dhcpv6.MessageTypeSolicit, ia(1))
	a := answer6(t, newServer6(longSearch()...), m)
	if got := len(a.Options.DomainSearchList().Labels); got == 0 || got > 30 {
		t.Errorf("%d search domains, want some", got)
	}
	if got := len(a.ToBytes()); got > 1232 {
		t.Errorf("an answer of %d bytes, want at most 1232", got)
	}
}

func TestServe6(t *testing.T) {
	c, end := serveNoise(t, newServer6().Serve)
	m := message6(t, dhcpv6.MessageTypeInformationRequest)
	c.Write(m.ToBytes())
	c.SetReadDeadline(time.Now().Add(time.Minute))
	buf := make([]byte, maxMessage)
	n, err := c.Read(buf)
	if err != nil || !slices.Equal(buf[1:4], m.TransactionID[:]) {
		t.Errorf("answer %x, %v", buf[:n], err)
	}
	end()
}

func FuzzAnswer6(f *testing.F) {
	s := newServer6("example.org")
	ours := dhcpv6.WithServerID(s.id)
	f.Add(message6(f, dhcpv6.MessageTypeSolicit, ia(1), ia(2), dhcpv6.WithIAPD([4]byte{4})).ToBytes())
	f.Add(message6(f, dhcpv6.MessageTypeRenew, ia(1, "fd00:10:0:2::15", "fd00:10:0:2::77"), ours).ToBytes())
	f.Add(message6(f, dhcpv6.MessageTypeConfirm, ia(1, "fd00:10:0:2::15")).ToBytes())
	f.Add(message6(f, dhcpv6.MessageTypeInformationRequest).ToBytes())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		out := s.Answer(data)
		if out == nil {
			return
		}
		if _, err := dhcpv6.MessageFromBytes(out); err != nil {
			t.Errorf("the answer is malformed: %v", err)
		}
		// What is repeated of a message is never more than twice as long.
		if len(out) > 2*len(data)+200 {
			t.Errorf("an answer of %d bytes to one of %d", len(out), len(data))
		}
	})
}
