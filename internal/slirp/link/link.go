// Package link is the Ethernet link between netstack and the guest's kernel: a stack.LinkEndpoint over one end of a
// SOCK_SEQPACKET socket pair whose other end is the guest's NIC (UML's vector driver with transport=fd).
package link

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// Theory of operation
//
// Goals: no frame is lost on the way to the guest because a socket buffer is full for a moment; a slow guest slows
// down whoever sends to it, and so, through TCP windows, the sender on the host; the guest can never make the bridge
// stop listening to it; few system calls and no garbage per frame.
//
// Each message on the socket is one Ethernet frame. Two goroutines belong to an Endpoint, both inside Run:
//
//   - the reader takes up to batchFrames frames with one recvmmsg(2), straight into buffers that netstack then owns,
//     merges TCP segments that follow on one another (GRO) and hands them to netstack;
//   - the writer sleeps until a sender finds the socket full, then waits for POLLOUT and empties the queue.
//
// Whoever calls WritePackets appends to one queue and, if nobody else is at it, flushes it itself with sendmmsg(2),
// without waiting: the common case costs no goroutine switch, and packets that other goroutines queue meanwhile leave
// in the same batch. The flusher is whoever holds the `flushing` flag; it hands that to the writer when the socket is
// full or when it has worked for others for long enough. (Leaving full frames to the writer, for larger batches to
// form, was tried on 2026-11-22: no difference in CPU time per byte, more latency.)
//
// Back-pressure. netstack calls WritePackets in the goroutine that sends: that of a splice, a TCP timer, one of
// netstack's TCP processors, or the reader (see below). Packets that carry data wait there while queueData of them are
// queued. This is what fdbased lacks: it drops on EAGAIN.
//
// Why this cannot deadlock. A guest may refuse to receive until its own sends go through, so the reader has to go on
// whatever the state of the write side is. netstack answers some packets in the reader's goroutine: ARP, ICMP (echo,
// errors), and TCP resets. It never sends data there: segments for a TCP endpoint are only queued on the endpoint,
// for the TCP processors. So what is sent without data (isControl) never waits: it is queued up to queueControl and
// dropped beyond, which all of these protocols are made for, and counted. TCP processors may wait, holding their
// endpoint's lock; the reader does not need that lock, and the guest's segments wait in the endpoint's queue, which
// its receive window bounds. Senders of data (splices, UDP flows, DNS) must not be called by the reader; package
// slirp sees to that.
//
// End. The guest's kernel closing its end shows as a read of zero bytes with POLLHUP, EPIPE or ECONNRESET; Run then
// returns ErrGuestClosed. Close makes Run return nil. After either, WritePackets returns ErrClosedForSend to all,
// also to those who wait.
//
// Ownership: a packet in the queue holds one reference, dropped when it was sent or the endpoint ends.

const (
	// batchFrames is the number of frames per system call. UML's driver works with queues of 64 too (depth=64).
	batchFrames = 64
	// queueData is how many frames are queued before senders of data wait: two batches, one at the socket and one to
	// come. The socket's own buffer, behind it, holds hundreds.
	queueData = 2 * batchFrames
	// queueControl bounds the queue for what never waits. A control frame holds well below 1 KiB, so at most some 4
	// MiB.
	queueControl = 4096
	// inlineFrames is how many frames a sender flushes for others before it hands over to the writer.
	inlineFrames = 4 * batchFrames
	// vlanTagBytes is room for one 802.1Q tag, which the guest may put on a frame above the MTU.
	vlanTagBytes = 4
)

// ErrGuestClosed is returned by Run when the other end of the socket was closed: the guest's kernel is gone.
var ErrGuestClosed = errors.New("the guest closed its network interface")

// Options of an Endpoint.
type Options struct {
	// Socket is a connected SOCK_SEQPACKET socket. New takes ownership, also when it fails.
	Socket *os.File
	// MTU in bytes, without the Ethernet header. 0 means 1500.
	MTU uint32
	// Address is the MAC address of this end.
	Address tcpip.LinkAddress
	// Peer is the MAC address that frames are sent to until the peer's own is learned from its frames. Empty means
	// broadcast.
	Peer tcpip.LinkAddress
}

// Endpoint implements stack.LinkEndpoint. All of its methods can be called concurrently.
type Endpoint struct {
	file    *os.File
	conn    syscall.RawConn
	mtu     atomic.Uint32
	address tcpip.LinkAddress
	peer    atomic.Value // tcpip.LinkAddress

	dispatcher atomic.Pointer[dispatcher]
	learned    bool // the peer's address from its first frame; only used by the reader
	stats      Stats

	kick    chan struct{} // wakes the writer
	done    chan struct{} // closed by shut
	running sync.WaitGroup

	mu       sync.Mutex
	room     sync.Cond             // guarded by mu: the queue got shorter, or closed
	queue    ring                  // guarded by mu
	waiting  int                   // guarded by mu: senders in room.Wait
	flushing bool                  // guarded by mu: somebody empties the queue
	handed   bool                  // guarded by mu: flushing is the writer's to take over
	closed   bool                  // guarded by mu
	cause    error                 // guarded by mu
	batch    txBatch               // owned by whoever set flushing
	pending  []*stack.PacketBuffer // owned by whoever set flushing: taken off the queue, not sent yet
}

type dispatcher struct{ stack.NetworkDispatcher }

var _ stack.LinkEndpoint = (*Endpoint)(nil)

