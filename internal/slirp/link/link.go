// Package link is the Ethernet link between netstack and the guest's kernel: a stack.LinkEndpoint that is a virtio
// network device for the guest's driver, over vhost-user.
package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"docker-usermode-linux/internal/vhostuser"
)

// Theory of operation
//
// Goals: no frame is lost on the way to the guest because it is slow for a moment; a slow guest slows down whoever
// sends to it, and so, through TCP windows, the sender on the host; the guest can never make the bridge stop listening
// to it; few system calls, few copies and no garbage per frame.
//
// The guest's driver shares its memory with us and has two rings in it (package vhostuser). Frames are copied straight
// between netstack's buffers and the guest's: no system call, no buffer of a socket in between. System calls are for
// waking the other side, and both sides say in the rings when they need that.
//
// Segments. Both directions take TCP segments of up to 64 KiB with the checksum left to the other end, whatever the
// MTU; the guest believes them, since the virtio header says so, and never cuts what stays in it. So the MTU is the
// ordinary 1500, and the cost per byte is that of 64 KiB frames.
//
//   - Reading. One goroutine, the queue's own (vhostuser), takes what the guest sends and hands it to netstack. It
//     sleeps when the queue is empty and the guest has been told to kick.
//   - Writing. Whoever calls WritePackets copies the frame into the guest's buffers itself: no queue, no goroutine of
//     ours. With mergeable buffers a frame fills as many as it needs.
//
// Notifications. The guest is interrupted for what it may wait for, and for nothing else. What it has sent is shown as
// taken, but not told, if it is TCP: an answer follows, and with that the guest sees it (Linux's virtio_net cleans the
// one queue when it polls the other). An acknowledgement without data for what fits into one segment is put into the
// guest's buffers, and mostly goes along with the answer. Both are told after lateNotice at the latest, or with Flush.
//
// Back-pressure. netstack calls WritePackets in the goroutine that sends: that of a splice, a TCP timer, one of
// netstack's TCP processors, or the reader (see below). Packets that carry data wait there until the guest offers
// buffers again. This is what fdbased lacks: it drops.
//
// Why this cannot deadlock. A guest may refuse to receive until its own sends go through, so the reader has to go on
// whatever the state of the other direction is. netstack answers some packets in the reader's goroutine: ARP, ICMP
// (echo, errors), and TCP resets. It never sends data there: segments for a TCP endpoint are only queued on the
// endpoint, for the TCP processors. So what is sent without data (isControl) never waits: it is queued up to
// queueControl and dropped beyond, which all of these protocols are made for, and counted. TCP processors may wait,
// holding their endpoint's lock; the reader does not need that lock, and the guest's segments wait in the endpoint's
// queue. Its receive window bounds those with data, but nothing those without: from a guest that takes nothing and goes
// on sending no more than maxDeaf frames are read. Senders of data (splices, UDP flows, DNS) must not be called by the
// reader, nor may ICMP messages that make netstack send data; package slirp sees to that.
//
// End. The guest's kernel closing the connection makes Run return ErrGuestClosed, Close makes it return nil. After
// either, WritePackets returns ErrClosedForSend to all, also to those who wait. Before the guest's driver has started,
// what netstack sends is lost, as on a cable that nobody has plugged in yet; data waits.
//
// Locks: mu before the queue's own. The reader holds only its queue's.

const (
	// queueControl bounds the queue for what never waits. The largest control frames are echoes of an MTU, in views of 2
	// KiB: at most some 8 MiB.
	queueControl = 4096
	// maxDeaf is how many frames a guest may send while it has no buffers for what waits for it. A segment without data
	// costs us 750 bytes as long as netstack has it.
	maxDeaf = 1 << 16
	// vlanTagBytes is room for one 802.1Q tag, which the guest may put on a frame above the MTU.
	vlanTagBytes = 4
	// maxFrameBytes is the largest frame: an IP packet of 64 KiB in Ethernet.
	maxFrameBytes = header.EthernetMinimumSize + vlanTagBytes + 1<<16 - 1

	// The queues, as the driver numbers them.
	queueToGuest   = 0
	queueFromGuest = 1
	numQueues      = 2
)

