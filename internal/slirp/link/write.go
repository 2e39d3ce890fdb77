package link

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// WritePackets implements stack.LinkWriter. Packets with data wait for room in the queue, all others never wait; see
// the theory of operation.
func (e *Endpoint) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i, pkt := range pkts.AsSlice() {
		if e.queue.len() >= queueData && !isControl(pkt) {
			e.waitForRoom()
		}
		if e.closed {
			return i, &tcpip.ErrClosedForSend{}
		}
		if e.queue.len() >= queueControl {
			e.stats.DroppedOut.Add(1)
			continue
		}
		e.queue.push(pkt.IncRef())
		if !e.flushing && e.queue.len() >= batchFrames {
			e.flush()
		}
	}
	if !e.flushing && e.queue.len() > 0 {
		e.flush()
	}
	return pkts.Len(), nil
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
		switch pkt.TransportProtocolNumber {
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

// waitForRoom returns when the queue has room for data or the endpoint is closed. It is called with e.mu held.
func (e *Endpoint) waitForRoom() {
	e.stats.Waits.Add(1)
	e.waiting++
	for e.queue.len() >= queueData && !e.closed {
		e.room.Wait()
	}
	e.waiting--
}

// flush sends what is queued, without waiting. It is called with e.mu held and e.flushing not set, and returns with
// e.mu held; e.flushing is then either off and the queue empty, or the writer's.
func (e *Endpoint) flush() {
	e.flushing = true
	for sent := 0; ; {
		n, err := e.sendBatch(false)
		sent += n
		if err == nil && len(e.pending) == 0 && e.queue.len() == 0 {
			e.flushing = false
			return
		}
		if e.closed {
			e.dropPending()
			e.flushing = false
			return
		}
		if err != nil || sent >= inlineFrames {
			e.handed = true
			e.wakeWriter()
			return
		}
	}
}

// wakeWriter makes the writer look at the queue.
func (e *Endpoint) wakeWriter() {
	select {
	case e.kick <- struct{}{}:
	default: // it is about to
	}
}

// runWriter is the writer: it flushes what senders hand over to it and waits for POLLOUT as often as needed.
func (e *Endpoint) runWriter() {
	for {
		select {
		case <-e.done:
			e.writeQueue() // drops what is left
			return
		case <-e.kick:
			e.writeQueue()
		}
	}
}

// writeQueue empties the queue, unless a sender is at it.
func (e *Endpoint) writeQueue() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.flushing && !e.handed {
		return
	}
	e.flushing, e.handed = true, false
	for len(e.pending) > 0 || e.queue.len() > 0 {
		_, err := e.sendBatch(true)
		if err == nil && !e.closed {
			continue
		}
		e.dropPending()
		if err != nil {
			e.mu.Unlock()
			e.shut(fmt.Errorf("write to the guest link: %w", err))
			e.mu.Lock()
		}
	}
	e.flushing = false
}

// dropPending drops the packets that were taken off the queue. It is called with e.mu held by the flusher.
func (e *Endpoint) dropPending() {
	for _, pkt := range e.pending {
		pkt.DecRef()
		e.stats.DroppedOut.Add(1)
	}
	e.pending = e.pending[:0]
}

// sendBatch fills e.pending from the queue and sends it: as far as it goes at once, or, if it may wait, at least one
// frame of it. It is called with e.mu held by the flusher, and unlocks it meanwhile. What could not be sent stays in
// e.pending.
func (e *Endpoint) sendBatch(wait bool) (int, error) {
	for len(e.pending) < batchFrames && e.queue.len() > 0 {
		e.pending = append(e.pending, e.queue.pop())
	}
	if e.waiting > 0 && e.queue.len() <= queueData/2 {
		e.room.Broadcast()
	}
	if len(e.pending) == 0 {
		return 0, nil
	}
	e.mu.Unlock()
	bytes := e.batch.fill(e.pending)
	n, err := e.write(wait)
	sent := uint64(0)
	for i, pkt := range e.pending[:n] {
		sent += uint64(bytes[i])
		pkt.DecRef()
	}
	if errors.Is(err, unix.EMSGSIZE) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ENOMEM) {
		// The frame at the front will never fit, or the kernel has no memory for it: lost, as on any wire.
		e.pending[n].DecRef()
		e.stats.DroppedOut.Add(1)
		e.pending = e.pending[:copy(e.pending, e.pending[n+1:])]
		err = nil
	} else {
		e.pending = e.pending[:copy(e.pending, e.pending[n:])]
	}
	e.stats.FramesOut.Add(uint64(n))
	e.stats.BytesOut.Add(sent)
	e.mu.Lock()
	return n, err
}

