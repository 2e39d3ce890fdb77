package slirp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// Theory of operation
//
// A forwarded port is a listening socket of the host. A client's connection is accepted at once, since the kernel has
// already done so, and then waits: first for the guest's NIC to come up (bounded), then for the guest to accept. A
// guest that refuses resets the client.
//
// The guest sees connections from the gateway's address, each from a port of its own. It does not see the client's
// address: behind Docker that is mostly Docker's gateway, 172.17.0.1, an address that the guest may well use itself
// (its own Docker does), and its answers would then go astray.
//
// UDP: one socket per forwarded port, whatever the number of clients; each client is a flow, with a port of the
// gateway that stands for it. The answer of the guest to that port goes back to the client through the same socket,
// with the address that the client had sent to as its source (IP_PKTINFO): a host with several addresses would
// otherwise pick one of its own choice, and the client drop the answer.

// tcpForward is a forwarded TCP port.
type tcpForward struct {
	listener *net.TCPListener
	guest    netip.AddrPort
}

// udpForward is a forwarded UDP port.
type udpForward struct {
	n     *Network
	conn  *net.UDPConn
	raw   syscall.RawConn
	guest netip.AddrPort

	mu      sync.Mutex
	clients map[clientKey]*clientFlow // guarded by mu
}

// bindForwards opens all sockets. The error has one line for each that failed.
func (n *Network) bindForwards(forwards []Forward) error {
	var errs []error
	for _, f := range forwards {
		if err := n.bindForward(f); err != nil {
			errs = append(errs, fmt.Errorf("listen on %s %s: %w", f.Proto, hostName(f.Host), bindReason(err)))
		}
	}
	if len(errs) > 0 {
		n.closeForwards()
		return errors.Join(errs...)
	}
	return nil
}

func (n *Network) bindForward(f Forward) error {
	guest := netip.AddrPortFrom(GuestAddr, f.Guest)
	// An empty host is the IPv6 wildcard that takes IPv4 as well, or the IPv4 one where there is no IPv6.
	addr := net.JoinHostPort("", strconv.Itoa(int(f.Host.Port())))
	family := ""
	if a := f.Host.Addr(); a.IsValid() {
		// 0.0.0.0 and [::] are one family each, as for docker run -p.
		addr, family = f.Host.String(), "4"
		if a.Is6() {
			family = "6"
		}
	}
	switch f.Proto {
	case TCP:
		config := net.ListenConfig{KeepAliveConfig: keepAlive}
		l, err := config.Listen(n.ctx, "tcp"+family, addr)
		if err != nil {
			return err
		}
		n.tcpForwards = append(n.tcpForwards, &tcpForward{listener: l.(*net.TCPListener), guest: guest})
	case UDP:
		var config net.ListenConfig
		c, err := config.ListenPacket(n.ctx, "udp"+family, addr)
		if err != nil {
			return err
		}
		conn := c.(*net.UDPConn)
		raw, err := conn.SyscallConn()
		if err == nil {
			err = askPktInfo(raw)
		}
		if err != nil {
			return errors.Join(err, conn.Close())
		}
		n.udpForwards = append(n.udpForwards, &udpForward{
			n: n, conn: conn, raw: raw, guest: guest, clients: make(map[clientKey]*clientFlow),
		})
	default:
		return errors.New("only tcp and udp ports can be forwarded")
	}
	return nil
}

// hostName is the name of a listening address in messages.
func hostName(a netip.AddrPort) string {
	if !a.Addr().IsValid() {
		return fmt.Sprintf("*:%d", a.Port())
	}
	return a.String()
}

// bindReason takes the reason out of what package net makes of it, which repeats the address.
func bindReason(err error) error {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno
	}
	return err
}

func (n *Network) closeForwards() {
	for _, f := range n.tcpForwards {
		_ = f.listener.Close()
	}
	for _, f := range n.udpForwards {
		_ = f.conn.Close()
	}
}

