package slirp

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"docker-usermode-linux/internal/slirp/slirptest"
)

// filler is a connection of either side.
type filler interface {
	Write([]byte) (int, error)
	SetWriteDeadline(time.Time) error
}

// fill writes until nothing goes any more, and returns how much that was.
func fill(t testing.TB, c filler) (total int) {
	t.Helper()
	chunk := make([]byte, 64<<10)
	for total < 256<<20 {
		c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		n, err := c.Write(chunk)
		total += n
		if err != nil {
			c.SetWriteDeadline(time.Time{})
			return total
		}
	}
	t.Fatal("256 MiB were written to a reader that does not read")
	return 0
}

// TestTCPResetWhenFull resets connections while the other side, who has to learn of it, takes nothing.
func TestTCPResetWhenFull(t *testing.T) {
	t.Run("by the guest", func(t *testing.T) {
		pairs(t, func(t *testing.T, guest *slirptest.Conn, host *net.TCPConn) {
			fill(t, guest)
			guest.Reset()
			// What has arrived is read first; the reset is there without that.
			eventually(t, "host learns of the reset", func() bool { return socketError(t, host) == syscall.ECONNRESET })
		})
	})
	t.Run("by the host", func(t *testing.T) {
		pairs(t, func(t *testing.T, guest *slirptest.Conn, host *net.TCPConn) {
			fill(t, host)
			host.SetLinger(0)
			host.Close()
			eventually(t, "guest learns of the reset", func() bool {
				return guest.State() == tcp.StateError
			})
		})
	})
}

// socketError takes the pending error of a connection.
func socketError(t testing.TB, c *net.TCPConn) (errno syscall.Errno) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { errno = rawError(int(fd)) }); err != nil {
		t.Fatal(err)
	}
	return errno
}

// TestTCPDataBeforeReset checks that what a server says before it resets the connection, as one does that closes it
// without having read all, reaches the guest.
func TestTCPDataBeforeReset(t *testing.T) {
	pairs(t, func(t *testing.T, guest *slirptest.Conn, host *net.TCPConn) {
		if _, err := guest.Write(make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond) // so that it is there, mostly
		host.Write([]byte("answer"))
		host.Close()
		expectRead(t, guest, "answer")
	})
}

// TestTCPUrgent checks that urgent data is carried in its place, and that nothing spins on its mark.
func TestTCPUrgent(t *testing.T) {
	pairs(t, func(t *testing.T, guest *slirptest.Conn, host *net.TCPConn) {
		raw, err := host.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if err := raw.Control(func(fd uintptr) {
			err = syscall.Sendto(int(fd), []byte("!"), syscall.MSG_OOB, nil)
		}); err != nil {
			t.Fatal(err)
		}
		if err != nil {
			t.Fatalf("send urgent data: %v", err)
		}
		host.Write([]byte("more"))
		expectRead(t, guest, "!more")
	})
}

// TestTCPUnread checks that a connection that both sides have ended, but whose data the guest does not take, counts as
// a flow, and is given up after a while.
func TestTCPUnread(t *testing.T) {
	b := newBridge(t, Options{Policy: testPolicy}, func(n *Network) { n.limits.linger = 500 * time.Millisecond })
	guest, host := guestToHost(t, b)
	// Until the guest's window is closed, and netstack holds the rest.
	chunk := make([]byte, 64<<10)
	for sent, total := uint64(len(chunk)), 0; sent >= uint64(len(chunk)); {
		before := b.link.Stats().BytesOut.Load()
		host.Write(chunk)
		total += len(chunk)
		eventually(t, "netstack has it all", func() bool { return b.Snapshot().TCPToGuest == uint64(total) })
		time.Sleep(100 * time.Millisecond)
		sent = b.link.Stats().BytesOut.Load() - before
	}
	guest.CloseWrite()
	host.CloseWrite()
	expectEOF(t, host)
	host.Close()
	if got := b.Snapshot().LiveTCP; got != 1 {
		t.Errorf("%d flows with data that the guest has not taken, want 1", got)
	}
	eventually(t, "given up", func() bool {
		return b.Snapshot().LiveTCP == 0 && b.stack.Stats().TCP.CurrentConnected.Value() == 0
	})
}