// ErrGuestClosed is returned by Run when the other end was closed: the guest's kernel is gone.
var ErrGuestClosed = errors.New("the guest closed its network interface")

// Options of an Endpoint.
type Options struct {
	// Path of the unix socket that the guest's driver connects to. New makes it, Run or Close removes it.
	Path string
	// MTU in bytes, without the Ethernet header. 0 means 1500.
	MTU uint32
	// Address is the MAC address of this end.
	Address tcpip.LinkAddress
	// Peer is the MAC address that the guest's NIC gets, and that frames are sent to until the guest has taken another
	// one.
	Peer tcpip.LinkAddress
	// OldDriver is that of vhostuser.Options.
	OldDriver bool
}

// Endpoint implements stack.LinkEndpoint. All of its methods can be called concurrently.
type Endpoint struct {
	listener *net.UnixListener
	device   *vhostuser.Device
	toGuest  *vhostuser.Queue
	mtu      atomic.Uint32
	address  tcpip.LinkAddress
	peer     atomic.Value // tcpip.LinkAddress

	dispatcher atomic.Pointer[dispatcher]
	largeTX    atomic.Bool // the guest takes large segments
	stats      Stats
	done       chan struct{} // closed by shut

	received *notice      // of what the guest gets
	taken    *notice      // of what it has sent
	bulk     atomic.Bool  // it has sent more than a segment since it was last told of anything
	waiting  atomic.Int32 // senders of data
	deaf     atomic.Int32 // frames of the guest since they wait and it had buffers

	// The reader's.
	rx      vhostuser.Chain
	learned bool // the peer's address from its first frame
	untold  int  // frames that the guest does not know to be taken
	prompt  bool // and wants to

	mu       sync.Mutex
	room     sync.Cond // guarded by mu: the guest has buffers again, or the link has ended
	control  ring      // guarded by mu: what never waits and found no room
	tx       []vhostuser.Chain
	txHeader [virtioHeaderBytes]byte
	features uint64        // guarded by mu: what the driver has accepted
	closed   bool          // guarded by mu
	cause    error         // guarded by mu
	ended    chan struct{} // guarded by mu: closed when Run returns, nil before it is called
}

type dispatcher struct{ stack.NetworkDispatcher }

var (
	_ stack.LinkEndpoint = (*Endpoint)(nil)
	_ stack.GSOEndpoint  = (*Endpoint)(nil)
)

// New makes an endpoint and its socket. Nobody is served before Run.
func New(o Options) (*Endpoint, error) {
	if o.MTU == 0 {
		o.MTU = 1500
	}
	if o.MTU > header.EthernetMinimumSize+1<<16-1 {
		return nil, fmt.Errorf("guest link: an MTU of %d is too large", o.MTU)
	}
	listener, err := vhostuser.Listen(o.Path)
	if err != nil {
		return nil, fmt.Errorf("guest link: %w", err)
	}
	e := &Endpoint{listener: listener, address: o.Address, done: make(chan struct{})}
	e.device = vhostuser.New(vhostuser.Options{
		Features: featureCsum | featureGuestCsum | featureMTU | featureMAC | featureGuestTSO4 | featureGuestTSO6 |
			featureHostTSO4 | featureHostTSO6 | featureHostECN | featureMergeRX |
			vhostuser.FeatureIndirect | vhostuser.FeatureEventIdx | vhostuser.FeatureVersion1,
		Config:    config(o),
		Queues:    numQueues,
		OldDriver: o.OldDriver,
		Started:   e.queueStarted,
		Kicked:    e.queueKicked,
	})
	e.toGuest = e.device.Queue(queueToGuest)
	e.received = newNotice(e.device, queueToGuest)
	e.taken = newNotice(e.device, queueFromGuest)
	e.mtu.Store(o.MTU)
	e.peer.Store(o.Peer)
	e.room.L = &e.mu
	return e, nil
}

