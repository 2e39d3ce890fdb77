package link

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"docker-usermode-linux/internal/slirp/slirptest"
)

// hang is far longer than anything takes: it turns a hang into a failure.
const hang = 60 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	ours  = tcpip.LinkAddress("\x02\x00\x00\x00\x00\x01")
	peers = tcpip.LinkAddress("\x02\x00\x00\x00\x00\x02")
	mtu   = 1500
)

// sink collects what the endpoint delivers.
type sink struct {
	mu       sync.Mutex
	packets  [][]byte
	protocol []tcpip.NetworkProtocolNumber
}

func (s *sink) DeliverNetworkPacket(p tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.packets = append(s.packets, bytes.Clone(pkt.Data().AsRange().ToSlice()))
	s.protocol = append(s.protocol, p)
}

func (*sink) DeliverLinkPacket(tcpip.NetworkProtocolNumber, *stack.PacketBuffer) {}

func (s *sink) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.packets)
}

// received is a frame as the guest got it.
type received struct {
	hdr   virtioHeader
	frame []byte
}

// guestLog collects what the guest gets.
type guestLog struct {
	mu     sync.Mutex
	frames []received
}

func (g *guestLog) add(hdr, frame []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.frames = append(g.frames, received{decode(hdr), bytes.Clone(frame)})
}

func (g *guestLog) all() []received {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.frames[:len(g.frames):len(g.frames)]
}

func decode(b []byte) virtioHeader {
	u16 := func(i int) uint16 { return uint16(b[i]) | uint16(b[i+1])<<8 }
	return virtioHeader{b[0], b[1], u16(2), u16(4), u16(6), u16(8), u16(10)}
}

// testLink is an endpoint that runs, with the guest's NIC at its other end.
type testLink struct {
	*Endpoint
	nic  *slirptest.NIC
	sink *sink
	done chan error // result of Run
}

// start runs an endpoint with a guest whose driver is up. change may alter the NIC before.
func start(t testing.TB, change func(*slirptest.NIC)) *testLink {
	t.Helper()
	l := startWithoutGuest(t)
	nic, err := slirptest.Connect(l.path, net.HardwareAddr(peers), mtu, change)
	if err != nil {
		t.Fatal(err)
	}
	l.nic = nic
	t.Cleanup(nic.Close)
	eventually(t, "the driver is up", func() bool {
		defer l.toGuest.Unlock()
		return l.toGuest.Lock()
	})
	return &l.testLink
}

type lonelyLink struct {
	testLink
	path string
}

func startWithoutGuest(t testing.TB) *lonelyLink {
	t.Helper()
	path := socketPath(t)
	e, err := New(Options{Path: path, MTU: mtu, Address: ours, Peer: peers})
	if err != nil {
		t.Fatal(err)
	}
	l := &lonelyLink{testLink{Endpoint: e, sink: &sink{}, done: make(chan error, 1)}, path}
	e.Attach(l.sink)
	go func() { l.done <- e.Run() }()
	t.Cleanup(func() {
		e.Close()
		e.Wait()
	})
	return l
}

// socketPath is a path for the link's socket. That of t.TempDir may be too long for one.
func socketPath(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "link")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "nic")
}

// end is what Run returns.
func (l *testLink) end(t testing.TB) error {
	t.Helper()
	select {
	case err := <-l.done:
		return err
	case <-time.After(hang):
		t.Fatal("Run() does not return")
		return nil
	}
}

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(hang); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// frame makes a frame from the peer.
func frame(to tcpip.LinkAddress, proto tcpip.NetworkProtocolNumber, payload []byte) []byte {
	b := make([]byte, header.EthernetMinimumSize, header.EthernetMinimumSize+len(payload))
	header.Ethernet(b).Encode(&header.EthernetFields{SrcAddr: peers, DstAddr: to, Type: proto})
	return append(b, payload...)
}

// send sends a frame from the guest, with an empty virtio header.
func (l *testLink) send(frame []byte) { l.nic.Send(make([]byte, virtioHeaderBytes), frame) }

// udpPacket makes a packet with data, tcpPacket one without, as netstack gives them to the link.
func udpPacket(size int, fill byte) *stack.PacketBuffer {
	return ipPacket(header.UDPProtocolNumber, bytes.Repeat([]byte{fill}, size))
}

func tcpPacket() *stack.PacketBuffer { return ipPacket(header.TCPProtocolNumber, nil) }

func ipPacket(proto tcpip.TransportProtocolNumber, data []byte) *stack.PacketBuffer {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: header.EthernetMinimumSize + header.IPv4MinimumSize,
		Payload:            buffer.MakeWithData(data),
	})
	header.IPv4(pkt.NetworkHeader().Push(header.IPv4MinimumSize)).Encode(&header.IPv4Fields{
		TotalLength: uint16(header.IPv4MinimumSize + len(data)), Protocol: uint8(proto),
	})
	pkt.NetworkProtocolNumber = header.IPv4ProtocolNumber
	return pkt
}

func (l *testLink) write(pkt *stack.PacketBuffer) tcpip.Error { return write(l.Endpoint, pkt) }

func write(e *Endpoint, pkt *stack.PacketBuffer) tcpip.Error {
	defer pkt.DecRef()
	e.AddHeader(pkt)
	var list stack.PacketBufferList
	list.PushBack(pkt.IncRef())
	defer list.Reset()
	_, err := e.WritePackets(list)
	return err
}
