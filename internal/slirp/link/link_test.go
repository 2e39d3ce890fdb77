package link

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"docker-usermode-linux/internal/slirp/slirptest"
	"docker-usermode-linux/internal/vhostuser"
)

func TestReceive(t *testing.T) {
	l := start(t, nil)
	full := bytes.Repeat([]byte("x"), mtu+vlanTagBytes)
	none := make([]byte, virtioHeaderBytes)
	large := func(gsoType byte) []byte {
		return []byte{flagNeedsCsum, gsoType, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0}
	}
	to := func(addr tcpip.LinkAddress, payload []byte) []byte {
		return frame(addr, header.IPv4ProtocolNumber, payload)
	}
	for _, tt := range []struct {
		name       string
		hdr, frame []byte
		want       int // bytes of payload; -1: dropped
	}{
		{"nothing", nil, nil, -1},
		{"half a header", none[:5], nil, -1},
		{"no frame", none, nil, -1},
		{"runt", none, []byte("runt"), -1},
		{"for another", none, to("\x02\x00\x00\x00\x00\x99", []byte("x")), -1},
		{"too long", none, to(ours, append(bytes.Clone(full), 'x')), -1},
		{"large without segmentation", none, to(ours, make([]byte, 30000)), -1},
		{"UDP segmentation", large(5), to(ours, make([]byte, 30000)), -1},
		{"unknown segmentation", large(0x7f), to(ours, []byte("x")), -1},
		{"larger than IP", large(gsoTCPv4), to(ours, make([]byte, 1<<16+vlanTagBytes)), -1},
		{"unicast", none, to(ours, []byte("unicast")), 7},
		{"empty", none, to(ours, nil), 0},
		{"broadcast", none, to(header.EthernetBroadcastAddress, []byte("broadcast")), 9},
		{"multicast", none, to("\x01\x00\x5e\x00\x00\x01", []byte("multicast")), 9},
		{"MTU and VLAN tag", none, to(ours, full), mtu + vlanTagBytes},
		{"large IPv4", large(gsoTCPv4), to(ours, make([]byte, 1<<16-1)), 1<<16 - 1},
		{"large IPv6", large(gsoTCPv6), to(ours, make([]byte, 30000)), 30000},
		{"large with ECN", large(gsoTCPv4 | gsoECN), to(ours, make([]byte, 30000)), 30000},
	} {
		count, dropped := l.sink.count(), l.Stats().DroppedIn.Load()
		l.nic.Send(tt.hdr, tt.frame)
		eventually(t, tt.name, func() bool { return l.sink.count() > count || l.Stats().DroppedIn.Load() > dropped })
		got := -1
		if l.sink.count() > count {
			got = len(l.sink.packets[count])
		}
		if got != tt.want {
			t.Errorf("%s: received %d bytes, want %d", tt.name, got, tt.want)
		}
	}
}

// TestScattered cuts a frame with its header into parts at each place.
func TestScattered(t *testing.T) {
	e := &Endpoint{address: ours}
	e.mtu.Store(mtu)
	e.peer.Store(peers)
	f := append(make([]byte, virtioHeaderBytes), frame(ours, header.IPv6ProtocolNumber, []byte("payload"))...)
	for i := range f {
		for j := i; j < len(f); j++ {
			pkt := e.copyFrame([][]byte{f[:i], f[i:j], f[j:]})
			if pkt == nil {
				t.Fatalf("cut at %d and %d: dropped", i, j)
			}
			if got := string(pkt.Data().AsRange().ToSlice()); got != "payload" || pkt.NetworkProtocolNumber != header.IPv6ProtocolNumber {
				t.Errorf("cut at %d and %d: %q of %#x", i, j, got, pkt.NetworkProtocolNumber)
			}
			pkt.DecRef()
		}
	}
}

