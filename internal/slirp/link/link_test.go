package link

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const hang = 60 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	ours  = tcpip.LinkAddress("\x02\x00\x00\x00\x00\x01")
	peers = tcpip.LinkAddress("\x02\x00\x00\x00\x00\x02")
)

// sink collects what the endpoint delivers.
type sink struct {
	mu       sync.Mutex
	packets  [][]byte
	protocol []tcpip.NetworkProtocolNumber
	block    chan struct{} // if set, deliveries wait for it
}

func (s *sink) DeliverNetworkPacket(p tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	if s.block != nil {
		<-s.block
	}
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

type testLink struct {
	*Endpoint
	guest *os.File
	sink  *sink
	done  chan error
}

// start runs an endpoint. The test plays the guest on the socket's other end.
func start(t testing.TB) *testLink {
	t.Helper()
	host, guest, err := SocketPair()
	if err != nil {
		t.Fatal(err)
	}
	e, err := New(Options{Socket: host, Address: ours})
	if err != nil {
		t.Fatal(err)
	}
	l := &testLink{Endpoint: e, guest: guest, sink: &sink{}, done: make(chan error, 1)}
	e.Attach(l.sink)
	go func() { l.done <- e.Run() }()
	t.Cleanup(func() {
		e.Close()
		e.Wait()
		guest.Close()
	})
	return l
}

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

func (l *testLink) write(pkt *stack.PacketBuffer) tcpip.Error {
	defer pkt.DecRef()
	l.AddHeader(pkt)
	var list stack.PacketBufferList
	list.PushBack(pkt.IncRef())
	defer list.Reset()
	_, err := l.WritePackets(list)
	return err
}

func TestReceive(t *testing.T) {
	l := start(t)
	big := bytes.Repeat([]byte("x"), 1504) // the MTU and a VLAN tag
	for _, f := range [][]byte{
		[]byte("runt"),
		frame("\x02\x00\x00\x00\x00\x99", header.IPv4ProtocolNumber, []byte("for another")),
		frame(ours, header.IPv4ProtocolNumber, append(bytes.Clone(big), "x"...)), // too long
		{},
		frame(ours, header.IPv4ProtocolNumber, []byte("unicast")),
		frame(header.EthernetBroadcastAddress, header.ARPProtocolNumber, []byte("broadcast")),
		frame("\x01\x00\x5e\x00\x00\x01", header.IPv4ProtocolNumber, []byte("multicast")),
		frame(ours, header.IPv6ProtocolNumber, big),
	} {
		if _, err := unix.Write(int(l.guest.Fd()), f); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "four packets", func() bool { return l.sink.count() == 4 })
	got := fmt.Sprintf("%s %s %s %d", l.sink.packets[0], l.sink.packets[1], l.sink.packets[2], len(l.sink.packets[3]))
	if want := "unicast broadcast multicast 1504"; got != want {
		t.Errorf("received %s, want %s", got, want)
	}
	if got := l.Stats().DroppedIn.Load(); got != 4 {
		t.Errorf("DroppedIn = %d, want 4", got)
	}
}

func TestSend(t *testing.T) {
	l := start(t)
	for size := range 1400 {
		if err := l.write(udpPacket(size, byte(size))); err != nil {
			t.Fatalf("WritePackets() = %s", err)
		}
		if size%100 != 99 {
			continue
		}
		for i := size - 99; i <= size; i++ {
			buf := make([]byte, 2000)
			n, err := l.guest.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			want := header.EthernetMinimumSize + header.IPv4MinimumSize + i
			if n != want || bytes.Count(buf[n-i:n], []byte{byte(i)}) != i {
				t.Fatalf("frame %d: %d bytes, want %d", i, n, want)
			}
		}
	}
	if got := l.Stats().FramesOut.Load(); got != 1400 {
		t.Errorf("FramesOut = %d, want 1400", got)
	}
}

// TestLearn checks that frames go to the address that the guest has, also when it changes.
func TestLearn(t *testing.T) {
	l := start(t)
	expect := func(want tcpip.LinkAddress) {
		t.Helper()
		l.write(udpPacket(1, 0))
		buf := make([]byte, 100)
		if _, err := l.guest.Read(buf); err != nil {
			t.Fatal(err)
		}
		if got := header.Ethernet(buf).DestinationAddress(); got != want {
			t.Errorf("frame for %x, want %x", got, want)
		}
	}
	say := func(from tcpip.LinkAddress, proto tcpip.NetworkProtocolNumber) {
		t.Helper()
		f := frame(header.EthernetBroadcastAddress, proto, nil)
		copy(f[6:], from)
		before := l.sink.count()
		l.guest.Write(f)
		eventually(t, "the frame arrives", func() bool { return l.sink.count() == before+1 })
	}
	expect(header.EthernetBroadcastAddress)
	say(peers, header.IPv6ProtocolNumber)
	expect(peers)
	say("\x02\x00\x00\x00\x00\x03", header.IPv6ProtocolNumber) // one behind a bridge in the guest
	expect(peers)
	say("\x02\x00\x00\x00\x00\x04", header.ARPProtocolNumber)
	expect("\x02\x00\x00\x00\x00\x04")
	say(header.EthernetBroadcastAddress, header.ARPProtocolNumber)
	expect("\x02\x00\x00\x00\x00\x04")
}

// TestBackPressure checks that senders of data wait for a guest that does not read, that nothing is lost, that
// control frames do not wait, and that the reader goes on meanwhile.
func TestBackPressure(t *testing.T) {
	l := start(t)
	const frames, senders = 5000, 4
	var sent atomic.Int64
	var all sync.WaitGroup
	for range senders {
		all.Go(func() {
			for range frames {
				if err := l.write(udpPacket(1400, 7)); err != nil {
					t.Errorf("WritePackets() = %s", err)
					return
				}
				sent.Add(1)
			}
		})
	}
	eventually(t, "a sender waits", func() bool { return l.Stats().Waits.Load() > 0 })
	if got := sent.Load(); got == senders*frames {
		t.Fatal("the socket took all frames: the test needs more")
	}
	for range 100 {
		if err := l.write(tcpPacket()); err != nil {
			t.Fatalf("WritePackets() = %s", err)
		}
	}
	l.guest.Write(frame(ours, header.IPv4ProtocolNumber, []byte("still listening?")))
	eventually(t, "a frame is received", func() bool { return l.sink.count() == 1 })

	for range senders*frames + 100 {
		if _, err := l.guest.Read(make([]byte, 2000)); err != nil {
			t.Fatal(err)
		}
	}
	all.Wait()
	if got := l.Stats().DroppedOut.Load(); got != 0 {
		t.Errorf("DroppedOut = %d, want 0", got)
	}
}

// TestControlIsBounded checks that frames that never wait do not pile up either.
func TestControlIsBounded(t *testing.T) {
	l := start(t)
	for l.Stats().DroppedOut.Load() == 0 {
		if err := l.write(tcpPacket()); err != nil {
			t.Fatalf("WritePackets() = %s", err)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if got := l.queue.len(); got != queueControl {
		t.Errorf("%d frames are queued, want %d", got, queueControl)
	}
}

// TestBothFull has two endpoints that flood each other with answers to what they receive: neither may stop reading.
func TestBothFull(t *testing.T) {
	host, guest, err := SocketPair()
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*Endpoint
	var running, senders sync.WaitGroup
	var received [2]atomic.Int64
	for i, socket := range []*os.File{host, guest} {
		e, err := New(Options{Socket: socket, Address: ours})
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = e
		// The reader answers each packet with a control frame, as netstack does.
		e.Attach(answering{e, &received[i]})
		running.Go(func() { e.Run() })
	}
	const frames = 20000
	for i := range ends {
		l := &testLink{Endpoint: ends[i]}
		senders.Go(func() {
			for range frames {
				l.write(udpPacket(1400, 0))
			}
		})
	}
	senders.Wait()
	for i := range received {
		eventually(t, "all data arrives", func() bool { return received[i].Load() >= frames })
	}
	for _, e := range ends {
		e.Close()
	}
	running.Wait()
}

type answering struct {
	e *Endpoint
	n *atomic.Int64
}

func (a answering) DeliverNetworkPacket(_ tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	if pkt.Data().Size() > header.IPv4MinimumSize {
		a.n.Add(1)
		(&testLink{Endpoint: a.e}).write(tcpPacket())
	}
}

func (answering) DeliverLinkPacket(tcpip.NetworkProtocolNumber, *stack.PacketBuffer) {}

func TestGuestCloses(t *testing.T) {
	l := start(t)
	l.guest.Close()
	if err := l.end(t); !errors.Is(err, ErrGuestClosed) {
		t.Errorf("Run() = %v, want %v", err, ErrGuestClosed)
	}
	if err := l.write(tcpPacket()); err == nil {
		t.Error("WritePackets() = nil after the end")
	}
}

// TestGuestClosesUnderLoad ends the guest while senders wait for it.
func TestGuestClosesUnderLoad(t *testing.T) {
	for _, end := range []string{"guest", "host"} {
		l := start(t)
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				for l.write(udpPacket(1400, 7)) == nil {
				}
			})
		}
		eventually(t, "a sender waits", func() bool { return l.Stats().Waits.Load() > 0 })
		want := ErrGuestClosed
		if end == "guest" {
			l.guest.Close()
		} else {
			l.Close()
			want = nil
		}
		if err := l.end(t); !errors.Is(err, want) {
			t.Errorf("closed by the %s: Run() = %v, want %v", end, err, want)
		}
		all.Wait()
	}
}

