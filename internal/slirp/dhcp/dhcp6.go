package dhcp

import (
	"context"
	"net"
	"net/netip"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/insomniacslk/dhcp/rfc1035label"
)

// Theory of operation
//
// RFC 8415, cut down like its elder. A guest that has its address from elsewhere asks for the settings alone
// (INFORMATION-REQUEST). One that wants an address gets the one there is, for its first IA_NA; anything else that it may
// ask for, further and temporary addresses and prefixes, there is none of, and it is told so. There is no state, so
// RENEW and REBIND are answered like REQUEST, and RELEASE and DECLINE with success.
//
// Messages come by multicast (AllServers) from the client's link-local address; answers go to where they came from.

// The UDP ports of DHCPv6.
const (
	ServerPort6 = 547
	ClientPort6 = 546
)

// AllServers is All_DHCP_Relay_Agents_and_Servers.
var AllServers = netip.MustParseAddr("ff02::1:2")

// maxSearchBytes6 bounds the search domains: with the rest the answer fits IPv6's smallest MTU, 1280 bytes.
const maxSearchBytes6 = 800

// Options6 of a Server6.
type Options6 struct {
	Guest  netip.Prefix     // the guest's address, with the length of its prefix
	Server net.HardwareAddr // its identifier is made of it
	DNS    []netip.Addr
	// Search returns the domain search list. It is asked for each answer; nil is none.
	Search func() []string
}

// Server6 answers DHCPv6 clients.
type Server6 struct {
	o  Options6
	id *dhcpv6.DUIDLL
}

// New6 makes a server.
func New6(o Options6) *Server6 {
	return &Server6{o: o, id: &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: o.Server}}
}

// Serve answers the requests that arrive on conn until ctx ends, then returns nil, or until conn fails. It closes conn.
func (s *Server6) Serve(ctx context.Context, conn net.PacketConn) error {
	return serve(ctx, conn, "dhcpv6", func(msg []byte, from net.Addr) ([]byte, net.Addr) { return s.Answer(msg), from })
}

// Answer returns the answer to a message, or nil if there is none to give.
func (s *Server6) Answer(msg []byte) []byte {
	req, err := dhcpv6.MessageFromBytes(msg)
	if err != nil || !s.isOurs(req) {
		return nil
	}
	resp := &dhcpv6.Message{MessageType: dhcpv6.MessageTypeReply, TransactionID: req.TransactionID}
	if id := req.Options.ClientID(); id != nil {
		resp.AddOption(dhcpv6.OptClientID(id))
	}
	resp.AddOption(dhcpv6.OptServerID(s.id))
	switch req.MessageType {
	case dhcpv6.MessageTypeSolicit:
		if req.GetOneOption(dhcpv6.OptionRapidCommit) != nil {
			dhcpv6.WithRapidCommit(resp)
		} else {
			resp.MessageType = dhcpv6.MessageTypeAdvertise
			dhcpv6.WithPreference(255)(resp) // the client need not wait for other servers
		}
		s.assign(req, resp)
		s.settings(resp)
	case dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRebind:
		s.assign(req, resp)
		s.settings(resp)
	case dhcpv6.MessageTypeInformationRequest:
		s.settings(resp)
	case dhcpv6.MessageTypeConfirm:
		status, ok := s.confirm(req)
		if !ok {
			return nil
		}
		resp.AddOption(&dhcpv6.OptStatusCode{StatusCode: status})
	case dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline:
		resp.AddOption(&dhcpv6.OptStatusCode{StatusCode: iana.StatusSuccess})
	}
	return resp.ToBytes()
}

// isOurs says whether a message has what its kind must have (RFC 8415 section 16) and is not for another server.
func (s *Server6) isOurs(req *dhcpv6.Message) bool {
	server := req.Options.ServerID()
	client := req.Options.ClientID()
	switch req.MessageType {
	case dhcpv6.MessageTypeSolicit, dhcpv6.MessageTypeConfirm, dhcpv6.MessageTypeRebind:
		return client != nil && server == nil
	case dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline:
		return client != nil && server != nil && s.id.Equal(server)
	case dhcpv6.MessageTypeInformationRequest:
		return server == nil || s.id.Equal(server)
	}
	return false
}

// assign answers each request for an address or a prefix.
func (s *Server6) assign(req, resp *dhcpv6.Message) {
	guest := ip(s.o.Guest.Addr())
	for i, asked := range req.Options.IANA() {
		ia := &dhcpv6.OptIANA{IaId: asked.IaId}
		resp.AddOption(ia)
		if i > 0 {
			ia.Options.Add(&dhcpv6.OptStatusCode{StatusCode: iana.StatusNoAddrsAvail})
			continue
		}
		ia.T1, ia.T2 = leaseTime/2, leaseTime*4/5 // RFC 8415 section 21.4
		ia.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: guest, PreferredLifetime: leaseTime, ValidLifetime: leaseTime})
		if req.MessageType != dhcpv6.MessageTypeRenew && req.MessageType != dhcpv6.MessageTypeRebind {
			continue
		}
		for _, a := range asked.Options.Addresses() {
			if !a.IPv6Addr.Equal(guest) {
				ia.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: a.IPv6Addr}) // its time is up
			}
		}
	}
	for _, asked := range req.Options.IATA() {
		ia := &dhcpv6.OptIATA{IaId: asked.IaId}
		ia.Options.Add(&dhcpv6.OptStatusCode{StatusCode: iana.StatusNoAddrsAvail})
		resp.AddOption(ia)
	}
	for _, asked := range req.Options.IAPD() {
		ia := &dhcpv6.OptIAPD{IaId: asked.IaId}
		ia.Options.Add(&dhcpv6.OptStatusCode{StatusCode: iana.StatusNoPrefixAvail})
		resp.AddOption(ia)
	}
}

// confirm says whether the client's addresses are ones of this link. It is not ok if the client names none.
func (s *Server6) confirm(req *dhcpv6.Message) (status iana.StatusCode, ok bool) {
	for _, ia := range req.Options.IANA() {
		for _, a := range ia.Options.Addresses() {
			ok = true
			if addr, valid := netip.AddrFromSlice(a.IPv6Addr); !valid || !s.o.Guest.Contains(addr) {
				return iana.StatusNotOnLink, true
			}
		}
	}
	return iana.StatusSuccess, ok
}

func (s *Server6) settings(resp *dhcpv6.Message) {
	if len(s.o.DNS) > 0 {
		resp.AddOption(dhcpv6.OptDNS(ips(s.o.DNS)...))
	}
	if s.o.Search == nil {
		return
	}
	if search := fitting(s.o.Search(), maxSearchBytes6); len(search) > 0 {
		resp.AddOption(dhcpv6.OptDomainSearchList(&rfc1035label.Labels{Labels: search}))
	}
}