// TestSend sends frames of all sizes up to a few buffers of the guest's.
func TestSend(t *testing.T) {
	var log guestLog
	l := start(t, func(n *slirptest.NIC) { n.Received = log.add })
	var sizes []int
	for size := range 1400 {
		sizes = append(sizes, size)
	}
	for at := 4096; at < 20000; at += 4096 {
		for size := at - 80; size < at+10; size++ {
			sizes = append(sizes, size)
		}
	}
	for _, size := range sizes {
		if err := l.write(udpPacket(size, byte(size))); err != nil {
			t.Fatalf("WritePackets() = %s", err)
		}
	}
	eventually(t, "all frames", func() bool { return len(log.all()) == len(sizes) })
	const headers = header.EthernetMinimumSize + header.IPv4MinimumSize
	for i, got := range log.all() {
		size := sizes[i]
		data := bytes.Repeat([]byte{byte(size)}, size)
		wantHdr := virtioHeader{flags: flagDataValid, buffers: uint16((virtioHeaderBytes + headers + size + 4095) / 4096)}
		if len(got.frame) != headers+size || !bytes.Equal(got.frame[headers:], data) || got.hdr != wantHdr {
			t.Fatalf("frame %d: %d bytes with %+v, want %d with %+v", i, len(got.frame), got.hdr, headers+size, wantHdr)
		}
	}
	if got := l.Stats().FramesOut.Load(); got != uint64(len(sizes)) {
		t.Errorf("FramesOut = %d, want %d", got, len(sizes))
	}
}

// TestConfiguration checks what the guest's driver reads.
func TestConfiguration(t *testing.T) {
	l := startWithoutGuest(t)
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: l.path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ask := append([]byte{0, 0, 0, 0, 12, 0, 0, 0, 0, 0, 0, 0}, make([]byte, 12)...)
	if err := vhostuser.Send(conn, vhostuser.Message{Request: vhostuser.GetConfig, Payload: ask}); err != nil {
		t.Fatal(err)
	}
	m, err := vhostuser.Receive(conn)
	if err != nil {
		t.Fatal(err)
	}
	want := append([]byte(peers), 0, 0, 0, 0, mtu&0xff, mtu>>8)
	if got := m.Payload[12:]; !bytes.Equal(got, want) {
		t.Errorf("configuration = %x, want %x", got, want)
	}
}

// TestLearn checks that frames go to the address that the guest has, also when it changes.
func TestLearn(t *testing.T) {
	var log guestLog
	l := start(t, func(n *slirptest.NIC) { n.Received = log.add })
	expect := func(want tcpip.LinkAddress) {
		t.Helper()
		before := len(log.all())
		l.write(udpPacket(1, 0))
		eventually(t, "a frame", func() bool { return len(log.all()) > before })
		if got := header.Ethernet(log.all()[before].frame).DestinationAddress(); got != want {
			t.Errorf("frame for %x, want %x", got, want)
		}
	}
	say := func(from tcpip.LinkAddress, proto tcpip.NetworkProtocolNumber) {
		t.Helper()
		f := frame(ours, proto, nil)
		copy(f[6:], from)
		before := l.sink.count()
		l.send(f)
		eventually(t, "the frame arrives", func() bool { return l.sink.count() == before+1 })
	}
	expect(peers)
	say("\x02\x00\x00\x00\x00\x03", header.IPv6ProtocolNumber)
	expect("\x02\x00\x00\x00\x00\x03")
	say("\x02\x00\x00\x00\x00\x04", header.IPv6ProtocolNumber) // one behind a bridge in the guest
	expect("\x02\x00\x00\x00\x00\x03")
	say("\x02\x00\x00\x00\x00\x05", header.ARPProtocolNumber)
	expect("\x02\x00\x00\x00\x00\x05")
	say(header.EthernetBroadcastAddress, header.ARPProtocolNumber)
	expect("\x02\x00\x00\x00\x00\x05")
}

// TestBackPressure checks that senders of data wait for a guest that does not read, that nothing is lost, that
// control frames do not wait, and that the reader goes on meanwhile.
func TestBackPressure(t *testing.T) {
	for _, features := range []uint64{^uint64(0), ^uint64(vhostuser.FeatureEventIdx)} {
		var got atomic.Int64
		l := start(t, func(n *slirptest.NIC) {
			n.Features &= features
			n.Received = func(_, _ []byte) { got.Add(1) }
		})
		l.nic.Pause(true)
		const frames, senders = 2000, 4
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
		eventually(t, "all senders wait", func() bool { return l.Stats().Waits.Load() == senders })
		if got := sent.Load(); got >= senders*frames {
			t.Fatal("the guest took all frames: the test needs more")
		}
		for range 100 {
			if err := l.write(tcpPacket()); err != nil {
				t.Fatalf("WritePackets() = %s", err)
			}
		}
		l.send(frame(ours, header.IPv4ProtocolNumber, []byte("still listening?")))
		eventually(t, "a frame is received", func() bool { return l.sink.count() == 1 })

		l.nic.Pause(false)
		all.Wait()
		eventually(t, "all frames arrive", func() bool { return got.Load() == senders*frames+100 })
		if got := l.Stats().DroppedOut.Load(); got != 0 {
			t.Errorf("DroppedOut = %d, want 0", got)
		}
	}
}

