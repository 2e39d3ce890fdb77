package slirp

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Theory of operation
//
// A forwarded UDP port has one socket, whatever the number of clients; each client is a flow, with an address and port
// that stand for it in the guest (clientaddr.go): its own, or a port of the gateway. The answer of the guest to that
// goes back to the client through the same socket, with the address that the client had sent to as its source
// (IP_PKTINFO): a host with several addresses would otherwise pick one of its own choice, and the client drop the
// answer.
//
// Before the guest's NIC is up a few datagrams of each client are kept, within a bound for all, and sent when it is.
//
// Sources of datagrams can be made up. Flows that the guest never answered may fill half of the table: then the oldest
// of them makes room for the next, and those that were answered, or that the guest initiates, are left alone.
//
// A guest that answers "port unreachable" ends a flow that it had never answered, and for some seconds clients of that
// family go to the guest's other one, as in forward.go. The client itself cannot be told: no unprivileged socket sends
// ICMP errors.

// clientID names a client of a forwarded UDP port.
type clientID struct {
	port *forward
	clientKey
}

// clientTable holds the clients of all forwarded UDP ports. Its zero value is empty.
type clientTable struct {
	mu    sync.Mutex
	flows map[clientID]*clientFlow // guarded by mu

	// The rest belongs to watchPorts.
	unanswered []*clientFlow // the latest flows, a ring
	next       int           // in the ring
	early      []earlyDatagram
	earlyBytes int
}

// earlyDatagram came before the guest was up.
type earlyDatagram struct {
	id      clientID
	payload []byte
}

const (
	// earlyPerClient is how many datagrams of a client are kept: a resolver's query for each address family, twice.
	earlyPerClient = 4
	// earlyBytes bounds what is kept of all clients, with earlyOverhead for each datagram.
	earlyBytes    = 256 << 10
	earlyOverhead = 256
)

// clientFlow is a client of a forwarded UDP port.
type clientFlow struct {
	flow
	n       *Network
	client  clientID
	name    unix.Sockaddr // the client's address, and
	control []byte        // the one to answer from
	crossed bool          // led to the guest's other family

	answered atomic.Bool
}

// stop implements entry.
func (c *clientFlow) stop() {
	t := &c.n.clients
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.flows[c.client] == c {
		delete(t.flows, c.client)
		c.client.port.live.Add(-1)
	}
}

// receiveClients takes the datagrams of a port, up to its budget.
func (n *Network) receiveClients(f *forward) {
	for range datagramBudget {
		payload, key, err := n.ports.reader.read(f.fd)
		switch {
		case err == nil:
			n.fromClient(clientID{f, key}, payload)
		case errors.Is(err, unix.EAGAIN):
			return
		case errors.Is(err, unix.EINTR):
		default:
			n.pausePort(f, err)
			return
		}
	}
}

// fromClient sends a client's datagram to the guest.
func (n *Network) fromClient(id clientID, payload []byte) {
	if !n.isUp.Load() {
		n.keepEarly(id, payload)
		return
	}
	n.deliverEarly()
	n.toGuest(id, payload)
}

// keepEarly keeps a datagram until the guest is up.
func (n *Network) keepEarly(id clientID, payload []byte) {
	t := &n.clients
	same := 0
	for _, e := range t.early {
		if e.id == id {
			same++
		}
	}
	size := len(payload) + earlyOverhead
	if same >= earlyPerClient || t.earlyBytes+size > earlyBytes {
		n.stats.udpDropped.Add(1)
		return
	}
	t.early = append(t.early, earlyDatagram{id, append([]byte(nil), payload...)})
	t.earlyBytes += size
}

// deliverEarly sends what was kept, if the guest is up.
func (n *Network) deliverEarly() {
	t := &n.clients
	if len(t.early) == 0 || !n.isUp.Load() {
		return
	}
	early := t.early
	t.early, t.earlyBytes = nil, 0
	for _, e := range early {
		n.toGuest(e.id, e.payload)
	}
}

func (n *Network) toGuest(id clientID, payload []byte) {
	c := n.client(id)
	if c == nil {
		n.stats.udpDropped.Add(1)
		return
	}
	idle := n.limits.udpNew
	if c.answered.Load() {
		idle = n.limits.udpAnswered
	}
	n.flows.touch(&c.flow, idle)
	c.guestBytes.Add(uint64(len(payload)))
	n.sendUDP(c.key.ini, c.key.tgt, payload)
}