func TestCloseWithoutRun(t *testing.T) {
	host, guest, err := SocketPair()
	if err != nil {
		t.Fatal(err)
	}
	defer guest.Close()
	e, err := New(Options{Socket: host})
	if err != nil {
		t.Fatal(err)
	}
	e.Close()
	if err := e.Run(); err != nil {
		t.Errorf("Run() = %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(Options{}); err == nil {
		t.Error("New() without a socket = nil")
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := New(Options{Socket: r}); err == nil {
		t.Error("New() with a pipe = nil")
	}
}

// TestSocketPairHoldsLargeFrames checks what UML's driver rests on: a send of the largest frame, virtio header and GSO
// included, must never fail with EMSGSIZE, at either end.
func TestSocketPairHoldsLargeFrames(t *testing.T) {
	host, guest, err := SocketPair()
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	defer guest.Close()
	const largest = 1<<16 + 64
	for _, ends := range [][2]*os.File{{host, guest}, {guest, host}} {
		if n, err := ends[0].Write(make([]byte, largest)); n != largest || err != nil {
			t.Errorf("write of %d bytes to %s: %d, %v", largest, ends[0].Name(), n, err)
		}
	}
}

// FuzzReceive feeds frames to the parser, GRO and a real stack behind it.
func FuzzReceive(f *testing.F) {
	f.Add(frame(ours, header.IPv4ProtocolNumber, []byte("E\x00\x00\x14")), frame(ours, header.ARPProtocolNumber, nil))
	f.Add([]byte{}, []byte("short"))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		e := &Endpoint{address: ours}
		e.peer.Store(peers)
		rx := &rxBatch{frameBytes: 1518}
		defer rx.release()
		rx.prepare(2)
		s := &sink{}
		merge := newGRO()
		merge.Dispatcher = s
		for i, data := range [][]byte{a, b} {
			n := copy(rx.views[i].AsSlice(), data)
			rx.msgs[i].len = uint32(n)
			e.receive(merge, rx, i)
		}
		merge.Flush()
	})
}