// TestControlIsBounded checks that frames that never wait do not pile up either.
func TestControlIsBounded(t *testing.T) {
	l := start(t, nil)
	l.nic.Pause(true)
	for l.Stats().DroppedOut.Load() == 0 {
		if err := l.write(tcpPacket()); err != nil {
			t.Fatalf("WritePackets() = %s", err)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if got := l.control.len(); got != queueControl {
		t.Errorf("%d frames are queued, want %d", got, queueControl)
	}
}

func TestIsControl(t *testing.T) {
	for _, tt := range []struct {
		proto tcpip.TransportProtocolNumber
		data  int
		want  bool
	}{
		{header.TCPProtocolNumber, 0, true},
		{header.TCPProtocolNumber, 1, false},
		{header.UDPProtocolNumber, 0, false},
		{header.ICMPv4ProtocolNumber, 1000, true},
	} {
		pkt := ipPacket(tt.proto, make([]byte, tt.data))
		if got := isControl(pkt); got != tt.want {
			t.Errorf("isControl(protocol %d with %d bytes) = %v, want %v", tt.proto, tt.data, got, tt.want)
		}
		pkt.DecRef()
	}
	arp := stack.NewPacketBuffer(stack.PacketBufferOptions{})
	defer arp.DecRef()
	arp.NetworkProtocolNumber = header.ARPProtocolNumber
	if !isControl(arp) {
		t.Error("isControl(ARP) = false, want true")
	}
}

// answering answers each packet with data by one without, as netstack does.
type answering struct {
	answer func()
	n      *atomic.Int64
}

func (a answering) DeliverNetworkPacket(_ tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	if pkt.Data().Size() > header.IPv4MinimumSize {
		a.n.Add(1)
		a.answer()
	}
}

func (answering) DeliverLinkPacket(tcpip.NetworkProtocolNumber, *stack.PacketBuffer) {}

// TestBothFull has both ends flood each other and answer what they receive; the guest refuses to receive until its
// answer is taken, and stops now and then. Neither may stop, nothing may be lost.
func TestBothFull(t *testing.T) {
	l := start(t, nil)
	var atHost, atGuest atomic.Int64
	small := frame(ours, header.IPv4ProtocolNumber, make([]byte, header.IPv4MinimumSize))
	l.Attach(answering{func() { l.write(tcpPacket()) }, &atHost})
	l.nic.Attach(answering{func() { l.send(small) }, &atGuest})
	const frames = 20000
	var senders sync.WaitGroup
	senders.Go(func() {
		for range frames {
			l.write(udpPacket(1400, 0))
		}
	})
	senders.Go(func() {
		big := frame(ours, header.IPv4ProtocolNumber, make([]byte, 1400))
		for range frames {
			l.send(big)
		}
	})
	var sending atomic.Bool
	sending.Store(true)
	var pausing sync.WaitGroup
	pausing.Go(func() {
		for on := true; sending.Load(); on = !on {
			l.nic.Pause(on)
			seen := l.Stats().FramesIn.Load()
			eventually(t, "the host goes on", func() bool { return l.Stats().FramesIn.Load() > seen || atHost.Load() == frames })
		}
		l.nic.Pause(false)
	})
	senders.Wait()
	sending.Store(false)
	pausing.Wait()
	eventually(t, "all data arrives", func() bool { return atHost.Load() == frames && atGuest.Load() == frames })
	if in := l.Stats().DroppedIn.Load(); in != 0 {
		t.Errorf("DroppedIn = %d, want 0", in)
	}
}

// TestNoDriver writes to a guest whose driver is not there yet: data waits, all else is lost.
func TestNoDriver(t *testing.T) {
	var log guestLog
	l := startWithoutGuest(t)
	if err := l.write(tcpPacket()); err != nil {
		t.Fatalf("WritePackets() = %s", err)
	}
	var sender sync.WaitGroup
	sender.Go(func() {
		if err := l.write(udpPacket(1000, 0)); err != nil {
			t.Errorf("WritePackets() = %s", err)
		}
	})
	eventually(t, "the sender waits", func() bool { return l.Stats().Waits.Load() == 1 })
	nic, err := slirptest.Connect(l.path, net.HardwareAddr(peers), mtu, func(n *slirptest.NIC) { n.Received = log.add })
	if err != nil {
		t.Fatal(err)
	}
	defer nic.Close()
	sender.Wait()
	eventually(t, "one frame", func() bool { return len(log.all()) == 1 })
	if _, err := os.Stat(l.path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestGuestCloses(t *testing.T) {
	l := start(t, nil)
	l.nic.Close()
	if err := l.end(t); !errors.Is(err, ErrGuestClosed) {
		t.Errorf("Run() = %v, want %v", err, ErrGuestClosed)
	}
	select {
	case <-l.Done():
	default:
		t.Error("Done() is open after the end")
	}
	for _, pkt := range []*stack.PacketBuffer{tcpPacket(), udpPacket(1, 0)} {
		if _, ok := l.write(pkt).(*tcpip.ErrClosedForSend); !ok {
			t.Error("WritePackets() succeeds after the end")
		}
	}
}

// TestGuestClosesUnderLoad ends the link while senders wait for the guest, and while the guest sends.
func TestGuestClosesUnderLoad(t *testing.T) {
	for _, end := range []string{"guest", "host"} {
		l := start(t, nil)
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				for l.write(udpPacket(1400, 7)) == nil {
				}
			})
		}
		all.Go(func() {
			f := frame(ours, header.IPv4ProtocolNumber, make([]byte, 1400))
			for l.nic.Send(make([]byte, virtioHeaderBytes), f) {
			}
		})
		eventually(t, "a sender waits", func() bool { return l.Stats().Waits.Load() > 0 })
		want := ErrGuestClosed
		if end == "guest" {
			l.nic.Close()
		} else {
			l.Close()
			want = nil
		}
		if err := l.end(t); !errors.Is(err, want) {
			t.Errorf("closed by the %s: Run() = %v, want %v", end, err, want)
		}
		l.nic.Close()
		all.Wait()
	}
}

func TestCloseWithoutRun(t *testing.T) {
	path := socketPath(t)
	e, err := New(Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	e.Close()
	if err := e.Run(); err != nil {
		t.Errorf("Run() = %v", err)
	}
	e.Wait()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestCloseBeforeGuest(t *testing.T) {
	l := startWithoutGuest(t)
	l.Close()
	if err := l.end(t); err != nil {
		t.Errorf("Run() = %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, tt := range []struct {
		o    Options
		want string
	}{
		{Options{Path: "/" + strings.Repeat("x", vhostuser.MaxPath)}, "bytes long"},
		{Options{Path: "/nonexistent/nic"}, "no such file"},
		{Options{Path: socketPath(t), MTU: 1 << 17}, "MTU"},
	} {
		if _, err := New(tt.o); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("New(%+v) = %v, want …%s…", tt.o, err, tt.want)
		}
	}
	e, err := New(Options{Path: socketPath(t)[:5] + strings.Repeat("x", vhostuser.MaxPath-5)})
	if err != nil {
		t.Fatalf("New() with the longest path = %v", err)
	}
	e.Close()
}

// TestTruncated has a guest that truncates the file behind its memory, as the reader or a sender finds out.
func TestTruncated(t *testing.T) {
	for _, finds := range []string{"reader", "sender of data", "sender of control"} {
		l := start(t, nil)
		l.nic.Pause(true)
		if err := l.nic.Shrink(); err != nil {
			t.Fatal(err)
		}
		switch finds {
		case "reader":
			l.nic.Kick()
		case "sender of data":
			if _, ok := l.write(udpPacket(1, 0)).(*tcpip.ErrClosedForSend); !ok {
				t.Error("WritePackets() of data succeeds without memory")
			}
		case "sender of control":
			l.write(tcpPacket())
		}
		if err := l.end(t); !errors.Is(err, vhostuser.ErrMemory) {
			t.Errorf("found by %s: Run() = %v, want %v", finds, err, vhostuser.ErrMemory)
		}
		l.nic.Close()
	}
}

// TestCorrupt has a guest whose rings lie.
func TestCorrupt(t *testing.T) {
	const toGuest, fromGuest = 0, 16 << 10 // offsets of the rings
	for _, tt := range []struct {
		name string
		ring int
		addr uint64
	}{
		{"receive", toGuest, 0}, {"transmit", fromGuest, 1 << 63},
	} {
		l := start(t, nil)
		l.nic.Pause(true)
		mem := l.nic.Memory()[tt.ring:]
		for i := range 256 {
			binary.LittleEndian.PutUint64(mem[16*i:], tt.addr)
			binary.LittleEndian.PutUint32(mem[16*i+8:], 100)
		}
		mem[16*256+2] = 200 // the index of what is available
		l.nic.Kick()
		l.write(udpPacket(1, 0))
		if err := l.end(t); !errors.Is(err, vhostuser.ErrRing) {
			t.Errorf("%s: Run() = %v, want %v", tt.name, err, vhostuser.ErrRing)
		}
		l.nic.Close()
	}
}

// TestTooLargeForGuest writes a frame that no buffer of the guest's holds, and the driver does not merge them.
func TestTooLargeForGuest(t *testing.T) {
	var log guestLog
	l := start(t, func(n *slirptest.NIC) {
		n.Features &^= featureMergeRX
		n.Received = log.add
	})
	for _, size := range []int{5000, 100} {
		if err := l.write(udpPacket(size, 0)); err != nil {
			t.Fatalf("WritePackets() = %s", err)
		}
	}
	eventually(t, "the small frame", func() bool { return len(log.all()) == 1 })
	if got := l.Stats().DroppedOut.Load(); got != 1 {
		t.Errorf("DroppedOut = %d, want 1", got)
	}
}

func TestHeaderFor(t *testing.T) {
	const all = featureGuestCsum | featureGuestTSO4 | featureGuestTSO6
	gso := func(typ stack.GSOType, l3 uint16) stack.GSO {
		return stack.GSO{Type: typ, NeedsCsum: true, CsumOffset: header.TCPChecksumOffset, MSS: 1000, L3HdrLen: l3, MaxSize: 65535}
	}
	for _, tt := range []struct {
		name     string
		gso      stack.GSO
		size     int
		features uint64
		want     virtioHeader
	}{
		{"plain", stack.GSO{}, 100, all, virtioHeader{flags: flagDataValid}},
		{"plain for a guest that checks", stack.GSO{}, 100, 0, virtioHeader{}},
		{"cut by netstack", stack.GSO{Type: stack.GSOGvisor}, 100, 0, virtioHeader{}},
		{"one segment", gso(stack.GSOTCPv4, 20), 1000, all, virtioHeader{flags: flagNeedsCsum, csumStart: 34, csumOffset: 16}},
		{"two", gso(stack.GSOTCPv4, 20), 1001, all, virtioHeader{flagNeedsCsum, gsoTCPv4, 34, 1000, 34, 16, 0}},
		{"two of IPv6", gso(stack.GSOTCPv6, 40), 1001, all, virtioHeader{flagNeedsCsum, gsoTCPv6, 34, 1000, 54, 16, 0}},
	} {
		pkt := udpPacket(tt.size, 0)
		pkt.LinkHeader().Push(header.EthernetMinimumSize)
		pkt.GSOOptions = tt.gso
		if got := headerFor(pkt, tt.features); got != tt.want {
			t.Errorf("%s: headerFor() = %+v, want %+v", tt.name, got, tt.want)
		}
		pkt.DecRef()
	}
}

func TestRing(t *testing.T) {
	var r ring
	var want []*stack.PacketBuffer
	for i := range 300 {
		for range i % 7 {
			pkt := tcpPacket()
			r.push(pkt)
			want = append(want, pkt)
		}
		for range i % 6 {
			if r.len() == 0 {
				break
			}
			if r.front() != want[0] || r.pop() != want[0] {
				t.Fatal("not the first")
			}
			want[0].DecRef()
			want = slices.Delete(want, 0, 1)
		}
		if r.len() != len(want) {
			t.Fatalf("len() = %d, want %d", r.len(), len(want))
		}
	}
	for _, pkt := range want {
		pkt.DecRef()
	}
}
