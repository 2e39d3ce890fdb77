package slirp

import (
	"errors"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// Theory of operation
//
// A SYN of the guest is held, unanswered, until the host has made the connection. So the guest learns what a
// host would learn: a connection that is refused is refused with a reset, an unreachable address answers with the
// ICMP error, and a slow one is slow, with the guest's own retransmissions ignored meanwhile.
//
// handleTCP runs in the link's reader. It decides only: closed by policy (netstack answers with a reset), too many
// attempts (the SYN is dropped, the guest sends it again), or a goroutine that dials.

// synTable holds the attempts that are in progress. It bounds them and remembers what an ICMP error has to quote.
type synTable struct {
	mu  sync.Mutex
	seq map[stack.TransportEndpointID]uint32 // guarded by mu: sequence number of the SYN
}

func (t *synTable) init() { t.seq = make(map[stack.TransportEndpointID]uint32) }

// begin notes an attempt. It reports fresh when it is a new one, and full when there is no room for it.
func (t *synTable) begin(id stack.TransportEndpointID, seq uint32, limit int) (fresh, full bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, known := t.seq[id]; known {
		return false, false
	}
	if len(t.seq) >= limit {
		return false, true
	}
	t.seq[id] = seq
	return true, false
}

// end forgets an attempt and returns the sequence number of its SYN.
func (t *synTable) end(id stack.TransportEndpointID) uint32 {
	t.mu.Lock()
	defer t.mu.Unlock()
	seq := t.seq[id]
	delete(t.seq, id)
	return seq
}

// handleTCP gets the segments that belong to no endpoint of netstack. On false netstack answers with a reset.
func (n *Network) handleTCP(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	hdr := header.TCP(pkt.TransportHeader().Slice())
	if len(hdr) < header.TCPMinimumSize || hdr.Flags()&(header.TCPFlagSyn|header.TCPFlagAck) != header.TCPFlagSyn {
		return false
	}
	if _, ok := n.policy.target(TCP, addrPort(id.LocalAddress, id.LocalPort)); !ok {
		n.stats.policyClosed.Add(1)
		return false
	}
	fresh, full := n.syns.begin(id, hdr.SequenceNumber(), n.limits.pendingSYNs)
	if full {
		n.stats.pendingLimit.Add(1)
	}
	if !fresh {
		return true // silence: the guest repeats its SYN
	}
	n.running.Add(1) // for serveGuestTCP
	if !n.forwarder.HandlePacket(id, pkt) {
		n.running.Done()
		n.syns.end(id)
		return false
	}
	return true
}

// serveGuestTCP carries one connection that the guest initiates. The forwarder calls it in a goroutine of its own.
func (n *Network) serveGuestTCP(r *tcp.ForwarderRequest) {
	defer n.running.Done()
	id := r.ID()
	f := &tcpFlow{flow: flow{key: flowKey{
		proto: TCP,
		ini:   addrPort(id.RemoteAddress, id.RemotePort),
		tgt:   addrPort(id.LocalAddress, id.LocalPort),
	}}}
	err := n.connectHost(f)
	if err != nil {
		n.stats.dialErrors.Add(1)
		n.log.Debug().Stringer("proto", TCP).Stringer("ini", f.key.ini).Stringer("tgt", f.key.tgt).Err(err).
			Msg("host did not connect")
		why, refused := unreachableReason(err)
		r.Complete(refused)
		seq := n.syns.end(id)
		if !refused {
			n.sendUnreachable(why, quoteTCP(f.key.ini, f.key.tgt, seq))
		}
		return
	}
	var wq waiter.Queue
	ep, terr := r.CreateEndpoint(&wq)
	r.Complete(false)
	n.syns.end(id)
	if terr != nil {
		n.log.Debug().Stringer("ini", f.key.ini).Stringer("tgt", f.key.tgt).Err(stackError{terr}).
			Msg("guest gave up its connection")
		f.host.reset()
		return
	}
	f.guest = newGuestConn(ep, &wq, n.flows.live(TCP))
	n.run(f)
}

// connectHost dials the target of a flow.
func (n *Network) connectHost(f *tcpFlow) error {
	if n.flows.full(TCP) {
		return errFlowLimit
	}
	target, ok := n.policy.target(TCP, f.key.tgt)
	if !ok {
		return unix.ECONNREFUSED
	}
	var err error
	f.host, err = n.sockets.dial(n.ctx, target, n.limits.dial)
	return err
}

// run enters a connected flow into the table and splices it until it ends.
func (n *Network) run(f *tcpFlow) {
	if err := n.flows.add(f); err != nil {
		n.log.Debug().Stringer("ini", f.key.ini).Stringer("tgt", f.key.tgt).Err(err).Msg("connection refused")
		f.discard()
		return
	}
	n.log.Debug().Uint64("flow", f.id).Stringer("proto", TCP).Stringer("ini", f.key.ini).Stringer("tgt", f.key.tgt).
		Msg("connection")
	n.splice(f)
	n.flows.remove(f)
}

// unreachableReason translates the error of a dial into what the guest is told: refused is a TCP reset, all else an
// ICMP destination-unreachable message for that reason (RFC 1122 section 3.2.2.1, RFC 1812 section 5.2.7.1). A host
// that lacks a family, or an address of it, has no route: the guest tries the other family at once.
func unreachableReason(err error) (why reason, refused bool) {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
			return noHost, false
		}
		return 0, true // a limit of ours, or the end
	}
	switch errno {
	case unix.ENETUNREACH, unix.ENETDOWN, unix.EADDRNOTAVAIL, unix.EAFNOSUPPORT:
		return noRoute, false
	case unix.EHOSTUNREACH, unix.EHOSTDOWN, unix.ETIMEDOUT:
		return noHost, false
	case unix.EACCES, unix.EPERM: // a packet filter on the host
		return prohibited, false
	}
	return 0, true
}