// config is struct virtio_net_config (virtio 1.2, section 5.1.4) up to the MTU. The link's state, which it could have
// too, is not offered: Linux's driver then starts without a carrier and asks for the state later, and what the guest
// announces in between is lost.
func config(o Options) []byte {
	b := make([]byte, 12)
	copy(b, o.Peer)
	binary.LittleEndian.PutUint16(b[10:], uint16(o.MTU))
	return b
}

// Run waits for the guest's driver and serves it until Close (nil), until the guest closes its end (ErrGuestClosed) or
// until it breaks the rules of virtio. It must be called at most once.
func (e *Endpoint) Run() error {
	e.mu.Lock()
	e.ended = make(chan struct{})
	defer close(e.ended)
	e.mu.Unlock()
	e.shut(e.device.ServeOne(e.listener))
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.cause
}

// queueStarted is called when the guest's driver starts a queue.
func (e *Endpoint) queueStarted(q *vhostuser.Queue) {
	if q.Index() != queueToGuest {
		return
	}
	features := e.device.Features()
	const large = featureGuestTSO4 | featureGuestTSO6 | featureGuestCsum
	e.largeTX.Store(features&large == large)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.features = features
}

// queueKicked is called when the guest has put something into a queue.
func (e *Endpoint) queueKicked(q *vhostuser.Queue) error {
	if q.Index() == queueToGuest {
		e.guestHasRoom()
		return nil
	}
	return e.readQueue(q)
}

// Close ends Run and all senders. It does not wait for Run; Wait does.
func (e *Endpoint) Close() { e.shut(nil) }

// Wait implements stack.LinkEndpoint: it returns when Run has, or if it was not called yet.
func (e *Endpoint) Wait() {
	e.mu.Lock()
	ended := e.ended
	e.mu.Unlock()
	if ended != nil {
		<-ended
	}
}

// Done is closed when the link has ended for whatever reason.
func (e *Endpoint) Done() <-chan struct{} { return e.done }

// shut ends the link. The first cause is what Run returns.
func (e *Endpoint) shut(cause error) {
	if vhostuser.IsGone(cause) {
		cause = ErrGuestClosed
	}
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return
	}
	e.closed = true
	if cause != nil && !errors.Is(cause, ErrGuestClosed) {
		cause = fmt.Errorf("guest link: %w", cause)
	}
	e.cause = cause
	for e.control.len() > 0 {
		e.control.pop().DecRef()
		e.stats.DroppedOut.Add(1)
	}
	e.room.Broadcast()
	close(e.done)
	e.mu.Unlock()
	e.received.stop()
	e.taken.stop()
	_ = e.listener.Close()
	e.device.Close()
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
// RX checksums are taken as valid: the link is memory, nothing can flip a bit, and a guest that lies only harms its own
// connections. TX checksums: those of TCP are left to the guest with each segment (HostGSO); the rest is computed here,
// for the sake of guests that pass frames on. No address resolution: the link is point to point and every frame is for
// the one guest, whose MAC address is known (AddHeader). Otherwise a guest that is busy for a few seconds would fail
// netstack's ARP probes and lose its connections.
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

// SupportedGSO implements stack.GSOEndpoint: netstack's TCP works with segments of up to GSOMaxSize. They go to the
// guest as they are, or, where its driver takes none, netstack cuts them at the last moment.
func (e *Endpoint) SupportedGSO() stack.SupportedGSO {
	if e.largeTX.Load() {
		return stack.HostGSOSupported
	}
	return stack.GVisorGSOSupported
}

// GSOMaxSize implements stack.GSOEndpoint.
func (*Endpoint) GSOMaxSize() uint32 { return 1<<16 - 1 }
