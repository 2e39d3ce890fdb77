package slirp

import (
	"encoding/binary"
	"io"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// Theory of operation
//
// A capture writes the frames of the link to a file that tcpdump and Wireshark read: classic pcap with nanoseconds
// (draft-ietf-opsawg-pcap), Ethernet headers included, so ARP and neighbour discovery are in it. It sees what netstack
// sees: frames from the guest after GRO, which may be larger than the MTU, and frames to the guest before they queue,
// so that an answer never stands before its question. Frames of the guest that the link refuses are not in it.
//
// Whoever sends or receives a frame copies it into a buffer and goes on; one goroutine writes the buffer out whenever
// there is something in it, while the next one fills. So a single frame is in the file at once, many share a write,
// and a slow disk costs frames in the capture (counted as PcapDropped), not time on the link. Only the end of the
// network waits for the last write.

const (
	// snapBytes is what is kept of a frame: tcpdump's default, more than any frame has.
	snapBytes = 256 << 10
	// captureBytes bounds the buffer: 13 ms at 5 Gbit/s. There are two.
	captureBytes = 8 << 20

	pcapMagic    = 0xa1b23c4d // with nanoseconds
	pcapEthernet = 1          // LINKTYPE_ETHERNET
	recordBytes  = 16
)

// capture writes frames to w. A nil one taps nothing and has nothing to run.
type capture struct {
	n    *Network
	w    io.Writer
	kick chan struct{} // there is something to write

	mu      sync.Mutex
	pending []byte // guarded by mu
	failed  bool   // guarded by mu: w takes no more
}

func newCapture(w io.Writer, n *Network) *capture {
	if w == nil {
		return nil
	}
	c := &capture{n: n, w: w, kick: make(chan struct{}, 1)}
	le := binary.LittleEndian
	c.pending = le.AppendUint32(c.pending, pcapMagic)
	c.pending = le.AppendUint16(c.pending, 2) // version 2.4
	c.pending = le.AppendUint16(c.pending, 4)
	c.pending = le.AppendUint64(c.pending, 0) // two reserved words
	c.pending = le.AppendUint32(c.pending, snapBytes)
	c.pending = le.AppendUint32(c.pending, pcapEthernet)
	c.kick <- struct{}{}
	return c
}

// add notes a frame. It never waits for w.
func (c *capture) add(pkt *stack.PacketBuffer) {
	size := pkt.Size()
	left := min(size, snapBytes)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failed || len(c.pending)+recordBytes+left > captureBytes {
		c.n.stats.pcapDropped.Add(1)
		return
	}
	now := c.n.now() // under the lock: times in the file only rise
	le := binary.LittleEndian
	c.pending = le.AppendUint32(c.pending, uint32(now.Unix()))
	c.pending = le.AppendUint32(c.pending, uint32(now.Nanosecond()))
	c.pending = le.AppendUint32(c.pending, uint32(left))
	c.pending = le.AppendUint32(c.pending, uint32(size))
	views, skip := pkt.AsViewList()
	for v := views.Front(); v != nil; v = v.Next() {
		data := v.AsSlice()
		data = data[min(skip, len(data)):]
		skip -= v.Size() - len(data)
		data = data[:min(left, len(data))]
		left -= len(data)
		c.pending = append(c.pending, data...)
	}
	select {
	case c.kick <- struct{}{}:
	default: // run is about to look
	}
}

// run writes until the network ends, and then what is left.
func (c *capture) run() {
	if c == nil {
		return
	}
	var spare []byte
	for ended := false; !ended; {
		select {
		case <-c.kick:
		case <-c.n.ctx.Done():
			ended = true
		}
		c.mu.Lock()
		full := c.pending
		c.pending, spare = spare[:0], full
		c.mu.Unlock()
		if len(full) == 0 {
			continue // the last look has taken it already
		}
		if _, err := c.w.Write(full); err != nil {
			c.n.log.Warn().Err(err).Msg("the packet capture ends here")
			c.mu.Lock()
			c.failed, c.pending = true, nil
			c.mu.Unlock()
			return
		}
	}
}

// tap gives what goes to d to the capture as well.
func (c *capture) tap(d stack.NetworkDispatcher) stack.NetworkDispatcher {
	if c == nil {
		return d
	}
	return tap{d, c}
}

type tap struct {
	stack.NetworkDispatcher
	capture *capture
}

// DeliverNetworkPacket implements stack.NetworkDispatcher.
func (t tap) DeliverNetworkPacket(proto tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	t.capture.add(pkt)
	t.NetworkDispatcher.DeliverNetworkPacket(proto, pkt)
}

// WritePackets implements stack.LinkWriter.
func (i *ingress) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	if i.n.capture != nil {
		for _, pkt := range pkts.AsSlice() {
			i.n.capture.add(pkt)
		}
	}
	return i.Endpoint.WritePackets(pkts)
}
