package slirp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"docker-usermode-linux/internal/slirp/slirptest"
)

// The link of the product neither loses nor reorders. But a guest may, behind the NIC: a bridge of its own, a queue of
// its, a packet filter. These tests are about what the bridge makes of that.

// smallFrames makes the guest's NIC take and give no segments above the MTU, so that one loss is one segment, as behind
// a bridge in the guest.
func smallFrames(n *slirptest.NIC) {
	const tso = 1<<7 | 1<<8 | 1<<11 | 1<<12 | 1<<13
	n.Features &^= tso
}

var badLinks = []struct {
	name  string
	nic   func(*slirptest.NIC)
	fault slirptest.Fault
	size  int64 // bytes to transfer each way: without RACK, half of the losses cost a timeout of 200 ms
}{
	{"1 % loss", smallFrames, slirptest.Fault{Loss: 0.01}, 3 << 20},
	{"5 % loss", smallFrames, slirptest.Fault{Loss: 0.05}, 256 << 10},
	{"3 % loss of large frames", nil, slirptest.Fault{Loss: 0.03}, 2 << 20},
	{"5 % reordered", smallFrames, slirptest.Fault{Reorder: 0.05, Distance: 2}, 4 << 20},
	{"5 % reordered far", smallFrames, slirptest.Fault{Reorder: 0.05, Distance: 20}, 4 << 20},
	{"20 % of large frames reordered", nil, slirptest.Fault{Reorder: 0.2, Distance: 5}, 8 << 20},
	{"both", smallFrames, slirptest.Fault{Loss: 0.02, Reorder: 0.05, Distance: 5}, 1 << 20},
	{"slow", nil, slirptest.Fault{Rate: 4 << 20}, 4 << 20},
	{"slow and both", smallFrames, slirptest.Fault{Loss: 0.01, Reorder: 0.02, Distance: 5, Rate: 4 << 20}, 2 << 20},
}

// badBridge is a bridge over a bad link, with a TCP port forwarded to the guest's port 22.
func badBridge(t *testing.T, seed uint64, f slirptest.Fault, nic func(*slirptest.NIC)) (b *bridge, forwarded netip.AddrPort) {
	t.Helper()
	o, forwarded := forwardOptions(t, TCP, 22)
	b = newBridgeWithNIC(t, o, func(n *Network) {
		n.limits.silence = 2 * hang // a lost SYN is repeated, not tried another way
	}, nic)
	b.guest.Announce()
	within(t, "the guest's NIC", func() bool { <-b.Up(); return true })
	b.guest.NIC.Impair(slirptest.Both(seed, f))
	return b, forwarded
}

// fromHost makes a connection through a forwarded port.
func fromHost(t *testing.T, to netip.AddrPort, l *slirptest.Listener) (guest *slirptest.Conn, host *net.TCPConn) {
	t.Helper()
	c, err := net.Dial("tcp4", to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return accept(t, l), c.(*net.TCPConn)
}

// TestBadLinkTransfer moves data both ways at once over links that lose, reorder and are slow. The ends of the data come
// through as well.
func TestBadLinkTransfer(t *testing.T) {
	for i, l := range badLinks {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			b, forwarded := badBridge(t, uint64(i), l.fault, l.nic)
			server, err := b.guest.ListenTCP(22)
			if err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			size := l.size
			if testing.Short() {
				size /= 8
			}
			guest, host := guestToHost(t, b)
			within(t, "the transfer", func() bool { transferBoth(t, guest, host, size); return true })
			guest, host = fromHost(t, forwarded, server)
			within(t, "the transfer of a client", func() bool { transferBoth(t, guest, host, size); return true })

			toHost, toGuest := b.guest.NIC.Injected()
			for _, in := range []*slirptest.Injected{toHost, toGuest} {
				if l.fault.Loss > 0 && in.Lost.Load() == 0 || l.fault.Reorder > 0 && in.Reordered.Load() == 0 {
					t.Errorf("%d frames were lost, %d reordered: the test is none", in.Lost.Load(), in.Reordered.Load())
				}
			}
			// What was lost before or behind us is not ours.
			if got := b.Inspect().Drops; got != 0 {
				t.Errorf("%d drops of the bridge, want none", got)
			}
		})
	}
}

// badLink is the one for tests of what does not take long on a good one.
var badLink = slirptest.Fault{Loss: 0.05, Reorder: 0.1, Distance: 3}

