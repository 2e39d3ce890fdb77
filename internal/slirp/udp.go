package slirp

import (
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// Theory of operation
//
// UDP does not go through netstack's endpoints: a datagram of the guest is taken from the packet and sent in the
// link's reader, and an answer is put into a packet by the goroutine of its flow. So there is no second queue and
// nothing to register per target.
//
// One unconnected host socket serves one UDP socket of the guest (address and port), whatever the number of targets.
// The guest's port thus has one port on the host (endpoint-independent mapping, RFC 4787 section 4.1), which is what
// STUN, WireGuard, games and DHTs need, and a thousand targets cost one descriptor. Whoever knows the host's port can
// send to it, as to any UDP socket of a program on the host (endpoint-independent filtering), except from addresses
// that the policy closes.
//
// Life: a flow begins with the guest's first datagram. It ends after 30 s if nothing ever answered, else 180 s after
// the last datagram in either direction, and after 10 s if all it ever asked was port 53.
//
// Errors: ICMP errors for what the guest sent come back to it (hostsocket.go). Flows above the limit are refused with
// an ICMP error.

var (
	guestBroadcast   = netip.AddrFrom4([4]byte{10, 0, 2, 255})
	limitedBroadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})
)

// handleUDP gets the datagrams that no service of ours takes. On false netstack answers "port unreachable".
func (n *Network) handleUDP(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	hdr := header.UDP(pkt.TransportHeader().Slice())
	if len(hdr) < header.UDPMinimumSize {
		return true
	}
	size := int(hdr.Length()) - header.UDPMinimumSize
	if size < 0 || size > pkt.Data().Size() {
		return true
	}
	payload, ok := pkt.Data().PullUp(size)
	if !ok && size > 0 {
		return true
	}
	guest, tgt := addrPort(id.RemoteAddress, id.RemotePort), addrPort(id.LocalAddress, id.LocalPort)
	if f, ok := n.flows.get(flowKey{proto: UDP, ini: tgt, tgt: guest}).(*clientFlow); ok {
		f.answer(payload)
		return true
	}
	host, ok := n.policy.target(tgt)
	if !ok {
		n.stats.policyClosed.Add(1)
		// Nobody answers a broadcast with an error (RFC 1122 section 3.2.2).
		return tgt.Addr().IsMulticast() || tgt.Addr() == guestBroadcast || tgt.Addr() == limitedBroadcast
	}
	f, err := n.guestFlow(guest)
	if err != nil {
		n.log.Debug().Stringer("proto", UDP).Stringer("ini", guest).Stringer("tgt", tgt).Err(err).Msg("flow refused")
		n.stats.udpDropped.Add(1)
		n.sendUnreachable(header.ICMPv4AdminProhibited, quote(pkt))
		return true
	}
	f.sent(tgt)
	switch err := f.socket.send(host, payload, nil); {
	case err == nil:
		n.stats.hostBytes[UDP].Add(uint64(size))
	default:
		n.stats.udpDropped.Add(1)
		n.sendErrno(err, quote(pkt))
	}
	return true
}

// sendErrno tells the guest why the host would not send its packet. A full socket is no reason: that is loss.
func (n *Network) sendErrno(err error, q packetQuote) {
	for _, loss := range []error{unix.EAGAIN, unix.ENOBUFS, unix.EMSGSIZE, net.ErrClosed} {
		if errors.Is(err, loss) {
			return
		}
	}
	if code, refused := unreachableCode(err); !refused {
		n.sendUnreachable(code, q)
	}
}

// guestFlow is a UDP socket of the guest that it sends to the outside from.
type guestFlow struct {
	flow
	n        *Network
	socket   *hostSocket
	answered atomic.Bool
	notDNS   atomic.Bool
}

// stop implements entry.
func (f *guestFlow) stop() { f.socket.close() }