// client returns a client's flow, a new one if need be, and nil where there are too many.
func (n *Network) client(id clientID) *clientFlow {
	t := &n.clients
	t.mu.Lock()
	c := t.flows[id]
	t.mu.Unlock()
	from := id.view()
	crossed := id.port.crossedNow(familyOf(from.Addr()), n.now())
	if c != nil && (!c.crossed || crossed || c.answered.Load()) {
		return c
	}
	if c != nil {
		c.end() // the other family did not answer either
	}
	c = &clientFlow{n: n, client: id, name: id.sockaddr(), control: id.control(), crossed: crossed}
	t.makeRoom(n)
	if !n.addClient(c, from) {
		return nil
	}
	t.unanswered[t.next] = c
	t.next = (t.next + 1) % len(t.unanswered)
	t.mu.Lock()
	if t.flows == nil {
		t.flows = make(map[clientID]*clientFlow)
	}
	t.flows[id] = c
	t.mu.Unlock()
	id.port.clients.Add(1)
	id.port.live.Add(1)
	n.log.Debug().Uint64("flow", c.id).Stringer("proto", UDP).Stringer("ini", from).Stringer("tgt", c.key.tgt).
		Msg("flow")
	return c
}

// makeRoom ends the oldest of the flows that were never answered, if there are half as many as there may be of all.
func (t *clientTable) makeRoom(n *Network) {
	if t.unanswered == nil {
		t.unanswered = make([]*clientFlow, max(1, n.limits.flows[UDP]/2))
	}
	if c := t.unanswered[t.next]; c != nil && !c.answered.Load() && c.end() {
		n.stats.refused[UDP].Add(1)
	}
}

// minClientPort keeps clients off the gateway's ports that have services, and those that a guest may treat as
// privileged.
const minClientPort = 1024

// addClient enters a new flow, with an address that stands for its client.
func (n *Network) addClient(c *clientFlow, from netip.AddrPort) bool {
	addr, lowest := from.Addr(), 1
	if c.crossed {
		addr = otherFamily(addr)
	}
	c.key = flowKey{proto: UDP, tgt: netip.AddrPortFrom(guestOf(addr), c.client.port.guest)}
	if c.crossed || !n.showsClient(addr) {
		addr, lowest = gatewayOf(addr), minClientPort
	}
	// The client's own port is as good as any, and helps whoever reads a packet trace. If another flow has it, a random
	// one; with 4,096 flows at most the first is mostly free.
	port := int(from.Port())
	for range 64 {
		if port >= lowest {
			c.key.ini = netip.AddrPortFrom(addr, uint16(port))
			if err := n.flows.add(c); !errors.Is(err, errFlowExists) {
				return err == nil
			}
		}
		port = minClientPort + rand.IntN(1<<16-minClientPort)
	}
	return false
}

// end takes a flow out of the table and reports whether it was in.
func (c *clientFlow) end() bool {
	in := c.n.flows.remove(c)
	if in {
		c.stop()
	}
	return in
}

// answer sends the guest's datagram back to the client. Only the link's reader calls it.
func (c *clientFlow) answer(payload []byte) {
	n := c.n
	if !c.answered.Load() {
		c.answered.Store(true)
	}
	n.flows.touch(&c.flow, n.limits.udpAnswered)
	if err := unix.Sendmsg(c.client.port.fd, payload, c.control, c.name, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL); err != nil {
		n.stats.udpDropped.Add(1)
		return
	}
	n.stats.hostBytes[UDP].Add(uint64(len(payload)))
	c.hostBytes.Add(uint64(len(payload)))
}

// guestUnreachable is called by the link's reader when the guest refused a datagram of the flow with "port
// unreachable". It does not wait.
func (c *clientFlow) guestUnreachable() {
	c.n.stats.guestUnreachable.Add(1)
	if c.answered.Swap(false) {
		c.idle.Store(int64(c.n.limits.udpNew))
		return
	}
	until := int64(0)
	if !c.crossed {
		until = c.n.now().Add(familyHint).UnixNano()
	}
	c.client.port.crossed[familyOf(c.client.view().Addr())].Store(until)
	c.end()
}
