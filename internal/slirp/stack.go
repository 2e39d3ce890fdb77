package slirp

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
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
		NetworkProtocols: []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol, arp.NewProtocol},
		// CUBIC is what Linux uses. On a link without loss it hardly matters; should the guest ever lose a
		// frame, it gets back to speed faster than Reno.
		TransportProtocols: []stack.TransportProtocolFactory{
			tcp.NewProtocolCUBIC, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6,
		},
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
		// memory per connection. With many of them each gets less: see bufferSize.
		&tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: maxBufferBytes / 4, Max: maxBufferBytes},
		// What the guest has not acknowledged yet.
		&tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: maxBufferBytes / 4, Max: maxBufferBytes},
		// Moderation grows the receive buffer of connections that need it, from the default to the maximum.
		ptr(tcpip.TCPModerateReceiveBufferOption(true)),
		// No Nagle: the ends of the spliced connection decide how data is cut, a second delay on top only adds latency.
		ptr(tcpip.TCPDelayEnabled(false)),
		// TIME-WAIT protects from segments that the network delayed, and from a last ACK that was lost. The link is a
		// FIFO and loses none, so there is no such state. As long as it lasts, a guest that comes again from the same port is not answered: with a
		// forwarder instead of a listener netstack knows of no new SYN there. And the default of a minute would use up
		// the gateway's ports at some 800 connections a second to one guest port.
		ptr(tcpip.TCPTimeWaitTimeoutOption(time.Nanosecond)),
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
	for _, a := range []netip.Addr{GatewayAddr, DNSAddr, GatewayAddr6, DNSAddr6, GatewayLinkLocal} {
		bits := PrefixBits
		if a.Is6() {
			bits = PrefixBits6
		}
		p := tcpip.ProtocolAddress{
			Protocol:          networkProtocol(a),
			AddressWithPrefix: tcpip.AddressWithPrefix{Address: stackAddr(a), PrefixLen: bits},
		}
		if err := s.AddProtocolAddress(nicID, p, stack.AddressProperties{}); err != nil {
			return fmt.Errorf("add the gateway's address %s: %w", a, stackError{err})
		}
	}
	s.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nicID},
		{Destination: header.IPv6EmptySubnet, NIC: nicID},
	})
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
	s.SetTransportProtocolHandler(icmp.ProtocolNumber6, n.handleICMP)
	return nil
}

