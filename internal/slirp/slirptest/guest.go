// Package slirptest is a guest for tests: a second netstack at the other end of the link, in the same process.
package slirptest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
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
)

const nicID = 1

// Guest is the fake guest.
type Guest struct {
	Stack *stack.Stack
	NIC   *NIC

	addr  netip.Addr
	watch atomic.Pointer[func([]byte)]
	once  sync.Once
}

// Config of a Guest.
type Config struct {
	Address netip.Prefix
	// Address6 is that of IPv6, if it is valid.
	Address6 netip.Prefix
	MAC      net.HardwareAddr
	// MTU in bytes; 0 is 1500.
	MTU uint32
	// NIC may change the device before it is connected.
	NIC func(*NIC)
}

// New makes a guest at the other end of a link, whose socket has that path. It says nothing before Announce or the
// first packet, and ends with the test.
func New(t testing.TB, path string, c Config) *Guest {
	t.Helper()
	if c.MTU == 0 {
		c.MTU = 1500
	}
	nic, err := Connect(path, c.MAC, c.MTU, c.NIC)
	if err != nil {
		t.Fatal(err)
	}
	s := stack.New(stack.Options{
		NetworkProtocols: []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{
			tcp.NewProtocolCUBIC, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6,
		},
	})
	g := &Guest{Stack: s, NIC: nic, addr: c.Address.Addr()}
	must := func(err tcpip.Error) {
		if err != nil {
			t.Fatalf("set up the fake guest's stack: %s", err)
		}
	}
	sack, recovery := tcpip.TCPSACKEnabled(true), tcpip.TCPRecovery(0)
	must(s.SetTransportProtocolOption(tcp.ProtocolNumber, &sack))
	must(s.SetTransportProtocolOption(tcp.ProtocolNumber, &recovery))
	must(s.CreateNIC(nicID, &tap{nic, g}))
	for _, p := range []netip.Prefix{c.Address, c.Address6} {
		if p.IsValid() {
			must(s.AddProtocolAddress(nicID, tcpip.ProtocolAddress{
				Protocol:          protocol(p.Addr()),
				AddressWithPrefix: tcpip.AddressWithPrefix{Address: address(p.Addr()), PrefixLen: p.Bits()},
			}, stack.AddressProperties{}))
		}
	}
	s.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nicID},
		{Destination: header.IPv6EmptySubnet, NIC: nicID},
	})
	t.Cleanup(g.Close)
	return g
}

// Close ends the guest: for its host it looks as if the kernel were gone.
func (g *Guest) Close() {
	g.once.Do(func() {
		g.NIC.Close()
		g.Stack.Close()
		g.Stack.Wait()
	})
}

// Watch has f called with every IP packet that the guest receives, which f must not keep. The guest's stack gets it
// afterwards.
func (g *Guest) Watch(f func(packet []byte)) { g.watch.Store(&f) }

// tap is the guest's link with a look at what arrives.
type tap struct {
	*NIC
	g *Guest
}

// Attach implements stack.LinkEndpoint.
func (t *tap) Attach(d stack.NetworkDispatcher) {
	if d != nil {
		d = tapped{d, t.g}
	}
	t.NIC.Attach(d)
}

type tapped struct {
	stack.NetworkDispatcher
	g *Guest
}

// DeliverNetworkPacket implements stack.NetworkDispatcher.
func (t tapped) DeliverNetworkPacket(proto tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	if f := t.g.watch.Load(); f != nil && proto != header.ARPProtocolNumber {
		b, _ := pkt.Data().PullUp(pkt.Data().Size())
		(*f)(b)
	}
	t.NetworkDispatcher.DeliverNetworkPacket(proto, pkt)
}

// Announce sends a gratuitous ARP, as the real guest does when its NIC comes up.
func (g *Guest) Announce() {
	a := g.addr.As4()
	g.SendARP(header.ARPRequest, a, a)
}

