package slirp

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"docker-usermode-linux/internal/slirp/dhcp"
	"docker-usermode-linux/internal/slirp/dns"
	"docker-usermode-linux/internal/slirp/link"
)

// nicID is the stack's only NIC.
const nicID tcpip.NICID = 1

// newStack makes netstack with every option that matters set on purpose.
func (n *Network) newStack() error {
	s := stack.New(stack.Options{
		NetworkProtocols: []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		// CUBIC is what Linux uses. On a link without loss it hardly matters; should the guest ever lose a
		// frame, it gets back to speed faster than Reno.
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocolCUBIC, udp.NewProtocol, icmp.NewProtocol4},
		// A packet to one of our own addresses never comes from ourselves, and with promiscuous mode every source would
		// look local.
		HandleLocal: false,
	})
	n.stack = s
	for _, o := range []tcpip.SettableTransportProtocolOption{
		// SACK: without it one lost frame costs a round trip per lost frame.
		ptr(tcpip.TCPSACKEnabled(true)),
		// RACK finds losses by time and arms a timer for each flight of segments. The link neither reorders nor loses,
		// so that is pure cost; duplicate ACKs and SACK do for the odd frame that a guest drops.
		ptr(tcpip.TCPRecovery(0)),
		// The window must hold what is in flight between us and a guest that is served late by a busy host: at 5 Gbit/s
		// 6 ms are 4 MiB. What is received is read at once, unless the other side is slow; then it is what bounds our
		// memory per connection.
		&tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: 1 << 20, Max: 4 << 20},
		// What the guest has not acknowledged yet.
		&tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: 1 << 20, Max: 4 << 20},
		// Moderation grows the receive buffer of connections that need it, from the default to the maximum.
		ptr(tcpip.TCPModerateReceiveBufferOption(true)),
		// No Nagle: the ends of the spliced connection decide how data is cut, a second delay on top only adds latency.
		ptr(tcpip.TCPDelayEnabled(false)),
		// TIME-WAIT protects from segments that the network delayed. The link is a FIFO: none can be. A few seconds are
		// for a guest that repeats its FIN. The default of a minute would use up the gateway's ports at some 800
		// connections a second to one guest port.
		ptr(tcpip.TCPTimeWaitTimeoutOption(2 * time.Second)),
		// A guest that crashed its side must not keep closed connections for ever; 60 s is Linux's tcp_fin_timeout.
		ptr(tcpip.TCPLingerTimeoutOption(60 * time.Second)),
		// Linux's minimum. Netstack's own is the same today; the link's round trip is far below, but a busy guest's is
		// not.
		ptr(tcpip.TCPMinRTOOption(200 * time.Millisecond)),
	} {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fmt.Errorf("set %T: %w", o, stackError{err})
		}
	}
	if err := s.CreateNIC(nicID, &ingress{Endpoint: n.link, n: n}); err != nil {
		return fmt.Errorf("create the gateway's NIC: %w", stackError{err})
	}
	for _, a := range []netip.Addr{GatewayAddr, DNSAddr} {
		p := tcpip.ProtocolAddress{
			Protocol:          ipv4.ProtocolNumber,
			AddressWithPrefix: tcpip.AddressWithPrefix{Address: tcpip.AddrFrom4(a.As4()), PrefixLen: PrefixBits},
		}
		if err := s.AddProtocolAddress(nicID, p, stack.AddressProperties{}); err != nil {
			return fmt.Errorf("add the gateway's address %s: %w", a, stackError{err})
		}
	}
	s.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nicID}})
	// Promiscuous: take packets to whatever address. Spoofing: answer from it.
	if err := s.SetPromiscuousMode(nicID, true); err != nil {
		return fmt.Errorf("set promiscuous mode: %w", stackError{err})
	}
	if err := s.SetSpoofing(nicID, true); err != nil {
		return fmt.Errorf("set spoofing: %w", stackError{err})
	}
	// The number of connection attempts is bounded by synTable, which counts what it drops.
	n.forwarder = tcp.NewForwarder(s, 0, n.limits.pendingSYNs+1, n.serveGuestTCP)
	s.SetTransportProtocolHandler(tcp.ProtocolNumber, n.handleTCP)
	s.SetTransportProtocolHandler(udp.ProtocolNumber, n.handleUDP)
	s.SetTransportProtocolHandler(icmp.ProtocolNumber4, n.handleICMP)
	return nil
}