// bindServices opens the sockets of our own services inside the stack and returns the functions that serve them until
// the stack closes.
func (n *Network) bindServices() ([]func(), error) {
	var services []func()
	add := func(name string, serve func(context.Context) error) {
		services = append(services, func() { n.serve(name, serve(n.ctx)) })
	}
	search := func() []string {
		config, _ := dns.ReadConfig(n.resolv) // without one there are no search domains
		return config.Search
	}
	// Bound to no address and allowed to broadcast: a client without a lease has no address either.
	conn, err := n.bindService(ipv4.ProtocolNumber, dhcp.ServerPort, func(ep tcpip.Endpoint) tcpip.Error {
		ep.SocketOptions().SetBroadcast(true)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("open the DHCP server's socket: %w", err)
	}
	leases := dhcp.New(dhcp.Options{
		Guest:  netip.PrefixFrom(GuestAddr, PrefixBits),
		Server: GatewayAddr,
		Router: GatewayAddr,
		DNS:    []netip.Addr{DNSAddr},
		MTU:    uint16(n.link.MTU()),
		Search: search,
	})
	add("dhcp", func(ctx context.Context) error { return leases.Serve(ctx, conn) })

	conn6, err := n.bindService(ipv6.ProtocolNumber, dhcp.ServerPort6, func(ep tcpip.Endpoint) tcpip.Error {
		ep.SocketOptions().SetV6Only(true)
		return ep.SetSockOpt(&tcpip.AddMembershipOption{NIC: nicID, MulticastAddr: stackAddr(dhcp.AllServers)})
	})
	if err != nil {
		return nil, fmt.Errorf("open the DHCPv6 server's socket: %w", err)
	}
	leases6 := dhcp.New6(dhcp.Options6{
		Guest:  netip.PrefixFrom(GuestAddr6, PrefixBits6),
		Server: GatewayMAC,
		DNS:    []netip.Addr{DNSAddr6},
		Search: search,
	})
	add("dhcpv6", func(ctx context.Context) error { return leases6.Serve(ctx, conn6) })

	for _, a := range []netip.Addr{DNSAddr, DNSAddr6} {
		at := fullAddress(netip.AddrPortFrom(a, dns.Port))
		conn, err := gonet.DialUDP(n.stack, &at, nil, networkProtocol(a))
		if err != nil {
			return nil, fmt.Errorf("open the DNS relay's UDP socket on %s: %w", a, err)
		}
		add("dns udp", func(ctx context.Context) error { return n.dns.ServeUDP(ctx, conn) })
		listener, err := gonet.ListenTCP(n.stack, at, networkProtocol(a))
		if err != nil {
			return nil, fmt.Errorf("open the DNS relay's TCP socket on %s: %w", a, err)
		}
		add("dns tcp", func(ctx context.Context) error { return n.dns.ServeTCP(ctx, listener) })
	}
	return services, nil
}

// bindService opens a UDP socket on a port of all our addresses of one family.
func (n *Network) bindService(
	proto tcpip.NetworkProtocolNumber, port uint16, prepare func(tcpip.Endpoint) tcpip.Error,
) (*gonet.UDPConn, error) {
	var wq waiter.Queue
	ep, err := n.stack.NewEndpoint(udp.ProtocolNumber, proto, &wq)
	if err != nil {
		return nil, stackError{err}
	}
	if err = prepare(ep); err == nil {
		err = ep.Bind(tcpip.FullAddress{NIC: nicID, Port: port})
	}
	if err != nil {
		ep.Close()
		return nil, stackError{err}
	}
	return gonet.NewUDPConn(&wq, ep), nil
}

// serve notes that a service has ended before the network did.
func (n *Network) serve(name string, err error) {
	if err != nil && n.ctx.Err() == nil {
		n.log.Error().Err(err).Str("service", name).Msg("a service of the guest's network ended")
	}
}

// ingress is the link with a filter in front of netstack, for what promiscuous mode would otherwise answer in the
// name of others, and for what netstack would keep to itself.
type ingress struct {
	*link.Endpoint
	n *Network
}

// Attach implements stack.LinkEndpoint.
func (i *ingress) Attach(d stack.NetworkDispatcher) {
	if d != nil {
		d = i.n.capture.tap(filter{d, i.n})
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
		f.n.upSince.Store(f.n.now().UnixNano())
		f.n.isUp.Store(true)
		close(f.n.up)
	}
	if proto == header.IPv6ProtocolNumber && !f.n.hasIPv6.Load() {
		b, ok := pkt.Data().PullUp(header.IPv6MinimumSize)
		f.n.hasIPv6.Store(ok && goAddr(header.IPv6(b).SourceAddress()) == GuestAddr6)
	}
	switch proto {
	case header.ARPProtocolNumber:
		// With spoofing netstack would claim every address, the guest's own too, and duplicate address detection in the
		// guest fail.
		b, ok := pkt.Data().PullUp(header.ARPSize)
		if !ok || !isOurs(netip.AddrFrom4([4]byte(header.ARP(b).ProtocolAddressTarget()))) {
			return
		}
	case header.IPv4ProtocolNumber:
		b, ok := pkt.Data().PullUp(header.IPv4MinimumSize)
		if ok && header.IPv4(b).TransportProtocol() == header.ICMPv4ProtocolNumber {
			packet := whole(pkt)
			if f.n.deliverLater(f.NetworkDispatcher, proto, pkt, packet) {
				return
			}
			f.n.refusedByGuest(packet)
		}
	case header.IPv6ProtocolNumber:
		b, ok := pkt.Data().PullUp(header.IPv6MinimumSize)
		if ok && tcpip.TransportProtocolNumber(header.IPv6(b).NextHeader()) == header.ICMPv6ProtocolNumber {
			packet := whole(pkt)
			if f.n.handleNDP(packet) || f.n.deliverLater(f.NetworkDispatcher, proto, pkt, packet) {
				return
			}
			f.n.refusedByGuest(packet)
		}
	}
	f.NetworkDispatcher.DeliverNetworkPacket(proto, pkt)
}

// askForGuest broadcasts an ARP request for the guest's address, and is repeated until the guest is up. Mostly the guest
// has announced itself before; one that got its address in another way, or at another time, may have nothing to say by
// itself. Nobody hears it before the guest's driver is there.
func (n *Network) askForGuest() {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: int(n.link.MaxHeaderLength()) + header.ARPSize,
	})
	defer pkt.DecRef()
	h := header.ARP(pkt.NetworkHeader().Push(header.ARPSize))
	h.SetIPv4OverEthernet()
	h.SetOp(header.ARPRequest)
	copy(h.HardwareAddressSender(), n.link.LinkAddress())
	copy(h.ProtocolAddressSender(), GatewayAddr.AsSlice())
	copy(h.ProtocolAddressTarget(), GuestAddr.AsSlice())
	pkt.NetworkProtocolNumber = arp.ProtocolNumber
	pkt.EgressRoute.RemoteLinkAddress = header.EthernetBroadcastAddress
	n.link.AddHeader(pkt)
	var list stack.PacketBufferList
	list.PushBack(pkt.IncRef())
	defer list.Reset()
	_, _ = n.link.WritePackets(list) // lost is asked again
}

