package link

import (
	"runtime"
	"sync/atomic"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"docker-usermode-linux/internal/slirp/slirptest"
)

// largePacket is a TCP segment of an IP packet of that size, as netstack's sender makes it.
func largePacket(size int) *stack.PacketBuffer {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: header.EthernetMinimumSize + header.IPv4MinimumSize + header.TCPMinimumSize,
		Payload:            buffer.MakeWithData(make([]byte, size-header.IPv4MinimumSize-header.TCPMinimumSize)),
	})
	header.TCP(pkt.TransportHeader().Push(header.TCPMinimumSize)).Encode(&header.TCPFields{DataOffset: header.TCPMinimumSize})
	header.IPv4(pkt.NetworkHeader().Push(header.IPv4MinimumSize)).Encode(&header.IPv4Fields{
		TotalLength: uint16(size), Protocol: uint8(header.TCPProtocolNumber),
	})
	pkt.NetworkProtocolNumber = header.IPv4ProtocolNumber
	pkt.GSOOptions = stack.GSO{
		Type: stack.GSOTCPv4, NeedsCsum: true, CsumOffset: header.TCPChecksumOffset,
		MSS: mtu - header.IPv4MinimumSize - header.TCPMinimumSize, L3HdrLen: header.IPv4MinimumSize, MaxSize: 1<<16 - 1,
	}
	return pkt
}

const largest = 1<<16 - 1

// TestSendLargest sends the largest segment that there is, in one frame.
func TestSendLargest(t *testing.T) {
	var log guestLog
	l := start(t, func(n *slirptest.NIC) { n.Received = log.add })
	if err := l.write(largePacket(largest)); err != nil {
		t.Fatalf("WritePackets() = %s", err)
	}
	eventually(t, "a frame", func() bool { return len(log.all()) == 1 })
	want := virtioHeader{flagNeedsCsum, gsoTCPv4, 54, 1460, 34, 16, 17}
	if got := log.all()[0]; got.hdr != want || len(got.frame) != header.EthernetMinimumSize+largest {
		t.Errorf("%d bytes with %+v, want %d with %+v", len(got.frame), got.hdr, header.EthernetMinimumSize+largest, want)
	}
}

// counting counts packets.
type counting struct{ atomic.Int64 }

func (c *counting) DeliverNetworkPacket(tcpip.NetworkProtocolNumber, *stack.PacketBuffer) { c.Add(1) }

func (*counting) DeliverLinkPacket(tcpip.NetworkProtocolNumber, *stack.PacketBuffer) {}

// writer makes a function that writes the same packet again and again.
func writer(t testing.TB, l *testLink, pkt *stack.PacketBuffer) func() {
	l.AddHeader(pkt)
	var list stack.PacketBufferList
	list.PushBack(pkt)
	t.Cleanup(list.Reset)
	return func() {
		if _, err := l.WritePackets(list); err != nil {
			t.Fatalf("WritePackets() = %s", err)
		}
	}
}

// reader makes a function that has the guest send a frame.
func reader(l *testLink, size int) func() {
	hdr := make([]byte, virtioHeaderBytes)
	if size > mtu {
		hdr[0], hdr[1] = flagNeedsCsum, gsoTCPv4
	}
	f := frame(ours, header.IPv4ProtocolNumber, make([]byte, size))
	return func() { l.nic.Send(hdr, f) }
}

// TestAllocations checks that packets make no garbage in either direction. netstack's packets and views are pooled.
func TestAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes pools lose things")
	}
	l := start(t, nil)
	var received counting
	l.Attach(&received)
	for _, tt := range []struct {
		name string
		f    func()
	}{
		{"write of 64 KiB", writer(t, l, largePacket(largest))},
		{"write of an MTU", writer(t, l, udpPacket(mtu-header.IPv4MinimumSize, 0))},
		{"write of control", writer(t, l, tcpPacket())},
		{"read of 60 KiB", reader(l, 60<<10)},
		{"read of an MTU", reader(l, mtu)},
		{"read of nothing", reader(l, 0)},
	} {
		// One at a time: frames in flight are no garbage.
		got := testing.AllocsPerRun(100, func() {
			frames := l.Stats().FramesOut.Load() + uint64(received.Load())
			tt.f()
			for l.Stats().FramesOut.Load()+uint64(received.Load()) == frames {
				runtime.Gosched()
			}
		})
		if got != 0 {
			t.Errorf("%s: %v allocations, want 0", tt.name, got)
		}
	}
}

func benchmarkWrite(b *testing.B, pkt *stack.PacketBuffer) {
	l := start(b, nil)
	b.SetBytes(int64(pkt.Size()))
	b.ReportAllocs()
	write := writer(b, l, pkt)
	for b.Loop() {
		write()
	}
}

func BenchmarkWrite64K(b *testing.B) { benchmarkWrite(b, largePacket(largest)) }

func BenchmarkWriteMTU(b *testing.B) { benchmarkWrite(b, udpPacket(mtu-header.IPv4MinimumSize, 0)) }

func benchmarkRead(b *testing.B, size int) {
	l := start(b, nil)
	var received counting
	l.Attach(&received)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	read := reader(l, size)
	n := int64(0)
	for b.Loop() {
		read()
		n++
	}
	eventually(b, "all frames", func() bool { return received.Load() == n })
}

// A sender of Linux's makes segments of up to 64 KiB with all headers.
func BenchmarkRead64K(b *testing.B) { benchmarkRead(b, 1<<16-100) }

func BenchmarkReadSmall(b *testing.B) { benchmarkRead(b, 100) }