// bindServices opens the sockets of our own services inside the stack and returns the functions that serve them until
// the stack closes.
func (n *Network) bindServices() ([]func(), error) {
	gateway := tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFrom4(GatewayAddr.As4())}
	// Bound to no address and allowed to broadcast: a client without a lease has no address either.
	var wq waiter.Queue
	dhcpSocket, terr := n.stack.NewEndpoint(udp.ProtocolNumber, ipv4.ProtocolNumber, &wq)
	if terr == nil {
		dhcpSocket.SocketOptions().SetBroadcast(true)
		terr = dhcpSocket.Bind(tcpip.FullAddress{NIC: nicID, Port: dhcp.ServerPort})
	}
	if terr != nil {
		return nil, fmt.Errorf("open the DHCP server's socket: %w", stackError{terr})
	}
	dhcpConn := gonet.NewUDPConn(&wq, dhcpSocket)
	dnsAddr := gateway
	dnsAddr.Addr, dnsAddr.Port = tcpip.AddrFrom4(DNSAddr.As4()), dns.Port
	dnsConn, err := gonet.DialUDP(n.stack, &dnsAddr, nil, ipv4.ProtocolNumber)
	if err != nil {
		return nil, fmt.Errorf("open the DNS relay's UDP socket: %w", err)
	}
	dnsListener, err := gonet.ListenTCP(n.stack, dnsAddr, ipv4.ProtocolNumber)
	if err != nil {
		return nil, fmt.Errorf("open the DNS relay's TCP socket: %w", err)
	}
	leases := dhcp.New(dhcp.Options{
		Guest:  netip.PrefixFrom(GuestAddr, PrefixBits),
		Server: GatewayAddr,
		Router: GatewayAddr,
		DNS:    []netip.Addr{DNSAddr},
		MTU:    uint16(n.link.MTU()),
		Search: func() []string {
			config, _ := dns.ReadConfig(n.resolv) // without one there are no search domains
			return config.Search
		},
	})
	return []func(){
		func() { n.serve("dhcp", leases.Serve(n.ctx, dhcpConn)) },
		func() { n.serve("dns udp", n.dns.ServeUDP(n.ctx, dnsConn)) },
		func() { n.serve("dns tcp", n.dns.ServeTCP(n.ctx, dnsListener)) },
	}, nil
}

// serve notes that a service has ended before the network did.
func (n *Network) serve(name string, err error) {
	if err != nil && n.ctx.Err() == nil {
		n.log.Error().Err(err).Str("service", name).Msg("a service of the guest's network ended")
	}
}

// ingress is the link with a filter in front of netstack, for what promiscuous mode would otherwise answer in the
// name of others.
type ingress struct {
	*link.Endpoint
	n *Network
}

// Attach implements stack.LinkEndpoint.
func (i *ingress) Attach(d stack.NetworkDispatcher) {
	if d != nil {
		d = filter{d, i.n}
	}
	i.Endpoint.Attach(d)
}

type filter struct {
	stack.NetworkDispatcher
	n *Network
}

// DeliverNetworkPacket implements stack.NetworkDispatcher.
func (f filter) DeliverNetworkPacket(proto tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	if !f.n.isUp.Load() && isFromGuest(proto, pkt) {
		f.n.isUp.Store(true)
		close(f.n.up)
	}
	if proto == header.ARPProtocolNumber {
		// With spoofing netstack would claim every address, the guest's own too, and duplicate address detection in the
		// guest fail.
		b, ok := pkt.Data().PullUp(header.ARPSize)
		if !ok || !isOurs(netip.AddrFrom4([4]byte(header.ARP(b).ProtocolAddressTarget()))) {
			return
		}
	}
	f.NetworkDispatcher.DeliverNetworkPacket(proto, pkt)
}

// isFromGuest says whether a packet was sent from the guest's address. What its NIC sends before it has one, such as
// IPv6's router solicitation, does not mean that the guest can be reached.
func isFromGuest(proto tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) bool {
	switch proto {
	case header.ARPProtocolNumber:
		b, ok := pkt.Data().PullUp(header.ARPSize)
		return ok && [4]byte(header.ARP(b).ProtocolAddressSender()) == GuestAddr.As4()
	case header.IPv4ProtocolNumber:
		b, ok := pkt.Data().PullUp(header.IPv4MinimumSize)
		return ok && header.IPv4(b).SourceAddress().As4() == GuestAddr.As4()
	}
	return false
}

// routeToGuest is a route for packets that are made by hand. The caller releases it.
func (n *Network) routeToGuest(from, guest netip.Addr) (*stack.Route, tcpip.Error) {
	return n.stack.FindRoute(nicID, tcpip.AddrFrom4(from.As4()), tcpip.AddrFrom4(guest.As4()), ipv4.ProtocolNumber, false)
}

// isOurs says whether an address is one of the gateway's own.
func isOurs(a netip.Addr) bool { return a == GatewayAddr || a == DNSAddr }

// stackError makes a Go error of netstack's.
type stackError struct{ err tcpip.Error }

// Error implements error.
func (e stackError) Error() string { return e.err.String() }

func ptr[T any](v T) *T { return &v }

func linkAddress(mac net.HardwareAddr) tcpip.LinkAddress { return tcpip.LinkAddress(mac) }

func addrPort(a tcpip.Address, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4(a.As4()), port)
}

func fullAddress(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFrom4(a.Addr().As4()), Port: a.Port()}
}