// SendARP broadcasts an ARP packet.
func (g *Guest) SendARP(op header.ARPOp, sender, target [4]byte) {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: int(g.NIC.MaxHeaderLength()) + header.ARPSize,
	})
	defer pkt.DecRef()
	h := header.ARP(pkt.NetworkHeader().Push(header.ARPSize))
	h.SetIPv4OverEthernet()
	h.SetOp(op)
	copy(h.HardwareAddressSender(), g.NIC.LinkAddress())
	copy(h.ProtocolAddressSender(), sender[:])
	copy(h.ProtocolAddressTarget(), target[:])
	pkt.NetworkProtocolNumber = arp.ProtocolNumber
	g.broadcast(pkt)
}

// SendIP sends an IP packet of either family as it is, past the guest's stack.
func (g *Guest) SendIP(packet []byte) {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: int(g.NIC.MaxHeaderLength()) + len(packet),
	})
	defer pkt.DecRef()
	copy(pkt.NetworkHeader().Push(len(packet)), packet)
	pkt.NetworkProtocolNumber = ipv4.ProtocolNumber
	if packet[0]>>4 == header.IPv6Version {
		pkt.NetworkProtocolNumber = ipv6.ProtocolNumber
	}
	g.broadcast(pkt)
}

func (g *Guest) broadcast(pkt *stack.PacketBuffer) {
	pkt.EgressRoute.RemoteLinkAddress = header.EthernetBroadcastAddress
	g.NIC.AddHeader(pkt)
	var list stack.PacketBufferList
	list.PushBack(pkt)
	_, _ = g.NIC.WritePackets(list)
}

// Conn is a TCP connection of the guest.
type Conn struct {
	*gonet.TCPConn
	ep tcpip.Endpoint
}

// Reset closes the connection with a RST.
func (c *Conn) Reset() { c.ep.Abort() }

// State is netstack's of the guest's end.
func (c *Conn) State() tcp.EndpointState { return tcp.EndpointState(c.ep.State()) }

// ErrRefused is what DialTCP returns when its SYN is answered with a RST.
var ErrRefused = errors.New((&tcpip.ErrConnectionRefused{}).String())

// DialTCP connects to an address.
func (g *Guest) DialTCP(ctx context.Context, to netip.AddrPort) (*Conn, error) {
	return g.DialTCPFrom(ctx, 0, to)
}

// DialTCPFrom connects to an address of IPv4 from a port of the guest's; 0 is any, also for IPv6.
func (g *Guest) DialTCPFrom(ctx context.Context, port uint16, to netip.AddrPort) (*Conn, error) {
	var wq waiter.Queue
	ep, terr := g.Stack.NewEndpoint(tcp.ProtocolNumber, protocol(to.Addr()), &wq)
	if terr != nil {
		return nil, errors.New(terr.String())
	}
	if port != 0 {
		// With the address: netstack would forget to free the port of a socket that gets it only when it connects.
		if terr = ep.Bind(tcpip.FullAddress{NIC: nicID, Addr: address(g.addr), Port: port}); terr != nil {
			ep.Close()
			return nil, errors.New(terr.String())
		}
	}
	entry, connected := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	terr = ep.Connect(full(to))
	if _, ok := terr.(*tcpip.ErrConnectStarted); ok {
		select {
		case <-ctx.Done():
			ep.Abort()
			return nil, fmt.Errorf("dial %s: %w", to, ctx.Err())
		case <-connected:
		}
		terr = ep.LastError()
	}
	switch terr.(type) {
	case nil:
		return &Conn{TCPConn: gonet.NewTCPConn(&wq, ep), ep: ep}, nil
	case *tcpip.ErrConnectionRefused:
		ep.Close()
		return nil, ErrRefused
	}
	ep.Close()
	return nil, fmt.Errorf("dial %s: %s", to, terr)
}

// Listener is a listening TCP socket of the guest.
type Listener struct {
	ep tcpip.Endpoint
	wq *waiter.Queue
}

// ListenTCP listens on a port of the guest's, for both families.
func (g *Guest) ListenTCP(port uint16) (*Listener, error) {
	var wq waiter.Queue
	ep, err := g.Stack.NewEndpoint(tcp.ProtocolNumber, ipv6.ProtocolNumber, &wq)
	if err == nil {
		if err = ep.Bind(tcpip.FullAddress{NIC: nicID, Port: port}); err == nil {
			err = ep.Listen(1024)
		}
	}
	if err != nil {
		return nil, errors.New(err.String())
	}
	return &Listener{ep: ep, wq: &wq}, nil
}

