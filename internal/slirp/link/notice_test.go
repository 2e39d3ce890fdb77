package link

import (
	"sync"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"docker-usermode-linux/internal/slirp/slirptest"
)

// TestLateNotice writes what the guest is not told of at once: it gets it all the same.
func TestLateNotice(t *testing.T) {
	var log guestLog
	l := start(t, func(n *slirptest.NIC) { n.Received = log.add })
	for i := range 100 {
		pkt := segment(header.TCPFlagAck, 0)
		if !isAcknowledgement(pkt) {
			t.Fatal("isAcknowledgement(ACK) = false")
		}
		if err := l.write(pkt); err != nil {
			t.Fatalf("WritePackets() = %s", err)
		}
		eventually(t, "the segment arrives", func() bool { return len(log.all()) == i+1 })
	}
}

// segment is one of netstack's TCP segments.
func segment(flags header.TCPFlags, size int) *stack.PacketBuffer {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: header.EthernetMinimumSize + header.IPv4MinimumSize + header.TCPMinimumSize,
		Payload:            buffer.MakeWithData(make([]byte, size)),
	})
	header.TCP(pkt.TransportHeader().Push(header.TCPMinimumSize)).Encode(&header.TCPFields{
		DataOffset: header.TCPMinimumSize, Flags: flags,
	})
	pkt.TransportProtocolNumber = header.TCPProtocolNumber
	header.IPv4(pkt.NetworkHeader().Push(header.IPv4MinimumSize)).Encode(&header.IPv4Fields{
		TotalLength: uint16(pkt.Size()), Protocol: uint8(header.TCPProtocolNumber),
	})
	pkt.NetworkProtocolNumber = header.IPv4ProtocolNumber
	return pkt
}

// TestIsAcknowledgement checks what may wait: nothing that a guest's program waits for.
func TestIsAcknowledgement(t *testing.T) {
	for _, tt := range []struct {
		flags header.TCPFlags
		size  int
		want  bool
	}{
		{header.TCPFlagAck, 0, true},
		{header.TCPFlagAck, 1, false},
		{header.TCPFlagAck | header.TCPFlagSyn, 0, false},
		{header.TCPFlagAck | header.TCPFlagFin, 0, false},
		{header.TCPFlagRst, 0, false},
	} {
		pkt := segment(tt.flags, tt.size)
		if got := isAcknowledgement(pkt); got != tt.want {
			t.Errorf("isAcknowledgement(%v with %d bytes) = %v, want %v", tt.flags, tt.size, got, tt.want)
		}
		pkt.DecRef()
	}
}

// TestLateTaken has the guest send more segments than its queue holds, without a word in the other direction.
func TestLateTaken(t *testing.T) {
	l := start(t, nil)
	small := frame(ours, header.IPv4ProtocolNumber, tcpHeaders())
	const frames = 2000
	for range frames {
		l.send(small)
	}
	eventually(t, "all have come", func() bool { return l.Stats().FramesIn.Load() == frames })
}

// tcpHeaders is as much of a TCP segment as the link looks at.
func tcpHeaders() []byte {
	packet := make([]byte, header.IPv4MinimumSize+header.TCPMinimumSize)
	header.IPv4(packet).Encode(&header.IPv4Fields{
		TotalLength: uint16(len(packet)), TTL: 64, Protocol: uint8(header.TCPProtocolNumber),
	})
	return packet
}

// TestDeafGuest checks that a guest that takes nothing, and goes on sending what no window bounds, is read no more.
func TestDeafGuest(t *testing.T) {
	l := start(t, nil)
	l.nic.Pause(true)
	var sender sync.WaitGroup
	sender.Go(func() {
		for l.write(udpPacket(1400, 0)) == nil {
		}
	})
	eventually(t, "a sender waits", func() bool { return l.waiting.Load() == 1 })
	small := frame(ours, header.IPv4ProtocolNumber, tcpHeaders())
	const extra = 10
	for range maxDeaf + extra {
		l.send(small)
	}
	eventually(t, "the rest is dropped", func() bool { return l.Stats().DroppedIn.Load() == extra })
	l.nic.Pause(false)
	eventually(t, "the guest is heard again", func() bool {
		before := l.Stats().FramesIn.Load()
		l.send(small)
		return l.Stats().FramesIn.Load() > before
	})
	l.Close()
	sender.Wait()
}

func TestIsTCP(t *testing.T) {
	v6 := make([]byte, header.IPv6MinimumSize)
	v6[6] = uint8(header.TCPProtocolNumber)
	udp := tcpHeaders()
	udp[9] = uint8(header.UDPProtocolNumber)
	for _, tt := range []struct {
		proto   tcpip.NetworkProtocolNumber
		payload []byte
		want    bool
	}{
		{header.IPv4ProtocolNumber, tcpHeaders(), true},
		{header.IPv6ProtocolNumber, v6, true},
		{header.IPv4ProtocolNumber, udp, false},
		{header.ARPProtocolNumber, tcpHeaders(), false},
		{header.IPv4ProtocolNumber, nil, false},
		{header.IPv6ProtocolNumber, v6[:6], false},
	} {
		if got := isTCP(frame(ours, tt.proto, tt.payload)); got != tt.want {
			t.Errorf("isTCP(protocol %#x, %x) = %v, want %v", tt.proto, tt.payload, got, tt.want)
		}
	}
}