// whole returns all of a packet's bytes.
func whole(pkt *stack.PacketBuffer) []byte {
	b, _ := pkt.Data().PullUp(pkt.Data().Size())
	return b
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
	case header.IPv6ProtocolNumber:
		b, ok := pkt.Data().PullUp(header.IPv6MinimumSize)
		return ok && header.IPv6(b).SourceAddress().As16() == GuestAddr6.As16()
	}
	return false
}

// routeToGuest is a route for packets that are made by hand. The caller releases it.
func (n *Network) routeToGuest(from, guest netip.Addr) (*stack.Route, tcpip.Error) {
	return n.stack.FindRoute(nicID, stackAddr(from), stackAddr(guest), networkProtocol(guest), false)
}

// isOurs says whether an address is one of the gateway's own.
func isOurs(a netip.Addr) bool {
	return a == GatewayAddr || a == DNSAddr || a == GatewayAddr6 || a == DNSAddr6 || a == GatewayLinkLocal
}

// stackError makes a Go error of netstack's.
type stackError struct{ err tcpip.Error }

// Error implements error.
func (e stackError) Error() string { return e.err.String() }

func ptr[T any](v T) *T { return &v }

func linkAddress(mac net.HardwareAddr) tcpip.LinkAddress { return tcpip.LinkAddress(mac) }

func addrPort(a tcpip.Address, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(goAddr(a), port)
}

func fullAddress(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nicID, Addr: stackAddr(a.Addr()), Port: a.Port()}
}

// stackAddr is netstack's form of an address of either family. IPv4 must not come IPv4-mapped.
func stackAddr(a netip.Addr) tcpip.Address {
	if a.Is4() {
		return tcpip.AddrFrom4(a.As4())
	}
	return tcpip.AddrFrom16(a.As16())
}

// goAddr is the inverse of stackAddr.
func goAddr(a tcpip.Address) netip.Addr {
	addr, _ := netip.AddrFromSlice(a.AsSlice())
	return addr
}

// networkProtocol is the protocol of an address's family.
func networkProtocol(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}
