package link

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/stack/gro"
)

// rxBatch is where one recvmmsg puts its frames. Each view belongs to the batch until it is handed to netstack.
type rxBatch struct {
	frameBytes int // largest frame
	views      [batchFrames]*buffer.View
	iovs       [batchFrames]unix.Iovec
	msgs       [batchFrames]mmsghdr
}

// prepare gives every slot that lacks one a buffer of one byte more than the largest frame.
func (b *rxBatch) prepare(n int) {
	for i := range b.views[:n] {
		if b.views[i] == nil {
			b.views[i] = buffer.NewViewSize(b.frameBytes)
			data := b.views[i].AsSlice()
			b.iovs[i].Base = &data[0]
			b.iovs[i].SetLen(len(data))
		}
		b.msgs[i].hdr.Iov = &b.iovs[i]
		b.msgs[i].hdr.SetIovlen(1)
		b.msgs[i].hdr.Flags = 0
	}
}

func (b *rxBatch) release() {
	for i, v := range b.views {
		if v != nil {
			v.Release()
			b.views[i] = nil
		}
	}
}

func newGRO() *gro.GRO {
	var g gro.GRO
	g.Init(true)
	return &g
}

// readLoop is the reader. It returns os.ErrClosed after Close.
func (e *Endpoint) readLoop() error {
	rx := &rxBatch{frameBytes: int(e.MTU()) + header.EthernetMinimumSize + vlanTagBytes}
	defer rx.release()
	merge := newGRO()

	var (
		want    = 1
		n       int
		readErr error
		eof     bool
	)
	read := func(fd uintptr) bool {
		n, readErr = recvmmsg(fd, rx.msgs[:want])
		if readErr == nil && rx.msgs[0].len == 0 {
			eof = hungUp(fd)
		}
		return !errors.Is(readErr, unix.EAGAIN)
	}
	for {
		// Buffers for a whole batch are only at hand under load: idle, one is waiting.
		rx.prepare(want)
		if err := e.conn.Read(read); err != nil {
			return os.ErrClosed
		}
		switch {
		case readErr != nil && isEnd(readErr), eof:
			return ErrGuestClosed
		case readErr != nil:
			return fmt.Errorf("read from the guest link: %w", os.NewSyscallError("recvmmsg", readErr))
		}
		if d := e.dispatcher.Load(); d != nil {
			merge.Dispatcher = d
			for i := range n {
				e.receive(merge, rx, i)
			}
			merge.Flush()
		}
		switch {
		case n == want:
			want = min(2*want, batchFrames)
		case n < want/4:
			want /= 2
		}
	}
}

// receive takes frame i out of the batch and hands it to netstack.
func (e *Endpoint) receive(merge *gro.GRO, rx *rxBatch, i int) {
	size := int(rx.msgs[i].len)
	if size < header.EthernetMinimumSize || rx.msgs[i].hdr.Flags&unix.MSG_TRUNC != 0 {
		e.stats.DroppedIn.Add(1)
		return
	}
	view := rx.views[i]
	rx.views[i] = nil
	view.CapLength(size)
	e.stats.FramesIn.Add(1)
	e.stats.BytesIn.Add(uint64(size))

	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(view)})
	defer pkt.DecRef()
	if !e.parse(pkt) {
		e.stats.DroppedIn.Add(1)
		return
	}
	merge.Enqueue(pkt)
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
	if !e.learned || pkt.NetworkProtocolNumber == header.ARPProtocolNumber {
		e.learn(eth.SourceAddress())
	}
	return true
}

// learn notes the guest's MAC address: from its first frame, then from ARP only, which it sends whenever the address
// changes, so that the other frames cost nothing.
func (e *Endpoint) learn(src tcpip.LinkAddress) {
	e.learned = true
	if header.IsValidUnicastEthernetAddress(src) && e.peer.Load().(tcpip.LinkAddress) != src {
		e.peer.Store(src)
	}
}
