package slirptest

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"docker-usermode-linux/internal/vhostuser/vhostusertest"
)

// Theory of operation
//
// NIC is the other end of the bridge's link: a vhost-user front end with a virtio network driver, and a
// stack.LinkEndpoint for the fake guest's netstack. Its memory has two rings and a buffer for each of their entries. It
// behaves as Linux's driver does where the bridge could tell: 256 entries, event indexes, mergeable receive buffers of a
// page, large segments with partial checksums both ways, call descriptors that are pipes.

const (
	rxBytes  = 4096
	txBytes  = 1 << 17 // a virtio header and the largest frame, rounded up
	hdrBytes = 12

	// Offsets in the memory, behind both rings.
	rxBuffers = 2 * vhostusertest.RingBytes
	txBuffers = rxBuffers + vhostusertest.Entries*rxBytes
	memBytes  = txBuffers + vhostusertest.Entries*txBytes
)

// NIC is a virtio network device of the fake guest.
type NIC struct {
	// Features that the driver accepts; others, but for VIRTIO_F_VERSION_1, are declined. Set before Connect.
	Features uint64
	// Received, if set, is shown each frame of the device's with its virtio header. Set before Connect.
	Received func(hdr, frame []byte)

	toHost, toGuest lane // see Impair

	device *vhostusertest.FrontEnd
	mac    tcpip.LinkAddress
	mtu    atomic.Uint32
	peer   atomic.Value // tcpip.LinkAddress
	tso    bool

	dispatcher atomic.Pointer[dispatcher]
	running    sync.WaitGroup
	once       sync.Once

	mu      sync.Mutex
	rx      *vhostusertest.Ring // guarded by mu, but for calls and kicks
	tx      *vhostusertest.Ring // guarded by mu
	free    []uint16            // guarded by mu: entries of the transmit queue
	closed  bool                // guarded by mu
	paused  bool                // guarded by mu: no frame is taken from the device
	changed sync.Cond           // guarded by mu: closed, paused, or room in the transmit queue
}

type dispatcher struct{ stack.NetworkDispatcher }

var _ stack.GSOEndpoint = (*NIC)(nil)

// allFeatures are what Linux's driver would take of what the bridge may offer.
const allFeatures = 1<<0 | 1<<1 | 1<<3 | 1<<5 | 1<<7 | 1<<8 | 1<<11 | 1<<12 | 1<<13 | 1<<15 | 1<<16 | 1<<28 | 1<<29 | 1<<32

// Connect makes a NIC and connects it to the bridge's socket.
func Connect(path string, mac net.HardwareAddr, mtu uint32, change func(*NIC)) (*NIC, error) {
	n := &NIC{Features: allFeatures, mac: tcpip.LinkAddress(mac)}
	n.changed.L = &n.mu
	n.toHost.pass = n.Send
	n.toGuest.pass = func(_, frame []byte) bool { n.deliver(frame); return true }
	n.mtu.Store(mtu)
	n.peer.Store(header.EthernetBroadcastAddress)
	if change != nil {
		change(n)
	}
	if err := n.connect(path); err != nil {
		return nil, fmt.Errorf("connect the fake guest's NIC: %w", err)
	}
	return n, nil
}

func (n *NIC) connect(path string) error {
	device, err := vhostusertest.Connect(path, n.Features, 2, memBytes)
	if err != nil {
		return err
	}
	n.device, n.rx, n.tx = device, device.Rings[0], device.Rings[1]
	n.tso = device.Features&(1<<11) != 0
	for i := range uint16(vhostusertest.Entries) {
		n.rx.SetDesc(i, vhostusertest.Base+rxBuffers+uint64(i)*rxBytes, rxBytes, vhostusertest.Write, 0)
		n.rx.Offer(i)
		n.free = append(n.free, i)
	}
	n.rx.Show()
	if err := device.Start(); err != nil {
		device.HangUp()
		device.Free()
		return err
	}
	n.running.Go(n.read)
	n.running.Go(n.readTXCalls)
	return nil
}

// read hands over what the device sends, until the NIC is closed.
func (n *NIC) read() {
	var frame []byte
	var hdr [hdrBytes]byte
	for {
		for n.take(&hdr, &frame) {
			if n.Received != nil {
				n.Received(hdr[:], frame)
			}
			completeChecksum(hdr, frame)
			n.toGuest.send(nil, frame)
		}
		if err := n.rx.WaitForCall(); err != nil {
			return
		}
	}
}

