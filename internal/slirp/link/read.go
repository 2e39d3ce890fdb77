package link

import (
	"docker-usermode-linux/internal/vhostuser"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	// showEvery is how many frames are taken before the guest gets their buffers back, of the 256 that it has.
	showEvery = 16
	// maxUntold is how many may be shown without telling it.
	maxUntold = 64
	// segmentBytes is less than a frame with a full segment has.
	segmentBytes = 1000
)

// readQueue is the reader: it hands netstack what the guest has put into its transmit queue, until that is empty and
// the guest will kick for more.
func (e *Endpoint) readQueue(q *vhostuser.Queue) error {
	for taken := 0; ; {
		pkt, state, err := e.readFrame(q, taken%showEvery == showEvery-1)
		if err != nil || state == queueIdle {
			return err
		}
		taken++
		if pkt == nil {
			continue // dropped
		}
		if d := e.dispatcher.Load(); d != nil {
			d.DeliverNetworkPacket(pkt.NetworkProtocolNumber, pkt)
		}
		pkt.DecRef()
	}
}

type queueState bool

const (
	queueBusy queueState = true
	queueIdle queueState = false
)

// readFrame takes the next frame. It returns no packet when the frame was dropped.
func (e *Endpoint) readFrame(q *vhostuser.Queue, show bool) (*stack.PacketBuffer, queueState, error) {
	defer q.Unlock()
	if !q.Lock() {
		return nil, queueIdle, nil
	}
	for {
		ok, err := q.Take(&e.rx)
		if err != nil {
			return nil, queueIdle, err
		}
		if ok {
			break
		}
		q.Show()
		if !q.AskForKick() {
			return nil, queueIdle, e.tellTaken(q)
		}
		q.RefuseKicks()
	}
	pkt := e.copyFrame(e.rx.Read)
	q.Use(&e.rx, 0)
	e.untold++
	if show {
		q.Show()
	}
	return pkt, queueBusy, nil
}

// tellTaken notifies the guest of what it has sent, now or later, when there is no more. A sender of datagrams may wait
// for that, one of segments gets an answer.
func (e *Endpoint) tellTaken(q *vhostuser.Queue) error {
	if e.untold == 0 {
		return nil
	}
	if !e.prompt && e.untold < maxUntold {
		e.taken.later()
		return nil
	}
	e.untold, e.prompt = 0, false
	return q.Notify()
}

// copyFrame makes a packet of what the guest's memory holds, which it may change meanwhile: all that is looked at is
// the copy.
func (e *Endpoint) copyFrame(parts [][]byte) *stack.PacketBuffer {
	size := 0
	for _, p := range parts {
		size += len(p)
	}
	var hdr [virtioHeaderBytes]byte
	parts = gather(hdr[:], parts)
	size -= virtioHeaderBytes
	limit := int(e.MTU()) + header.EthernetMinimumSize + vlanTagBytes
	switch hdr[1] &^ gsoECN {
	case gsoNone:
	case gsoTCPv4, gsoTCPv6:
		limit = maxFrameBytes
	default:
		limit = 0 // not offered
	}
	if size < header.EthernetMinimumSize || size > limit {
		e.stats.DroppedIn.Add(1)
		return nil
	}
	if e.waiting.Load() > 0 && e.deaf.Add(1) > maxDeaf {
		e.stats.DroppedIn.Add(1)
		return nil
	}
	view := buffer.NewViewSize(size)
	gather(view.AsSlice(), parts)
	if size >= segmentBytes {
		e.bulk.Store(true)
	}
	e.prompt = e.prompt || !isTCP(view.AsSlice())
	e.stats.FramesIn.Add(1)
	e.stats.BytesIn.Add(uint64(size))
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(view)})
	if !e.parse(pkt) {
		e.stats.DroppedIn.Add(1)
		pkt.DecRef()
		return nil
	}
	return pkt
}

// isTCP says whether an Ethernet frame has a TCP segment, or the beginning of one.
func isTCP(frame []byte) bool {
	const v4Proto, v6Next = header.EthernetMinimumSize + 9, header.EthernetMinimumSize + 6
	switch proto := header.Ethernet(frame).Type(); {
	case proto == header.IPv4ProtocolNumber && len(frame) > v4Proto:
		return frame[v4Proto] == uint8(header.TCPProtocolNumber)
	case proto == header.IPv6ProtocolNumber && len(frame) > v6Next:
		return frame[v6Next] == uint8(header.TCPProtocolNumber)
	}
	return false
}

// gather fills to with the beginning of parts and returns the rest of them.
func gather(to []byte, parts [][]byte) [][]byte {
	for len(to) > 0 && len(parts) > 0 {
		n := copy(to, parts[0])
		to = to[n:]
		if n < len(parts[0]) {
			parts[0] = parts[0][n:]
			break
		}
		parts = parts[1:]
	}
	return parts
}

// parse consumes the Ethernet header. It reports false for frames that are not for us.
func (e *Endpoint) parse(pkt *stack.PacketBuffer) bool {
	hdr, ok := pkt.LinkHeader().Consume(header.EthernetMinimumSize)
	if !ok {
		return false
	}
	eth := header.Ethernet(hdr)
	switch dst := eth.DestinationAddress(); {
	case dst == e.address:
		pkt.PktType = tcpip.PacketHost
	case dst == header.EthernetBroadcastAddress:
		pkt.PktType = tcpip.PacketBroadcast
	case header.IsMulticastEthernetAddress(dst):
		pkt.PktType = tcpip.PacketMulticast
	default:
		return false // netstack ignores PktType for IPv4, so the filter of a real NIC is here
	}
	pkt.NetworkProtocolNumber = eth.Type()
	pkt.RXChecksumValidated = true
	if !e.learned || pkt.NetworkProtocolNumber == header.ARPProtocolNumber || pkt.PktType == tcpip.PacketMulticast {
		e.learn(eth.SourceAddress())
	}
	return true
}

// learn notes the guest's MAC address: from its first frame, then from ARP and multicasts (IPv6's neighbour discovery
// among them) only, which it sends whenever the address changes, so that the other frames cost nothing.
func (e *Endpoint) learn(src tcpip.LinkAddress) {
	e.learned = true
	if header.IsValidUnicastEthernetAddress(src) && e.peer.Load().(tcpip.LinkAddress) != src {
		e.peer.Store(src)
	}
}