// New makes an endpoint. Nothing is read before Run.
func New(o Options) (*Endpoint, error) {
	file, err := own(o.Socket)
	if err != nil {
		return nil, fmt.Errorf("guest link: %w", err)
	}
	conn, err := file.SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("guest link: %w", err), file.Close())
	}
	e := &Endpoint{
		file:    file,
		conn:    conn,
		address: o.Address,
		kick:    make(chan struct{}, 1),
		done:    make(chan struct{}),
		pending: make([]*stack.PacketBuffer, 0, batchFrames),
	}
	if o.MTU == 0 {
		o.MTU = 1500
	}
	e.mtu.Store(o.MTU)
	if o.Peer == "" {
		o.Peer = header.EthernetBroadcastAddress
	}
	e.peer.Store(o.Peer)
	e.room.L = &e.mu
	return e, nil
}

// Run reads and writes frames until Close (nil), until the guest closes its end (ErrGuestClosed) or until the socket
// fails. It must be called at most once.
func (e *Endpoint) Run() error {
	e.running.Add(1)
	defer e.running.Done()
	var writer sync.WaitGroup
	writer.Go(e.runWriter)
	e.shut(e.readLoop())
	writer.Wait()
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.cause
}

// Close ends Run and all senders. It does not wait for Run; Wait does.
func (e *Endpoint) Close() { e.shut(nil) }

// Wait implements stack.LinkEndpoint: it returns when Run has.
func (e *Endpoint) Wait() { e.running.Wait() }

// Done is closed when the link has ended for whatever reason.
func (e *Endpoint) Done() <-chan struct{} { return e.done }

// shut ends the link. The first cause is what Run returns.
func (e *Endpoint) shut(cause error) {
	if isEnd(cause) {
		cause = ErrGuestClosed
	}
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return
	}
	e.closed, e.cause = true, cause
	for e.queue.len() > 0 {
		e.queue.pop().DecRef()
		e.stats.DroppedOut.Add(1)
	}
	e.room.Broadcast()
	close(e.done)
	e.mu.Unlock()
	_ = e.file.Close() // unblocks the reader and the writer
}

// MTU implements stack.LinkEndpoint.
func (e *Endpoint) MTU() uint32 { return e.mtu.Load() }

// SetMTU implements stack.LinkEndpoint.
func (e *Endpoint) SetMTU(mtu uint32) { e.mtu.Store(mtu) }

// MaxHeaderLength implements stack.LinkEndpoint.
func (*Endpoint) MaxHeaderLength() uint16 { return header.EthernetMinimumSize }

// LinkAddress implements stack.LinkEndpoint.
func (e *Endpoint) LinkAddress() tcpip.LinkAddress { return e.address }

// SetLinkAddress implements stack.LinkEndpoint. The address is fixed.
func (*Endpoint) SetLinkAddress(tcpip.LinkAddress) {}

// Capabilities implements stack.LinkEndpoint.
//
// RX checksums are taken as valid: the socket pair is memory of one kernel, nothing can flip a bit, and a guest that
// lies only harms its own connections. TX checksums are netstack's as long as no virtio_net_hdr tells the guest to
// trust us. No address resolution: the link is point to point and every frame is for the one guest, whose MAC address
// is learned (AddHeader). Otherwise a guest that is busy for a few seconds would fail netstack's ARP probes and lose
// its connections.
func (*Endpoint) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

// Attach implements stack.LinkEndpoint.
func (e *Endpoint) Attach(d stack.NetworkDispatcher) {
	if d == nil {
		e.dispatcher.Store(nil)
		return
	}
	e.dispatcher.Store(&dispatcher{d})
}

// IsAttached implements stack.LinkEndpoint.
func (e *Endpoint) IsAttached() bool { return e.dispatcher.Load() != nil }

// ARPHardwareType implements stack.LinkEndpoint.
func (*Endpoint) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }

// AddHeader implements stack.LinkEndpoint.
func (e *Endpoint) AddHeader(pkt *stack.PacketBuffer) {
	to := pkt.EgressRoute.RemoteLinkAddress
	if to == "" {
		to = e.peer.Load().(tcpip.LinkAddress)
	}
	header.Ethernet(pkt.LinkHeader().Push(header.EthernetMinimumSize)).Encode(&header.EthernetFields{
		SrcAddr: e.address,
		DstAddr: to,
		Type:    pkt.NetworkProtocolNumber,
	})
}

// ParseHeader implements stack.LinkEndpoint.
func (*Endpoint) ParseHeader(pkt *stack.PacketBuffer) bool {
	_, ok := pkt.LinkHeader().Consume(header.EthernetMinimumSize)
	return ok
}

// SetOnCloseAction implements stack.LinkEndpoint. There is no device to destroy.
func (*Endpoint) SetOnCloseAction(func()) {}

// SupportedGSO implements stack.GSOEndpoint: netstack's TCP works with segments of up to GSOMaxSize and cuts them to
// MTU size at the last moment, which spares most of its per-segment work.
func (*Endpoint) SupportedGSO() stack.SupportedGSO { return stack.GVisorGSOSupported }

// GSOMaxSize implements stack.GSOEndpoint.
func (*Endpoint) GSOMaxSize() uint32 { return 1<<16 - 1 }

// isEnd says whether an error of the socket means that the other end is gone.
func isEnd(err error) bool {
	return errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) ||
		errors.Is(err, unix.ENOTCONN)
}