// Accept takes the next connection. It fails after Close.
func (l *Listener) Accept() (*Conn, error) {
	entry, ready := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventHUp | waiter.EventErr)
	l.wq.EventRegister(&entry)
	defer l.wq.EventUnregister(&entry)
	for {
		ep, wq, err := l.ep.Accept(nil)
		switch err.(type) {
		case nil:
			return &Conn{TCPConn: gonet.NewTCPConn(wq, ep), ep: ep}, nil
		case *tcpip.ErrWouldBlock:
			<-ready
		default:
			return nil, errors.New(err.String())
		}
	}
}

// Close ends listening.
func (l *Listener) Close() error {
	l.ep.Close()
	return nil
}

// ListenUDP opens a UDP socket for both families on a port of the guest's; 0 takes any.
func (g *Guest) ListenUDP(port uint16) (*gonet.UDPConn, error) {
	return gonet.DialUDP(g.Stack, &tcpip.FullAddress{NIC: nicID, Port: port}, nil, ipv6.ProtocolNumber)
}

// ListenUDPAny opens a UDP socket that is bound to a port but to no address, and may broadcast, as a DHCP client does.
func (g *Guest) ListenUDPAny(port uint16) (*gonet.UDPConn, error) {
	var wq waiter.Queue
	ep, err := g.Stack.NewEndpoint(udp.ProtocolNumber, ipv4.ProtocolNumber, &wq)
	if err != nil {
		return nil, errors.New(err.String())
	}
	ep.SocketOptions().SetBroadcast(true)
	if err := ep.Bind(tcpip.FullAddress{NIC: nicID, Port: port}); err != nil {
		ep.Close()
		return nil, errors.New(err.String())
	}
	return gonet.NewUDPConn(&wq, ep), nil
}

// Ping sends an echo request and returns the answer's payload. It fails when no answer comes in time.
func (g *Guest) Ping(to netip.Addr, payload []byte, timeout time.Duration) ([]byte, error) {
	transport, echo, reply := icmp.ProtocolNumber4, uint8(header.ICMPv4Echo), uint8(header.ICMPv4EchoReply)
	if to.Is6() {
		transport, echo, reply = icmp.ProtocolNumber6, uint8(header.ICMPv6EchoRequest), uint8(header.ICMPv6EchoReply)
	}
	var wq waiter.Queue
	ep, terr := g.Stack.NewEndpoint(transport, protocol(to), &wq)
	if terr != nil {
		return nil, errors.New(terr.String())
	}
	entry, readable := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventErr)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	defer ep.Close()
	addr := full(netip.AddrPortFrom(to, 0))
	if err := ep.Connect(addr); err != nil {
		return nil, errors.New(err.String())
	}
	msg := append([]byte{echo, 0, 0, 0, 0, 0, 0, 1}, payload...) // the stack sets checksum and identifier
	if _, err := ep.Write(&reader{msg}, tcpip.WriteOptions{}); err != nil {
		return nil, errors.New(err.String())
	}
	deadline := time.After(timeout)
	for {
		var buf writer
		_, err := ep.Read(&buf, tcpip.ReadOptions{})
		switch err.(type) {
		case nil:
			if buf.b[0] != reply {
				return nil, fmt.Errorf("ping answered with ICMP type %d code %d", buf.b[0], buf.b[1])
			}
			return buf.b[header.ICMPv4MinimumSize:], nil
		case *tcpip.ErrWouldBlock:
		default:
			return nil, errors.New(err.String())
		}
		select {
		case <-readable:
		case <-deadline:
			return nil, os.ErrDeadlineExceeded
		}
	}
}

type reader struct{ b []byte }

func (r *reader) Len() int { return len(r.b) }

func (r *reader) Read(p []byte) (int, error) {
	if len(r.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.b)
	r.b = r.b[n:]
	return n, nil
}

type writer struct{ b []byte }

func (w *writer) Write(p []byte) (int, error) {
	w.b = append(w.b, p...)
	return len(p), nil
}

func full(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nicID, Addr: address(a.Addr()), Port: a.Port()}
}

func address(a netip.Addr) tcpip.Address { return tcpip.AddrFromSlice(a.AsSlice()) }

func protocol(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}