// TestTCPSamePort has a guest come again from the same port at once, after the gateway has ended the connection first.
func TestTCPSamePort(t *testing.T) {
	b := newBridge(t, Options{Policy: testPolicy}, nil)
	l := listenHostAt(t, "127.0.0.1:0")
	for range 20 {
		var guest *slirptest.Conn
		eventually(t, "the guest has its port again", func() (ok bool) {
			var err error
			guest, err = b.guest.DialTCPFrom(hangContext(t), 4321, gateway(l.Addr()))
			return err == nil
		})
		host, err := l.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		host.Close()
		expectEOF(t, guest)
		guest.Close()
	}
	if got := b.guest.Stack.Stats().TCP.Retransmits.Value(); got != 0 {
		t.Errorf("the guest has had to repeat %d segments, want none", got)
	}
}

// TestBufferSize checks what the comment at bufferBudget says.
func TestBufferSize(t *testing.T) {
	if got := bufferSize(0); got != maxBufferBytes {
		t.Errorf("bufferSize(0) = %d, want %d", got, maxBufferBytes)
	}
	total := 0
	for flows := range defaultLimits.flows[TCP] {
		total += bufferSize(flows)
	}
	if total < 1<<30 || total > 9<<27 {
		t.Errorf("the buffers of all connections may have %d MiB, want about 1 GiB", total>>20)
	}
}

// TestGuestPathMTU has the guest complain about the size of segments while it takes nothing, which must not stop the link's
// reader.
func TestGuestPathMTU(t *testing.T) {
	b, _, host := hostToGuest(t)
	server, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	client, err := b.guest.ListenUDP(5000)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	// Datagrams until the guest has no more buffers, and then a segment.
	b.guest.NIC.Pause(true)
	var flood sync.WaitGroup
	var enough atomic.Bool
	flood.Go(func() {
		from, to := netip.AddrPortFrom(GatewayAddr, 9), netip.AddrPortFrom(GuestAddr, 9)
		for !enough.Load() {
			b.sendUDP(from, to, make([]byte, 1400))
		}
	})
	defer flood.Wait()
	defer b.guest.NIC.Pause(false)
	defer enough.Store(true)
	eventually(t, "a datagram waits for the guest", func() bool { return b.link.Stats().Waits.Load() == 1 })
	host.Write([]byte("data"))
	eventually(t, "a segment waits for the guest", func() bool { return b.link.Stats().Waits.Load() == 2 })

	b.flows.mu.RLock()
	var key flowKey
	for key = range b.flows.flows {
	}
	b.flows.mu.RUnlock()
	q := quoteTCP(key.ini, key.tgt, 0)
	packet := make([]byte, header.IPv4MinimumSize+icmpBytes, 100)
	packet = append(packet, q.b[:q.n]...)
	ip := header.IPv4(packet)
	ip.Encode(&header.IPv4Fields{
		TotalLength: uint16(len(packet)), TTL: defaultHops, Protocol: uint8(header.ICMPv4ProtocolNumber),
		SrcAddr: stackAddr(GuestAddr), DstAddr: stackAddr(key.ini.Addr()),
	})
	ip.SetChecksum(^ip.CalculateChecksum())
	msg := header.ICMPv4(packet[header.IPv4MinimumSize:])
	msg.SetType(header.ICMPv4DstUnreachable)
	msg.SetCode(header.ICMPv4FragmentationNeeded)
	msg.SetMTU(1000)
	msg.SetChecksum(header.ICMPv4Checksum(msg, 0))
	for range 3 {
		b.guest.SendIP(packet)
	}
	if _, err := client.WriteTo([]byte("still there?"), net.UDPAddrFromAddrPort(gateway(server.LocalAddr()))); err != nil {
		t.Fatal(err)
	}
	got := within(t, "read", func() string {
		buf := make([]byte, 100)
		n, _, _ := server.ReadFrom(buf)
		return string(buf[:n])
	})
	if got != "still there?" {
		t.Errorf("ReadFrom() = %q", got)
	}
}
