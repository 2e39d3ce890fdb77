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
	"testing"
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

	"docker-usermode-linux/internal/slirp/link"
)

const nicID = 1

// Guest is the fake guest.
type Guest struct {
	Stack *stack.Stack
	Link  *link.Endpoint

	addr    netip.Addr
	running sync.WaitGroup
	once    sync.Once
}

// Config of a Guest.
type Config struct {
	Address netip.Prefix
	MAC     net.HardwareAddr
	// MTU in bytes; 0 is 1500.
	MTU uint32
}

// New makes a guest at the guest's end of a link. It says nothing before Announce or the first packet, and ends with
// the test.
func New(t testing.TB, socket *os.File, c Config) *Guest {
	t.Helper()
	ep, err := link.New(link.Options{Socket: socket, MTU: c.MTU, Address: tcpip.LinkAddress(c.MAC)})
	if err != nil {
		t.Fatalf("link.New() = %v", err)
	}
	s := stack.New(stack.Options{
		NetworkProtocols: []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{
			tcp.NewProtocolCUBIC, udp.NewProtocol, icmp.NewProtocol4,
		},
	})
	g := &Guest{Stack: s, Link: ep, addr: c.Address.Addr()}
	must := func(err tcpip.Error) {
		if err != nil {
			t.Fatalf("set up the fake guest's stack: %s", err)
		}
	}
	sack, recovery := tcpip.TCPSACKEnabled(true), tcpip.TCPRecovery(0)
	must(s.SetTransportProtocolOption(tcp.ProtocolNumber, &sack))
	must(s.SetTransportProtocolOption(tcp.ProtocolNumber, &recovery))
	must(s.CreateNIC(nicID, ep))
	must(s.AddProtocolAddress(nicID, tcpip.ProtocolAddress{
		Protocol: ipv4.ProtocolNumber,
		AddressWithPrefix: tcpip.AddressWithPrefix{
			Address: tcpip.AddrFrom4(c.Address.Addr().As4()), PrefixLen: c.Address.Bits(),
		},
	}, stack.AddressProperties{}))
	s.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nicID}})
	g.running.Go(func() { _ = ep.Run() })
	t.Cleanup(g.Close)
	return g
}

// Close ends the guest: for its host it looks as if the kernel were gone.
func (g *Guest) Close() {
	g.once.Do(func() {
		g.Link.Close()
		g.running.Wait()
		g.Stack.Close()
		g.Stack.Wait()
	})
}

// Announce sends a gratuitous ARP, as the real guest does when its NIC comes up.
func (g *Guest) Announce() {
	a := g.addr.As4()
	g.SendARP(header.ARPRequest, a, a)
}

// SendARP broadcasts an ARP packet.
func (g *Guest) SendARP(op header.ARPOp, sender, target [4]byte) {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: int(g.Link.MaxHeaderLength()) + header.ARPSize,
	})
	defer pkt.DecRef()
	h := header.ARP(pkt.NetworkHeader().Push(header.ARPSize))
	h.SetIPv4OverEthernet()
	h.SetOp(op)
	copy(h.HardwareAddressSender(), g.Link.LinkAddress())
	copy(h.ProtocolAddressSender(), sender[:])
	copy(h.ProtocolAddressTarget(), target[:])
	pkt.NetworkProtocolNumber = arp.ProtocolNumber
	pkt.EgressRoute.RemoteLinkAddress = header.EthernetBroadcastAddress
	g.Link.AddHeader(pkt)
	var list stack.PacketBufferList
	list.PushBack(pkt)
	_, _ = g.Link.WritePackets(list)
}

// Conn is a TCP connection of the guest.
type Conn struct {
	*gonet.TCPConn
	ep tcpip.Endpoint
}

// Reset closes the connection with a RST.
func (c *Conn) Reset() { c.ep.Abort() }

// ErrRefused is what DialTCP returns when its SYN is answered with a RST.
var ErrRefused = errors.New((&tcpip.ErrConnectionRefused{}).String())

// DialTCP connects to an address.
func (g *Guest) DialTCP(ctx context.Context, to netip.AddrPort) (*Conn, error) {
	var wq waiter.Queue
	ep, terr := g.Stack.NewEndpoint(tcp.ProtocolNumber, ipv4.ProtocolNumber, &wq)
	if terr != nil {
		return nil, errors.New(terr.String())
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

// ListenTCP listens on a port of the guest's.
func (g *Guest) ListenTCP(port uint16) (*Listener, error) {
	var wq waiter.Queue
	ep, err := g.Stack.NewEndpoint(tcp.ProtocolNumber, ipv4.ProtocolNumber, &wq)
	if err == nil {
		if err = ep.Bind(full(netip.AddrPortFrom(g.addr, port))); err == nil {
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

// ListenUDP opens a UDP socket on a port of the guest's; 0 takes any.
func (g *Guest) ListenUDP(port uint16) (*gonet.UDPConn, error) {
	local := full(netip.AddrPortFrom(g.addr, port))
	return gonet.DialUDP(g.Stack, &local, nil, ipv4.ProtocolNumber)
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
	var wq waiter.Queue
	ep, terr := g.Stack.NewEndpoint(icmp.ProtocolNumber4, ipv4.ProtocolNumber, &wq)
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
	msg := make([]byte, header.ICMPv4MinimumSize+len(payload))
	h := header.ICMPv4(msg)
	h.SetType(header.ICMPv4Echo)
	h.SetSequence(1)
	copy(msg[header.ICMPv4MinimumSize:], payload)
	h.SetChecksum(header.ICMPv4Checksum(h, 0))
	if _, err := ep.Write(&reader{msg}, tcpip.WriteOptions{}); err != nil {
		return nil, errors.New(err.String())
	}
	deadline := time.After(timeout)
	for {
		var buf writer
		_, err := ep.Read(&buf, tcpip.ReadOptions{})
		switch err.(type) {
		case nil:
			h := header.ICMPv4(buf.b)
			if h.Type() != header.ICMPv4EchoReply {
				return nil, fmt.Errorf("ping answered with ICMP type %d code %d", h.Type(), h.Code())
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
	return tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFrom4(a.Addr().As4()), Port: a.Port()}
}
