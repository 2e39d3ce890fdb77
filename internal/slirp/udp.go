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
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// Theory of operation
//
// UDP does not go through netstack's endpoints: a datagram of the guest is taken from the packet and sent in the
// link's reader, and an answer is put into a packet by the goroutine of its flow. So there is no second queue and
// nothing to register per target.
//
// One unconnected host socket serves one UDP socket of the guest (address, of either family, and port), whatever the
// number of targets.
// The guest's port thus has one port on the host (endpoint-independent mapping, RFC 4787 section 4.1), which is what
// STUN, WireGuard, games and DHTs need, and a thousand targets cost one descriptor. Whoever knows the host's port can
// send to it, as to any UDP socket of a program on the host (endpoint-independent filtering), except from addresses
// that the policy closes.
//
// Life: a flow begins with the guest's first datagram. It ends after 30 s if nothing ever answered, else 180 s after
// the last datagram in either direction, and after 10 s if all it ever asked was port 53.
//
// The way: we are a router to the guest, so its hop limit counts us, and what it does not want fragmented is not. Linux
// sets "don't fragment" on most datagrams, and means it: it wants to be told the path's MTU.
//
// Errors: ICMP errors for what the guest sent come back to it (hostsocket.go). What the policy closes, and flows above
// the limit, are refused with an ICMP error.

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
	host, ok := n.policy.target(UDP, tgt)
	if !ok {
		n.stats.policyClosed.Add(1)
		if !isBroadcast(tgt.Addr()) {
			n.sendUnreachable(prohibited, quote(pkt))
		}
		return true
	}
	how, expired := carriageOf(pkt, tgt.Addr())
	if expired {
		n.sendHopsExceeded(quote(pkt))
		return true
	}
	f, err := n.guestFlow(guest)
	if err != nil {
		n.log.Debug().Stringer("proto", UDP).Stringer("ini", guest).Stringer("tgt", tgt).Err(err).Msg("flow refused")
		n.sendUnreachable(flowRefusal(err), quote(pkt))
		return true
	}
	f.sent(tgt)
	if err := f.socket.send(host, how, payload, nil); err != nil {
		if !n.sendErrno(err, host, pkt) {
			n.stats.udpDropped.Add(1)
		}
		return true
	}
	n.stats.hostBytes[UDP].Add(uint64(size))
	f.hostBytes.Add(uint64(size))
	return true
}

// isBroadcast says whether an address is more than one host's: nobody answers those with an error (RFC 1122 section
// 3.2.2, RFC 4443 section 2.4).
func isBroadcast(a netip.Addr) bool {
	return a.IsMulticast() || a == guestBroadcast || a == limitedBroadcast
}

// defaultHops is the hop limit that systems start with. A guest that uses it leaves the choice to the host, which may
// have been told to use another one.
const defaultHops = 64

// carriageOf takes out of the guest's packet what the host's is to be sent with. It reports expired when the packet
// ends here: we are its first hop.
func carriageOf(pkt *stack.PacketBuffer, tgt netip.Addr) (how carriage, expired bool) {
	if tgt.Is4() {
		ip := header.IPv4(pkt.NetworkHeader().Slice())
		how = carriage{hops: ip.TTL(), whole: ip.Flags()&header.IPv4FlagDontFragment != 0}
	} else {
		// Nobody fragments IPv6 but who sends it, which shows as an extension header after netstack's reassembly.
		ip := header.IPv6(pkt.NetworkHeader().Slice())
		how = carriage{hops: ip.HopLimit(), whole: len(ip) == header.IPv6MinimumSize}
	}
	switch {
	case isOurs(tgt) || how.hops == defaultHops: // the gateway's own loopback is no hop away
		how.hops = 0
	case how.hops <= 1:
		return how, true
	default:
		how.hops--
	}
	return how, false
}

// flowRefusal is what the guest is told when a flow cannot be had: a host without the family has no route, all else is
// a limit.
func flowRefusal(err error) reason {
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return noRoute
	}
	return prohibited
}

// sendErrno tells the guest why the host would not send its packet, and reports whether there was something to tell. A
// full socket is no reason: that is loss.
func (n *Network) sendErrno(err error, host netip.AddrPort, pkt *stack.PacketBuffer) bool {
	for _, loss := range []error{unix.EAGAIN, unix.ENOBUFS, net.ErrClosed} {
		if errors.Is(err, loss) {
			return false
		}
	}
	if errors.Is(err, unix.EMSGSIZE) {
		mtu := pathMTU(host)
		if mtu != 0 {
			n.sendTooBig(mtu, quote(pkt))
		}
		return mtu != 0
	}
	why, refused := unreachableReason(err)
	if !refused {
		n.sendUnreachable(why, quote(pkt))
	}
	return !refused
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
	network := "udp4"
	if guest.Addr().Is6() {
		network = "udp6"
	}
	conn, err := net.ListenUDP(network, nil)
	if err != nil {
		if flowRefusal(err) == prohibited { // no descriptor to be had: a limit as well
			n.stats.refused[UDP].Add(1)
		}
		return nil, err
	}
	f := &guestFlow{flow: flow{key: key}, n: n}
	if f.socket, err = newHostSocket(conn, guest.Addr().Is6(), f); err != nil {
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
	from, ok := f.n.policy.guestView(UDP, from)
	if !ok {
		f.n.stats.policyClosed.Add(1)
		return
	}
	if !f.answered.Load() {
		f.answered.Store(true)
	}
	f.n.flows.touch(&f.flow, f.idleTime())
	f.guestBytes.Add(uint64(len(payload)))
	f.n.sendUDP(from, f.key.ini, payload)
}

// icmpError implements receiver.
func (f *guestFlow) icmpError(e icmpError) {
	to, ok := f.n.policy.guestView(UDP, e.to)
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
		Protocol: header.UDPProtocolNumber, TTL: defaultHops, TOS: stack.DefaultTOS,
	}, pkt); err != nil {
		n.stats.udpDropped.Add(1)
		return
	}
	n.stats.guestBytes[UDP].Add(uint64(len(payload)))
}