// take waits while the NIC is paused and takes the device's next frame, if there is one and the NIC is not closed.
func (n *NIC) take(hdr *[hdrBytes]byte, frame *[]byte) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for {
		for n.paused && !n.closed {
			n.changed.Wait()
		}
		if n.closed {
			return false
		}
		id, length, ok := n.rx.UsedOrCall(0)
		if !ok {
			return false
		}
		if length < hdrBytes { // a buffer that was too small
			n.rx.Offer(id)
			n.rx.Publish()
			continue
		}
		first := n.rxBuffer(id)
		buffers := binary.LittleEndian.Uint16(first[10:])
		copy(hdr[:], first)
		*frame = append((*frame)[:0], first[hdrBytes:length]...)
		n.rx.Offer(id)
		for range buffers - 1 {
			id, length, ok = n.rx.Used()
			if !ok {
				panic("the device promised more buffers than it gave")
			}
			*frame = append(*frame, n.rxBuffer(id)[:length]...)
			n.rx.Offer(id)
		}
		n.rx.Publish()
		return true
	}
}

// readTXCalls wakes senders, until the NIC is closed.
func (n *NIC) readTXCalls() {
	for n.tx.WaitForCall() == nil {
		n.mu.Lock()
		n.changed.Broadcast()
		n.mu.Unlock()
	}
}

func (n *NIC) rxBuffer(id uint16) []byte {
	at := rxBuffers + int(id)*rxBytes
	return n.device.Mem[at : at+rxBytes]
}

// completeChecksum does what the virtio header leaves to the receiver, so that the guest's netstack checks what the
// bridge made of it.
func completeChecksum(hdr [hdrBytes]byte, frame []byte) {
	if hdr[0]&1 == 0 {
		return
	}
	start := int(binary.LittleEndian.Uint16(hdr[6:]))
	at := start + int(binary.LittleEndian.Uint16(hdr[8:]))
	binary.BigEndian.PutUint16(frame[at:], ^checksum.Checksum(frame[start:], 0))
}

// deliver hands a frame to the guest's netstack.
func (n *NIC) deliver(frame []byte) {
	d := n.dispatcher.Load()
	if d == nil {
		return
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(frame)})
	defer pkt.DecRef()
	hdr, ok := pkt.LinkHeader().Consume(header.EthernetMinimumSize)
	if !ok {
		return
	}
	eth := header.Ethernet(hdr)
	n.peer.Store(eth.SourceAddress())
	pkt.NetworkProtocolNumber = eth.Type()
	pkt.PktType = tcpip.PacketHost
	d.DeliverNetworkPacket(pkt.NetworkProtocolNumber, pkt)
}

// Pause makes the NIC take nothing more from the device, or go on, as a guest that does not get to run. When it returns,
// the reader is paused: it looks at the memory no more.
func (n *NIC) Pause(on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.paused = on
	n.changed.Broadcast()
}

// WritePackets implements stack.LinkWriter. It waits for room.
func (n *NIC) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	for i, pkt := range pkts.AsSlice() {
		frame := pkt.ToBuffer()
		b := frame.Flatten()
		frame.Release()
		hdr := [hdrBytes]byte{}
		if gso := pkt.GSOOptions; gso.Type != stack.GSONone && gso.NeedsCsum {
			hdr[0] = 1
			binary.LittleEndian.PutUint16(hdr[6:], header.EthernetMinimumSize+gso.L3HdrLen)
			binary.LittleEndian.PutUint16(hdr[8:], gso.CsumOffset)
			if pkt.Data().Size() > int(gso.MSS) {
				hdr[1] = 1
				if gso.Type == stack.GSOTCPv6 {
					hdr[1] = 4
				}
				binary.LittleEndian.PutUint16(hdr[2:], uint16(pkt.HeaderSize()))
				binary.LittleEndian.PutUint16(hdr[4:], gso.MSS)
			}
		}
		if !n.toHost.send(hdr[:], b) {
			return i, &tcpip.ErrClosedForSend{}
		}
	}
	return pkts.Len(), nil
}

