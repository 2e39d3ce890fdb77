package link

import (
	"docker-usermode-linux/internal/vhostuser"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// WritePackets implements stack.LinkWriter. Packets with data wait for buffers of the guest's, all others never wait;
// see the theory of operation.
func (e *Endpoint) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i, pkt := range pkts.AsSlice() {
		if e.closed {
			return i, &tcpip.ErrClosedForSend{}
		}
		if isControl(pkt) {
			e.writeControl(pkt)
			continue
		}
		if !e.writeData(pkt) {
			return i, &tcpip.ErrClosedForSend{}
		}
	}
	if pkts.Len() == 1 && !e.bulk.Load() && isAcknowledgement(pkts.AsSlice()[0]) {
		e.show()
		e.received.later()
		return pkts.Len(), nil
	}
	e.bulk.Store(false)
	e.publish()
	return pkts.Len(), nil
}

// Flush tells the guest at once what may have been left for later.
func (e *Endpoint) Flush() { e.received.now() }

// isAcknowledgement says whether pkt is a TCP segment with nothing but an acknowledgement.
func isAcknowledgement(pkt *stack.PacketBuffer) bool {
	if pkt.TransportProtocolNumber != header.TCPProtocolNumber || pkt.Data().Size() != 0 {
		return false
	}
	hdr := header.TCP(pkt.TransportHeader().Slice())
	return len(hdr) >= header.TCPMinimumSize && hdr.Flags() == header.TCPFlagAck
}

// isControl says whether pkt carries no data that a sender could hold back: ARP, ICMP, and TCP segments without
// payload. The protocol is read from the IP header because fragments have no transport header.
func isControl(pkt *stack.PacketBuffer) bool {
	switch pkt.NetworkProtocolNumber {
	case header.IPv4ProtocolNumber:
		ip := header.IPv4(pkt.NetworkHeader().Slice())
		if len(ip) < header.IPv4MinimumSize {
			return false
		}
		switch ip.TransportProtocol() {
		case header.ICMPv4ProtocolNumber:
			return true
		case header.TCPProtocolNumber:
			return pkt.Data().Size() == 0
		}
		return false
	case header.IPv6ProtocolNumber:
		ip := header.IPv6(pkt.NetworkHeader().Slice())
		if len(ip) < header.IPv6MinimumSize {
			return false
		}
		next := ip.NextHeader()
		if next == header.IPv6FragmentHeader && len(ip) > header.IPv6MinimumSize {
			next = ip[header.IPv6MinimumSize] // of the fragment header, which begins with it
		}
		switch tcpip.TransportProtocolNumber(next) {
		case header.ICMPv6ProtocolNumber:
			return true
		case header.TCPProtocolNumber:
			return pkt.Data().Size() == 0
		}
		return false
	default:
		return true
	}
}

// writeControl writes a packet or queues it. It is called with e.mu held.
func (e *Endpoint) writeControl(pkt *stack.PacketBuffer) {
	if e.control.len() == 0 {
		switch e.put(pkt) {
		case putDone, putDown:
			return
		}
	}
	if e.control.len() >= queueControl {
		e.stats.DroppedOut.Add(1)
		return
	}
	e.control.push(pkt.IncRef())
	e.publish()
}

// writeData writes a packet when the guest has room for it. It reports false when the link has ended. It is called
// with e.mu held.
func (e *Endpoint) writeData(pkt *stack.PacketBuffer) bool {
	for waited := false; ; {
		if e.closed {
			return false
		}
		if e.put(pkt) == putDone {
			return true
		}
		if !waited {
			waited = true
			e.stats.Waits.Add(1)
		}
		e.publish()
		e.waiting.Add(1)
		e.room.Wait()
		e.waiting.Add(-1)
	}
}

// putResult is what put made of a packet.
type putResult int

const (
	putDone putResult = iota // given to the guest, or dropped because it will never take it
	putFull                  // the guest has no buffers; it will kick when it has
	putDown                  // the guest's driver is not there
)

// put copies a packet into the guest's buffers. The guest sees it after publish. It is called with e.mu held.
func (e *Endpoint) put(pkt *stack.PacketBuffer) putResult {
	result := putDown
	err := vhostuser.Guard(func() (err error) {
		q := e.toGuest
		defer q.Unlock()
		if q.Lock() {
			result, err = e.fill(q, pkt)
		}
		return err
	})
	if err != nil {
		e.device.Fail(err)
		return putDown
	}
	return result
}

// fill is put with the queue locked.
func (e *Endpoint) fill(q *vhostuser.Queue, pkt *stack.PacketBuffer) (putResult, error) {
	size := virtioHeaderBytes + pkt.Size()
	used := 0
	for room := 0; room < size; used++ {
		if used == len(e.tx) {
			e.tx = append(e.tx, vhostuser.Chain{})
		}
		for {
			ok, err := q.Take(&e.tx[used])
			if err != nil {
				return putDown, err
			}
			if ok {
				break
			}
			if !q.AskForKick() {
				q.Untake(used)
				return putFull, nil
			}
		}
		for _, part := range e.tx[used].Write {
			room += len(part)
		}
		if room < size && e.features&featureMergeRX == 0 {
			q.Use(&e.tx[used], 0) // an empty buffer would do as well, but drivers only know this
			e.stats.DroppedOut.Add(1)
			return putDone, nil
		}
	}
	hdr := headerFor(pkt, e.features)
	hdr.buffers = uint16(used)
	hdr.encode(&e.txHeader)
	s := scatter{chains: e.tx[:used]}
	s.write(e.txHeader[:])
	views, skip := pkt.AsViewList()
	for v := views.Front(); v != nil; v = v.Next() {
		data := v.AsSlice()
		if skip >= len(data) {
			skip -= len(data)
			continue
		}
		s.write(data[skip:])
		skip = 0
	}
	rest := size
	for i := range e.tx[:used] {
		n := 0
		for _, part := range e.tx[i].Write {
			n += len(part)
		}
		n = min(n, rest)
		rest -= n
		q.Use(&e.tx[i], uint32(n))
	}
	e.stats.FramesOut.Add(1)
	e.stats.BytesOut.Add(uint64(pkt.Size()))
	return putDone, nil
}

// scatter is a position in the parts of chains.
type scatter struct {
	chains []vhostuser.Chain
	part   int
	offset int
}

// write copies b, for which there is room.
func (s *scatter) write(b []byte) {
	for len(b) > 0 {
		if s.part == len(s.chains[0].Write) {
			s.chains, s.part = s.chains[1:], 0
			continue
		}
		n := copy(s.chains[0].Write[s.part][s.offset:], b)
		b = b[n:]
		if s.offset += n; s.offset == len(s.chains[0].Write[s.part]) {
			s.part, s.offset = s.part+1, 0
		}
	}
}

// show lets the guest see what was put. It is called with e.mu held.
func (e *Endpoint) show() {
	withQueue(e.device, e.toGuest, func(q *vhostuser.Queue) error {
		q.Show()
		return nil
	})
}

// publish lets the guest see what was put, and tells it so. It is called with e.mu held.
func (e *Endpoint) publish() { withQueue(e.device, e.toGuest, (*vhostuser.Queue).Publish) }

// guestHasRoom is called when the guest has offered buffers.
func (e *Endpoint) guestHasRoom() {
	e.deaf.Store(0)
	e.mu.Lock()
	defer e.mu.Unlock()
	for e.control.len() > 0 {
		pkt := e.control.front()
		if e.put(pkt) == putFull {
			break
		}
		e.control.pop().DecRef()
	}
	e.publish()
	e.room.Broadcast()
}