func (e *Endpoint) write(wait bool) (int, error) {
	b := &e.batch
	b.wait, b.sent, b.err = wait, 0, nil
	if b.call == nil {
		b.call = b.send // made once: a method value is garbage otherwise
	}
	if err := e.conn.Write(b.call); err != nil {
		return b.sent, err
	}
	return b.sent, b.err
}

// txBatch is the argument of one sendmmsg.
type txBatch struct {
	msgs  [batchFrames]mmsghdr
	bytes [batchFrames]int
	iovs  []unix.Iovec
	ends  [batchFrames]int // ends[i] is where the iovecs of message i end
	count int

	wait bool
	call func(fd uintptr) bool
	sent int
	err  error
}

// fill describes pkts as messages and returns their sizes in bytes.
func (b *txBatch) fill(pkts []*stack.PacketBuffer) []int {
	b.iovs = b.iovs[:0]
	for i, pkt := range pkts {
		views, skip := pkt.AsViewList()
		b.bytes[i] = 0
		for v := views.Front(); v != nil; v = v.Next() {
			data := v.AsSlice()
			if skip >= len(data) {
				skip -= len(data)
				continue
			}
			data = data[skip:]
			skip = 0
			iov := unix.Iovec{Base: &data[0]}
			iov.SetLen(len(data))
			b.iovs = append(b.iovs, iov)
			b.bytes[i] += len(data)
		}
		b.ends[i] = len(b.iovs)
	}
	// Pointers into b.iovs only now, when it does not move any more.
	start := 0
	for i := range pkts {
		b.msgs[i].hdr.Iov = &b.iovs[start]
		b.msgs[i].hdr.SetIovlen(b.ends[i] - start)
		start = b.ends[i]
	}
	b.count = len(pkts)
	return b.bytes[:len(pkts)]
}

// send is called by Go's poller. It reports false to be called again when the socket has room.
func (b *txBatch) send(fd uintptr) bool {
	n, err := sendmmsg(fd, b.msgs[b.sent:b.count])
	b.sent += n
	if err == nil && b.sent < b.count && !b.wait {
		// sendmmsg hides the error of the message that failed; the next call tells.
		n, err = sendmmsg(fd, b.msgs[b.sent:b.count])
		b.sent += n
	}
	b.err = err
	return !b.wait || b.sent > 0 || !errors.Is(err, unix.EAGAIN)
}

// ring is a FIFO of packets that grows as needed and does not shrink.
type ring struct {
	slots       []*stack.PacketBuffer // len is a power of two
	first, size int
}

func (r *ring) len() int { return r.size }

func (r *ring) push(pkt *stack.PacketBuffer) {
	if r.size == len(r.slots) {
		grown := make([]*stack.PacketBuffer, max(2*len(r.slots), queueData))
		for i := range r.size {
			grown[i] = r.slots[(r.first+i)&(len(r.slots)-1)]
		}
		r.slots, r.first = grown, 0
	}
	r.slots[(r.first+r.size)&(len(r.slots)-1)] = pkt
	r.size++
}

func (r *ring) pop() *stack.PacketBuffer {
	pkt := r.slots[r.first]
	r.slots[r.first] = nil
	r.first = (r.first + 1) & (len(r.slots) - 1)
	r.size--
	return pkt
}