// Send puts one frame with its virtio header into the transmit queue. It reports false when the NIC is closed.
func (n *NIC) Send(hdr, frame []byte) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for {
		if n.closed {
			return false
		}
		for {
			id, _, ok := n.tx.Used()
			if !ok {
				break
			}
			n.free = append(n.free, id)
		}
		if len(n.free) > 0 {
			break
		}
		if id, _, ok := n.tx.UsedOrCall(vhostusertest.Entries * 3 / 4); ok {
			n.free = append(n.free, id)
			break
		}
		n.changed.Wait()
	}
	id := n.free[len(n.free)-1]
	n.free = n.free[:len(n.free)-1]
	at := txBuffers + int(id)*txBytes
	size := copy(n.device.Mem[at:], hdr)
	size += copy(n.device.Mem[at+size:at+txBytes], frame)
	n.tx.SetDesc(id, vhostusertest.Base+uint64(at), uint32(size), 0, 0)
	n.tx.Offer(id)
	n.tx.Publish()
	return true
}

// Memory is the fake guest's memory, for tests that break its rings: both begin with their descriptors, at the
// offsets 0 (receive) and 16 KiB.
func (n *NIC) Memory() []byte { return n.device.Mem }

// Kick kicks both queues, whatever is in them.
func (n *NIC) Kick() {
	n.rx.Kick()
	n.tx.Kick()
}

// Shrink truncates the file of the memory, as a malicious front end could. From then on the NIC can only be kicked and
// closed, and it has to be paused before.
func (n *NIC) Shrink() error { return n.device.Truncate() }

// Close ends the NIC: for its host it looks as if the kernel were gone.
func (n *NIC) Close() {
	n.once.Do(func() {
		n.mu.Lock()
		n.closed = true
		n.changed.Broadcast()
		n.mu.Unlock()
		n.toHost.close()
		n.toGuest.close()
		n.device.HangUp()
		n.running.Wait()
		n.mu.Lock()
		defer n.mu.Unlock()
		n.device.Free()
	})
}

// WaitForEnd returns when the bridge has closed the connection, with io.EOF.
func (n *NIC) WaitForEnd() error {
	_, err := io.Copy(io.Discard, n.device.Conn)
	return err
}

// MTU implements stack.LinkEndpoint.
func (n *NIC) MTU() uint32 { return n.mtu.Load() }

// SetMTU implements stack.LinkEndpoint.
func (n *NIC) SetMTU(mtu uint32) { n.mtu.Store(mtu) }

// MaxHeaderLength implements stack.LinkEndpoint.
func (*NIC) MaxHeaderLength() uint16 { return header.EthernetMinimumSize }

// LinkAddress implements stack.LinkEndpoint.
func (n *NIC) LinkAddress() tcpip.LinkAddress { return n.mac }

// SetLinkAddress implements stack.LinkEndpoint.
func (*NIC) SetLinkAddress(tcpip.LinkAddress) {}

// Capabilities implements stack.LinkEndpoint.
func (*NIC) Capabilities() stack.LinkEndpointCapabilities { return 0 }

// Attach implements stack.LinkEndpoint.
func (n *NIC) Attach(d stack.NetworkDispatcher) {
	if d == nil {
		n.dispatcher.Store(nil)
		return
	}
	n.dispatcher.Store(&dispatcher{d})
}

// IsAttached implements stack.LinkEndpoint.
func (n *NIC) IsAttached() bool { return n.dispatcher.Load() != nil }

// Wait implements stack.LinkEndpoint.
func (n *NIC) Wait() { n.running.Wait() }

// ARPHardwareType implements stack.LinkEndpoint.
func (*NIC) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }

// AddHeader implements stack.LinkEndpoint.
func (n *NIC) AddHeader(pkt *stack.PacketBuffer) {
	to := pkt.EgressRoute.RemoteLinkAddress
	if to == "" {
		to = n.peer.Load().(tcpip.LinkAddress)
	}
	header.Ethernet(pkt.LinkHeader().Push(header.EthernetMinimumSize)).Encode(&header.EthernetFields{
		SrcAddr: n.mac, DstAddr: to, Type: pkt.NetworkProtocolNumber,
	})
}

// ParseHeader implements stack.LinkEndpoint.
func (*NIC) ParseHeader(pkt *stack.PacketBuffer) bool {
	_, ok := pkt.LinkHeader().Consume(header.EthernetMinimumSize)
	return ok
}

// SetOnCloseAction implements stack.LinkEndpoint.
func (*NIC) SetOnCloseAction(func()) {}

// SupportedGSO implements stack.GSOEndpoint.
func (n *NIC) SupportedGSO() stack.SupportedGSO {
	if n.tso {
		return stack.HostGSOSupported
	}
	return stack.GVisorGSOSupported
}

// GSOMaxSize implements stack.GSOEndpoint.
func (*NIC) GSOMaxSize() uint32 { return 1<<16 - 1 }