// guestFlow returns the flow of a guest's socket, a new one if need be. Only the link's reader calls it.
func (n *Network) guestFlow(guest netip.AddrPort) (*guestFlow, error) {
	key := flowKey{proto: UDP, ini: guest}
	if f, ok := n.flows.get(key).(*guestFlow); ok {
		return f, nil
	}
	if n.flows.full(UDP) {
		return nil, errFlowLimit
	}
	conn, err := net.ListenUDP("udp4", nil)
	if err != nil {
		return nil, err
	}
	f := &guestFlow{flow: flow{key: key}, n: n}
	if f.socket, err = newHostSocket(conn, f); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if err := n.flows.add(f); err != nil {
		f.socket.close()
		return nil, err
	}
	n.log.Debug().Uint64("flow", f.id).Stringer("proto", UDP).Stringer("ini", guest).Msg("flow")
	n.running.Go(f.run)
	return f, nil
}

func (f *guestFlow) run() {
	f.socket.receive()
	f.n.flows.remove(f)
	f.socket.close()
}

// sent notes that the guest sent something to tgt.
func (f *guestFlow) sent(tgt netip.AddrPort) {
	if tgt.Port() != 53 && !f.notDNS.Load() {
		f.notDNS.Store(true)
	}
	f.n.flows.touch(&f.flow, f.idleTime())
}

func (f *guestFlow) idleTime() time.Duration {
	switch {
	case !f.notDNS.Load():
		return f.n.limits.udpDNS
	case f.answered.Load():
		return f.n.limits.udpAnswered
	}
	return f.n.limits.udpNew
}

// datagram implements receiver.
func (f *guestFlow) datagram(from netip.AddrPort, payload []byte) {
	from, ok := f.n.policy.guestView(from)
	if !ok {
		f.n.stats.policyClosed.Add(1)
		return
	}
	if !f.answered.Load() {
		f.answered.Store(true)
	}
	f.n.flows.touch(&f.flow, f.idleTime())
	f.n.sendUDP(from, f.key.ini, payload)
}

// icmpError implements receiver.
func (f *guestFlow) icmpError(e icmpError) {
	to, ok := f.n.policy.guestView(e.to)
	if !ok {
		return
	}
	e.quote = quoteUDP(f.key.ini, to, len(e.data))
	f.n.forwardICMPError(e, f.key.ini.Addr())
}

// sendUDP sends a datagram to the guest. It waits for the guest, so the link's reader must not call it.
func (n *Network) sendUDP(from, to netip.AddrPort, payload []byte) {
	r, err := n.routeToGuest(from.Addr(), to.Addr())
	if err != nil {
		n.stats.udpDropped.Add(1)
		return
	}
	defer r.Release()
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: header.UDPMinimumSize + int(r.MaxHeaderLength()),
		Payload:            buffer.MakeWithData(payload),
	})
	defer pkt.DecRef()
	hdr := header.UDP(pkt.TransportHeader().Push(header.UDPMinimumSize))
	pkt.TransportProtocolNumber = header.UDPProtocolNumber
	length := uint16(header.UDPMinimumSize + len(payload))
	hdr.Encode(&header.UDPFields{SrcPort: from.Port(), DstPort: to.Port(), Length: length})
	sum := header.PseudoHeaderChecksum(header.UDPProtocolNumber, r.LocalAddress(), r.RemoteAddress(), length)
	sum = ^hdr.CalculateChecksum(checksum.Checksum(payload, sum))
	if sum == 0 {
		sum = 0xffff // 0 means "none" (RFC 768)
	}
	hdr.SetChecksum(sum)
	if err := r.WritePacket(stack.NetworkHeaderParams{
		Protocol: header.UDPProtocolNumber, TTL: ipv4.DefaultTTL, TOS: stack.DefaultTOS,
	}, pkt); err != nil {
		n.stats.udpDropped.Add(1)
		return
	}
	n.stats.guestBytes[UDP].Add(uint64(len(payload)))
}