// TestBadLinkHalfClose checks that both ends of data come through a link that loses and reorders.
func TestBadLinkHalfClose(t *testing.T) {
	b, forwarded := badBridge(t, 1, badLink, nil)
	server, err := b.guest.ListenTCP(22)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	for range 3 {
		guest, host := guestToHost(t, b)
		halfClose(t, guest, host)
		guest, host = fromHost(t, forwarded, server)
		halfClose(t, host, guest)
	}
	eventually(t, "no flow", func() bool { return b.Snapshot().LiveTCP == 0 })
	if got := b.Snapshot().Resets; got != 0 {
		t.Errorf("Snapshot().Resets = %d, want 0", got)
	}
}

// TestBadLinkReset checks that a reset reaches the other end at last. Nobody repeats one that was lost: who goes on
// sending gets another.
func TestBadLinkReset(t *testing.T) {
	b, forwarded := badBridge(t, 2, badLink, nil)
	server, err := b.guest.ListenTCP(22)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	expectError := func(c io.Writer) {
		t.Helper()
		eventually(t, "the other end hears of the reset", func() bool {
			_, err := c.Write([]byte("anybody?"))
			return err != nil
		})
	}
	for i := range 20 {
		var guest *slirptest.Conn
		var host *net.TCPConn
		if i%2 == 0 {
			guest, host = guestToHost(t, b)
		} else {
			guest, host = fromHost(t, forwarded, server)
		}
		if i%4 < 2 {
			guest.Reset()
			expectError(host)
		} else {
			host.SetLinger(0)
			host.Close()
			expectError(guest)
		}
		guest.Close()
		host.Close()
	}
	eventually(t, "no flow", func() bool { return b.Snapshot().LiveTCP == 0 })
}

// first loses the first frame with a TCP segment that has these flags.
func first(flags header.TCPFlags) func([]byte) bool {
	var once sync.Once
	return func(frame []byte) (found bool) {
		packet := frame[header.EthernetMinimumSize:]
		segment, proto, ok := cutIP(packet)
		if ok && proto == header.TCPProtocolNumber && header.TCP(segment).Flags()&flags == flags {
			once.Do(func() { found = true })
		}
		return found
	}
}

// TestLostSegment loses one segment that matters, in each direction.
func TestLostSegment(t *testing.T) {
	for _, c := range []struct {
		name  string
		flags header.TCPFlags
	}{
		{"SYN or SYN/ACK", header.TCPFlagSyn},
		{"FIN", header.TCPFlagFin},
		{"data", header.TCPFlagPsh},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			fault := func() slirptest.Fault { return slirptest.Fault{Loss: 1, Match: first(c.flags)} }
			for _, f := range []slirptest.Faults{{ToHost: fault()}, {ToGuest: fault()}} {
				b, forwarded := badBridge(t, 0, slirptest.Fault{}, nil)
				b.guest.NIC.Impair(f)
				server, err := b.guest.ListenTCP(22)
				if err != nil {
					t.Fatal(err)
				}
				defer server.Close()
				if f.ToHost.Loss > 0 {
					guest, host := guestToHost(t, b)
					halfClose(t, guest, host)
				} else {
					guest, host := fromHost(t, forwarded, server)
					halfClose(t, host, guest)
				}
				toHost, toGuest := b.guest.NIC.Injected()
				if got := toHost.Lost.Load() + toGuest.Lost.Load(); got != 1 {
					t.Errorf("%d segments were lost, want 1", got)
				}
			}
		})
	}
}

// TestLostReset checks that the flow ends although the guest's only reset is lost: what is sent to it is answered with
// another one.
func TestLostReset(t *testing.T) {
	b, _ := badBridge(t, 0, slirptest.Fault{}, nil)
	b.guest.NIC.Impair(slirptest.Faults{ToHost: slirptest.Fault{Loss: 1, Match: first(header.TCPFlagRst)}})
	guest, host := guestToHost(t, b)
	guest.Reset()
	toHost, _ := b.guest.NIC.Injected()
	eventually(t, "the reset is lost", func() bool { return toHost.Lost.Load() == 1 })
	host.Write([]byte("anybody?"))
	err := within(t, "Read", func() error { _, err := host.Read(make([]byte, 1)); return err })
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("Read() = %v, want ECONNRESET", err)
	}
	eventually(t, "no flow", func() bool { return b.Snapshot().LiveTCP == 0 })
}