// acceptLoop takes the clients of a forwarded TCP port until the network ends.
func (n *Network) acceptLoop(f *tcpForward) {
	for {
		conn, err := f.listener.AcceptTCP()
		if err == nil {
			n.running.Go(func() { n.serveClient(f, conn) })
			continue
		}
		if n.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return
		}
		// Mostly no descriptor is left. The kernel keeps the client waiting until one is.
		n.log.Warn().Err(err).Stringer("proto", TCP).Stringer("tgt", f.guest).Msg("accept a client")
		select {
		case <-n.ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// serveClient carries one connection to the guest.
func (n *Network) serveClient(f *tcpForward, conn *net.TCPConn) {
	if n.waitingClients.Add(1) > int64(n.limits.pendingClients) || n.flows.full(TCP) {
		n.waitingClients.Add(-1)
		n.stats.pendingLimit.Add(1)
		reset(conn)
		return
	}
	ctx, cancel := context.WithTimeout(n.ctx, n.limits.guestUp)
	guest, ini, err := n.dialGuest(ctx, f.guest)
	cancel()
	n.waitingClients.Add(-1)
	if err != nil {
		n.stats.guestRefused.Add(1)
		n.log.Debug().Stringer("proto", TCP).Stringer("ini", conn.RemoteAddr()).Stringer("tgt", f.guest).Err(err).
			Msg("guest did not accept")
		reset(conn)
		return
	}
	n.run(&tcpFlow{flow: flow{key: flowKey{proto: TCP, ini: ini, tgt: f.guest}}, host: conn, guest: guest})
}

// dialGuest waits for the guest's NIC, connects to the guest from the gateway, and returns the gateway's side.
func (n *Network) dialGuest(ctx context.Context, to netip.AddrPort) (*guestConn, netip.AddrPort, error) {
	select {
	case <-n.up:
	case <-ctx.Done():
		return nil, netip.AddrPort{}, fmt.Errorf("the guest's network is not up: %w", ctx.Err())
	}
	var wq waiter.Queue
	ep, err := n.stack.NewEndpoint(tcp.ProtocolNumber, ipv4.ProtocolNumber, &wq)
	if err != nil {
		return nil, netip.AddrPort{}, stackError{err}
	}
	entry, connected := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	if err := ep.Bind(fullAddress(netip.AddrPortFrom(GatewayAddr, 0))); err != nil {
		ep.Close()
		return nil, netip.AddrPort{}, stackError{err}
	}
	err = ep.Connect(fullAddress(to))
	if _, started := err.(*tcpip.ErrConnectStarted); started {
		select {
		case <-ctx.Done():
			ep.Abort()
			return nil, netip.AddrPort{}, ctx.Err()
		case <-connected:
		}
		err = ep.LastError()
	}
	if err == nil {
		var local tcpip.FullAddress
		if local, err = ep.GetLocalAddress(); err == nil {
			return newGuestConn(ep, &wq), addrPort(local.Addr, local.Port), nil
		}
	}
	ep.Close()
	return nil, netip.AddrPort{}, stackError{err}
}

// clientFlow is a client of a forwarded UDP port.
type clientFlow struct {
	flow
	f   *udpForward
	key clientKey // shadows flow.key, which is the guest's view

	answered atomic.Bool
}

// stop implements entry.
func (c *clientFlow) stop() {
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	if c.f.clients[c.key] == c {
		delete(c.f.clients, c.key)
	}
}

// clientLoop takes the datagrams of a forwarded UDP port until its socket is closed.
func (n *Network) clientLoop(f *udpForward) {
	r := clientReader{}
	read := r.read
	for f.raw.Read(read) == nil {
		if r.err != nil {
			continue // an ICMP error for an earlier answer: the client is gone, its flow expires
		}
		f.fromClient(r.from, r.buf[:r.n])
		datagramPool.Put(r.buf)
		r.buf = nil
	}
}

// clientReader reads a datagram into a buffer that it takes only when there is one: 500 idle ports hold no buffers.
type clientReader struct {
	buf  *[1 << 16]byte
	oob  [128]byte
	n    int
	from clientKey
	err  error
}

func (r *clientReader) read(fd uintptr) bool {
	r.buf = datagramPool.Get().(*[1 << 16]byte)
	r.n, r.from, r.err = recvFrom(fd, r.buf[:], r.oob[:])
	if r.err != nil {
		datagramPool.Put(r.buf)
		r.buf = nil
	}
	return r.err != unix.EAGAIN
}

// fromClient sends a client's datagram to the guest.
func (f *udpForward) fromClient(key clientKey, payload []byte) {
	n := f.n
	select {
	case <-n.up:
	default:
		n.stats.udpDropped.Add(1) // it would wait for ARP at best, and UDP clients repeat themselves
		return
	}
	c := f.client(key)
	if c == nil {
		n.stats.udpDropped.Add(1)
		return
	}
	idle := n.limits.udpNew
	if c.answered.Load() {
		idle = n.limits.udpAnswered
	}
	n.flows.touch(&c.flow, idle)
	n.sendUDP(c.flow.key.ini, c.flow.key.tgt, payload)
}

// client returns a client's flow, a new one if need be, and nil where there are too many.
func (f *udpForward) client(key clientKey) *clientFlow {
	f.mu.Lock()
	c := f.clients[key]
	f.mu.Unlock()
	if c != nil {
		return c
	}
	c = &clientFlow{f: f, key: key}
	// The client's own port is as good as any, and helps whoever reads a packet trace. If it is taken, the next one is.
	port := key.client.Port()
	for range 1 << 16 {
		c.flow.key = flowKey{proto: UDP, ini: netip.AddrPortFrom(GatewayAddr, port), tgt: f.guest}
		err := errFlowExists
		if port >= minClientPort {
			err = f.n.flows.add(c)
		}
		if err == nil {
			f.mu.Lock()
			f.clients[key] = c
			f.mu.Unlock()
			f.n.log.Debug().Uint64("flow", c.id).Stringer("proto", UDP).Stringer("ini", key.view()).
				Stringer("tgt", f.guest).Msg("flow")
			return c
		}
		if !errors.Is(err, errFlowExists) {
			return nil
		}
		port++
	}
	return nil
}

// minClientPort keeps clients off the ports of the gateway's services and those that a guest may treat as privileged.
const minClientPort = 1024

// answer sends the guest's datagram back to the client. It is called by the link's reader.
func (c *clientFlow) answer(payload []byte) {
	n := c.f.n
	if !c.answered.Load() {
		c.answered.Store(true)
	}
	n.flows.touch(&c.flow, n.limits.udpAnswered)
	if err := sendTo(c.f.raw, c.key, payload); err != nil {
		n.stats.udpDropped.Add(1)
		return
	}
	n.stats.hostBytes[UDP].Add(uint64(len(payload)))
}
