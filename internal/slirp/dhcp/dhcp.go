// Package dhcp holds DHCP servers for one client, for IPv4 and IPv6: they offer the same address to whoever asks. They are
// for guests that bring their own DHCP client; a guest that was configured by other means never needs them.
package dhcp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/rfc1035label"
)

// Theory of operation
//
// RFC 2131, cut down to a link with one client: no pool, no state, no conflict. DISCOVER is answered with OFFER,
// REQUEST with ACK if it asks for the one address, else with NAK, INFORM with the options alone; RELEASE and DECLINE
// need no answer.
//
// An answer goes where RFC 2131 section 4.1 says, except that a client without an address gets it by broadcast
// always: the socket has no way to send to an address that nobody owns yet.

// The UDP ports.
const (
	ServerPort = 67
	ClientPort = 68
)

const (
	// leaseTime is long because nothing can change, and the network lives as long as its guest.
	leaseTime = 24 * time.Hour
	// maxSearchBytes bounds the search domains: the answer has to fit a client's 576 bytes (RFC 2131 section 2) with
	// some margin.
	maxSearchBytes = 200
	// maxMessage is what fits the link.
	maxMessage = 1500
)

// Options of a Server.
type Options struct {
	Guest  netip.Prefix // the guest's address, with the length of its prefix
	Server netip.Addr
	Router netip.Addr
	DNS    []netip.Addr
	MTU    uint16 // bytes
	// Search returns the domain search list. It is asked for each answer; nil is none.
	Search func() []string
}

// Server answers DHCP clients.
type Server struct{ o Options }

// New makes a server.
func New(o Options) *Server { return &Server{o: o} }

// Serve answers the requests that arrive on conn until ctx ends, then returns nil, or until conn fails. It closes conn.
func (s *Server) Serve(ctx context.Context, conn net.PacketConn) error {
	return serve(ctx, conn, "dhcp", s.Answer)
}

func serve(
	ctx context.Context, conn net.PacketConn, name string, answer func(msg []byte, from net.Addr) ([]byte, net.Addr),
) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	defer conn.Close()
	buf := make([]byte, maxMessage)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("%s: %w", name, err)
		}
		if msg, to := answer(buf[:n], from); msg != nil {
			_, _ = conn.WriteTo(msg, to) // an answer that is lost is asked for again
		}
	}
}

// Answer returns the answer to a message and its destination, or nil if there is none to give.
func (s *Server) Answer(msg []byte, from net.Addr) ([]byte, net.Addr) {
	req, err := dhcpv4.FromBytes(msg)
	if err != nil || req.OpCode != dhcpv4.OpcodeBootRequest || len(req.ClientHWAddr) == 0 {
		return nil, nil
	}
	// A request to another server is none of ours (RFC 2131 section 4.3.2).
	if id := req.ServerIdentifier(); id != nil && !id.Equal(ip(s.o.Server)) {
		return nil, nil
	}
	guest := ip(s.o.Guest.Addr())
	mods := []dhcpv4.Modifier{
		dhcpv4.WithServerIP(ip(s.o.Server)),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(ip(s.o.Server))),
	}
	switch req.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		mods = append(mods, dhcpv4.WithMessageType(dhcpv4.MessageTypeOffer), dhcpv4.WithYourIP(guest), s.lease, s.settings)
	case dhcpv4.MessageTypeRequest:
		wanted := req.RequestedIPAddress()
		if wanted == nil || wanted.IsUnspecified() {
			wanted = req.ClientIPAddr // a renewal
		}
		if !wanted.Equal(guest) {
			mods = append(mods, dhcpv4.WithMessageType(dhcpv4.MessageTypeNak), dhcpv4.WithBroadcast(true))
			break
		}
		mods = append(mods, dhcpv4.WithMessageType(dhcpv4.MessageTypeAck), dhcpv4.WithYourIP(guest), s.lease, s.settings)
	case dhcpv4.MessageTypeInform:
		mods = append(mods, dhcpv4.WithMessageType(dhcpv4.MessageTypeAck), s.settings)
	default:
		return nil, nil
	}
	resp, err := dhcpv4.NewReplyFromRequest(req, mods...)
	if err != nil {
		return nil, nil
	}
	to := &net.UDPAddr{IP: net.IPv4bcast, Port: ClientPort}
	client, ok := from.(*net.UDPAddr)
	if ok && resp.MessageType() != dhcpv4.MessageTypeNak && hasAddress(req) && client.IP.Equal(req.ClientIPAddr) {
		to = client // by INFORM even one that gave itself another address
	}
	return resp.ToBytes(), to
}

func hasAddress(req *dhcpv4.DHCPv4) bool {
	return req.ClientIPAddr != nil && !req.ClientIPAddr.IsUnspecified()
}

func (s *Server) lease(d *dhcpv4.DHCPv4) {
	d.UpdateOption(dhcpv4.OptIPAddressLeaseTime(leaseTime))
}

func (s *Server) settings(d *dhcpv4.DHCPv4) {
	d.UpdateOption(dhcpv4.OptSubnetMask(net.CIDRMask(s.o.Guest.Bits(), 32)))
	d.UpdateOption(dhcpv4.OptRouter(ip(s.o.Router)))
	if len(s.o.DNS) > 0 {
		d.UpdateOption(dhcpv4.OptDNS(ips(s.o.DNS)...))
	}
	d.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionInterfaceMTU, []byte{byte(s.o.MTU >> 8), byte(s.o.MTU)}))
	if s.o.Search == nil {
		return
	}
	if search := fitting(s.o.Search(), maxSearchBytes); len(search) > 0 {
		d.UpdateOption(dhcpv4.OptDomainName(search[0]))
		d.UpdateOption(dhcpv4.OptDomainSearch(&rfc1035label.Labels{Labels: search}))
	}
}

// fitting returns the first domains, as many as fit. The encoding takes two bytes more than the text.
func fitting(search []string, maxBytes int) []string {
	total := 0
	for i, domain := range search {
		if total += len(domain) + 2; total > maxBytes {
			return search[:i]
		}
	}
	return search
}

func ip(a netip.Addr) net.IP { return net.IP(a.AsSlice()) }

func ips(addrs []netip.Addr) []net.IP {
	out := make([]net.IP, len(addrs))
	for i, a := range addrs {
		out[i] = ip(a)
	}
	return out
}