// TestBadLinkUDP checks that of UDP no more is lost than the link loses, in both directions, and nothing comes twice.
func TestBadLinkUDP(t *testing.T) {
	b := newBridge(t, Options{Policy: testPolicy}, nil)
	// Half of what the kernel's default buffers hold, of this size, when their readers are late (RcvbufErrors).
	const datagrams, window = 4000, 16
	server, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	var atServer, atGuest received
	var echo sync.WaitGroup
	echo.Go(func() {
		buf := make([]byte, 2000)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			atServer.add(binary.BigEndian.Uint32(buf[:n]))
			server.WriteTo(buf[:n], from)
		}
	})
	b.guest.Watch(func(packet []byte) {
		if udp, proto, ok := cutIP(packet); ok && proto == header.UDPProtocolNumber {
			atGuest.add(binary.BigEndian.Uint32(udp[header.UDPMinimumSize:]))
		}
	})
	// The guest answers what it gets with "port unreachable", which must not count as a datagram that was lost.
	b.guest.NIC.Impair(slirptest.Both(3, slirptest.Fault{Loss: 0.05, Reorder: 0.1, Distance: 5, Match: isUDP}))
	toHost, toGuest := b.guest.NIC.Injected()
	from, to := netip.AddrPortFrom(GuestAddr, 4000), gateway(server.LocalAddr())
	// What is still on the way is bounded, so that no socket's buffer overflows.
	arrived := func(sent int) bool {
		s := atServer.count() + int(toHost.Lost.Load())
		g := atGuest.count() + int(toGuest.Lost.Load())
		return s >= sent && g >= atServer.count()
	}
	payload := make([]byte, 1000)
	for i := range datagrams {
		binary.BigEndian.PutUint32(payload, uint32(i))
		b.guest.SendIP(udpPacket(from, to, 64, false, string(payload)))
		if i >= window {
			eventually(t, "the datagrams arrive", func() bool { return arrived(i - window) })
		}
	}
	eventually(t, "the last ones arrive", func() bool { return arrived(datagrams) })
	for _, c := range []struct {
		name string
		got  *received
		in   *slirptest.Injected
	}{{"to the host", &atServer, toHost}, {"to the guest", &atGuest, toGuest}} {
		if c.got.again > 0 || c.in.Lost.Load() == 0 || c.in.Reordered.Load() == 0 {
			t.Errorf("%s: %d came twice, %d were lost, %d reordered", c.name, c.got.again, c.in.Lost.Load(), c.in.Reordered.Load())
		}
	}
	if got := b.Inspect().Drops; got != 0 {
		t.Errorf("%d drops of the bridge, want none", got)
	}
	server.Close()
	echo.Wait()
}

func isUDP(frame []byte) bool {
	_, proto, ok := cutIP(frame[header.EthernetMinimumSize:])
	return ok && proto == header.UDPProtocolNumber
}

// received is a set of numbers.
type received struct {
	mu    sync.Mutex
	seen  map[uint32]bool
	again int
}

func (r *received) add(i uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen == nil {
		r.seen = make(map[uint32]bool)
	}
	if r.seen[i] {
		r.again++
	}
	r.seen[i] = true
}

func (r *received) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.seen)
}

// TestBadLinkConnects checks that connections are made over a link that loses frames.
func TestBadLinkConnects(t *testing.T) {
	b, forwarded := badBridge(t, 4, slirptest.Fault{Loss: 0.03}, nil)
	l := listenHost(t)
	server, err := b.guest.ListenTCP(22)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	ctx, cancel := context.WithTimeout(context.Background(), hang)
	defer cancel()
	var accepting, all sync.WaitGroup
	accepting.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepting.Go(func() { defer c.Close(); io.Copy(c, c) })
		}
	})
	accepting.Go(func() {
		for {
			c, err := server.Accept()
			if err != nil {
				return
			}
			accepting.Go(func() { defer c.Close(); io.Copy(c, c) })
		}
	})
	exchange := func(c duplex, err error) error {
		if err != nil {
			return err
		}
		defer c.Close()
		fmt.Fprint(c, "hello")
		c.CloseWrite()
		if got, err := io.ReadAll(c); err != nil || string(got) != "hello" {
			return fmt.Errorf("read %q, %w", got, err)
		}
		return nil
	}
	for range 20 {
		all.Go(func() {
			if err := exchange(b.guest.DialTCP(ctx, gateway(l.Addr()))); err != nil {
				t.Errorf("guest connects: %v", err)
			}
		})
		all.Go(func() {
			d := net.Dialer{Timeout: hang}
			c, err := d.Dial("tcp4", forwarded.String())
			if err == nil {
				err = exchange(c.(*net.TCPConn), nil)
			}
			if err != nil {
				t.Errorf("host connects: %v", err)
			}
		})
	}
	within(t, "the exchanges", func() bool { all.Wait(); return true })
	l.Close()
	server.Close()
	accepting.Wait()
}
