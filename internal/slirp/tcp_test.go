package slirp

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"docker-usermode-linux/internal/slirp/slirptest"
)

type duplex interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// pairs runs a test on a connection in each direction of connecting.
func pairs(t *testing.T, test func(t *testing.T, guest *slirptest.Conn, host *net.TCPConn)) {
	for _, at := range loopbacks(t) {
		t.Run("guest connects to "+at, func(t *testing.T) {
			b := newBridge(t, Options{Policy: testPolicy}, nil)
			guest, host := guestToHostAt(t, b, at)
			test(t, guest, host)
		})
	}
	t.Run("host connects", func(t *testing.T) {
		_, guest, host := hostToGuest(t)
		test(t, guest, host)
	})
}

func TestTCPData(t *testing.T) {
	pairs(t, func(t *testing.T, guest *slirptest.Conn, host *net.TCPConn) {
		fmt.Fprint(guest, "from the guest")
		expectRead(t, host, "from the guest")
		fmt.Fprint(host, "from the host")
		expectRead(t, guest, "from the host")
	})
}

func testTCPHalfClose(t *testing.T) {
	pairs(t, func(t *testing.T, guest *slirptest.Conn, host *net.TCPConn) {
		halfClose(t, guest, host)
	})
	pairs(t, func(t *testing.T, guest *slirptest.Conn, host *net.TCPConn) {
		halfClose(t, host, guest)
	})
}

// halfClose checks that the last side can go on sending when the first has said all.
func halfClose(t *testing.T, first, last duplex) {
	fmt.Fprint(first, "question")
	first.CloseWrite()
	expectRead(t, last, "question")
	expectEOF(t, last)
	for range 10 {
		fmt.Fprint(last, "answer")
		expectRead(t, first, "answer")
	}
	last.CloseWrite()
	expectEOF(t, first)
}

func TestTCPReset(t *testing.T) {
	t.Run("by the guest", func(t *testing.T) {
		pairs(t, func(t *testing.T, guest *slirptest.Conn, host *net.TCPConn) {
			guest.Reset()
			err := within(t, "Read", func() error { _, err := host.Read(make([]byte, 1)); return err })
			if !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("host.Read() = %v, want ECONNRESET", err)
			}
		})
	})
	t.Run("by the host", func(t *testing.T) {
		pairs(t, func(t *testing.T, guest *slirptest.Conn, host *net.TCPConn) {
			host.SetLinger(0)
			host.Close()
			err := within(t, "Read", func() error { _, err := guest.Read(make([]byte, 1)); return err })
			if err == nil || !strings.Contains(err.Error(), "reset by peer") {
				t.Errorf("guest.Read() = %v, want a reset", err)
			}
		})
	})
}

// TestTCPFlowsEnd checks that closed connections leave nothing behind.
func TestTCPFlowsEnd(t *testing.T) {
	b := newBridge(t, Options{Policy: testPolicy}, nil)
	guest, host := guestToHost(t, b)
	eventually(t, "one flow", func() bool { return b.Snapshot().LiveTCP == 1 })
	guest.Close()
	expectEOF(t, host)
	host.Close()
	eventually(t, "no flow", func() bool { return b.Snapshot().LiveTCP == 0 })
	if got := b.Snapshot(); got.Resets != 0 || got.TCPFlows != 1 {
		t.Errorf("Snapshot() = %+v, want one flow and no reset", got)
	}
}

func TestTCPTransfer(t *testing.T) {
	size := int64(64 << 20)
	if testing.Short() {
		size = 4 << 20
	}
	pairs(t, func(t *testing.T, guest *slirptest.Conn, host *net.TCPConn) { transferBoth(t, guest, host, size) })
}

// transferBoth sends size bytes each way at once, followed by the end of the data, and compares what arrives.
func transferBoth(t *testing.T, guest *slirptest.Conn, host *net.TCPConn, size int64) {
	t.Helper()
	transfer := func(dst, src duplex) error {
		sent, got := sha256.New(), sha256.New()
		var sender sync.WaitGroup
		var sendErr error
		sender.Go(func() {
			_, sendErr = io.Copy(io.MultiWriter(src, sent), io.LimitReader(rand.Reader, size))
			sendErr = errors.Join(sendErr, src.CloseWrite())
		})
		n, err := io.Copy(got, dst)
		sender.Wait()
		if err := errors.Join(err, sendErr); err != nil {
			return err
		}
		if n != size || string(sent.Sum(nil)) != string(got.Sum(nil)) {
			return fmt.Errorf("%d of %d bytes arrived, or their hash differs", n, size)
		}
		return nil
	}
	var other sync.WaitGroup
	other.Go(func() {
		if err := transfer(host, guest); err != nil {
			t.Errorf("guest to host: %v", err)
		}
	})
	if err := transfer(guest, host); err != nil {
		t.Errorf("host to guest: %v", err)
	}
	other.Wait()
}

// TestTCPBackPressure checks that a reader that does not read stops the writer, and that nothing is lost.
func TestTCPBackPressure(t *testing.T) {
	b, guest, host := hostToGuest(t)
	for _, c := range []struct {
		name     string
		from, to duplex
	}{{"host to guest", host, guest}, {"guest to host", guest, host}} {
		t.Run(c.name, func(t *testing.T) {
			total := fill(t, c.from.(filler)) // everything between the two
			n := within(t, "read", func() int64 {
				n, _ := io.CopyN(io.Discard, c.to, int64(total))
				return n
			})
			if n != int64(total) {
				t.Errorf("read %d bytes of %d", n, total)
			}
		})
	}
	if s := b.Snapshot(); s.FramesDroppedIn != 0 || s.FramesDroppedOut != 0 {
		t.Errorf("dropped frames: %d in, %d out, want none", s.FramesDroppedIn, s.FramesDroppedOut)
	}
}

func TestTCPRefusedByHost(t *testing.T) {
	b := newBridge(t, Options{Policy: testPolicy}, nil)
	for _, at := range loopbacks(t) {
		l := listenHostAt(t, at)
		l.Close()
		if _, err := b.guest.DialTCP(hangContext(t), gateway(l.Addr())); !errors.Is(err, slirptest.ErrRefused) {
			t.Errorf("DialTCP(%s) = %v, want %v", gateway(l.Addr()), err, slirptest.ErrRefused)
		}
	}
	eventually(t, "no attempt is left", func() bool {
		b.syns.mu.Lock()
		defer b.syns.mu.Unlock()
		return len(b.syns.seq) == 0
	})
}

func TestTCPRefusedByGuest(t *testing.T) {
	o, addr := forwardOptions(t, TCP, 22)
	newBridge(t, o, nil)
	expectReset(t, addr)
}

// TestTCPClosedByPolicy checks that a server on the host's loopback is out of reach by default.
func TestTCPClosedByPolicy(t *testing.T) {
	b := newBridge(t, Options{}, nil)
	l := listenHost(t)
	for _, to := range []netip.AddrPort{
		netip.AddrPortFrom(GatewayAddr, port(l.Addr())),
		netip.AddrPortFrom(DNSAddr, port(l.Addr())),
		netip.AddrPortFrom(netip.MustParseAddr("169.254.169.254"), 80),
		netip.AddrPortFrom(netip.MustParseAddr("10.0.2.77"), 80),
		netip.AddrPortFrom(GatewayAddr6, port(l.Addr())),
		netip.AddrPortFrom(netip.MustParseAddr("fd00:ec2::254"), 80),
		netip.AddrPortFrom(netip.MustParseAddr("fd00:10:0:2::77"), 80),
	} {
		// The guest's netstack does not let 127.0.0.1 and 0.0.0.0 out; TestPolicy covers them.
		if _, err := b.guest.DialTCP(hangContext(t), to); err == nil {
			t.Errorf("DialTCP(%s) connects, want it refused", to)
		}
	}
	l.SetDeadline(time.Now().Add(50 * time.Millisecond))
	if c, err := l.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Accept() = %v, %v: the guest reached the host's loopback", c, err)
	}
	if b.Snapshot().PolicyClosed == 0 {
		t.Error("Snapshot().PolicyClosed = 0, want the attempts")
	}
}

// TestTCPUnreachable checks that an ICMP error of ours ends the guest's connect with its error, of both families.
func TestTCPUnreachable(t *testing.T) {
	for _, c := range []struct {
		errno syscall.Errno
		want  reason
	}{
		{syscall.EHOSTUNREACH, noHost},
		{syscall.ENETUNREACH, noRoute},
		{syscall.EADDRNOTAVAIL, noRoute}, // no address of the family
		{syscall.EAFNOSUPPORT, noRoute},  // no family
		{syscall.EPERM, prohibited},
	} {
		err := &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", c.errno)}
		if got, refused := unreachableReason(err); refused || got != c.want {
			t.Errorf("unreachableReason(%v) = %v, refused %v, want %v", err, got, refused, c.want)
		}
	}
	for why, want := range map[reason]string{noHost: "no route to host", noRoute: "network is unreachable"} {
		b := newBridge(t, Options{}, func(n *Network) {
			unreachable := func(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
				seq := header.TCP(pkt.TransportHeader().Slice()).SequenceNumber()
				from, to := addrPort(id.RemoteAddress, id.RemotePort), addrPort(id.LocalAddress, id.LocalPort)
				n.sendUnreachable(why, quoteTCP(from, to, seq))
				return true
			}
			n.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, unreachable)
		})
		for _, e := range ends {
			if e.guest.Is6() && why == noHost {
				continue // the fake guest's stack does not know the code
			}
			to := netip.AddrPortFrom(e.outside, 80)
			if _, err := b.guest.DialTCP(hangContext(t), to); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("DialTCP(%s) = %v, want %q", to, err, want)
			}
		}
	}
}

// testTCPHalfOpenScan sends SYNs and resets the connections when they are accepted, as a port scanner does. Other
// bridges cannot connect to anything after ten of those: netstack's forwarder counts each of them as an attempt that is
// still going on.
func testTCPHalfOpenScan(t *testing.T) {
	defer func(was int) { defaultLimits.pendingSYNs = was }(defaultLimits.pendingSYNs)
	defaultLimits.pendingSYNs = 9 // for New, which tells the forwarder
	b := newBridge(t, Options{Policy: testPolicy}, nil)
	for _, at := range loopbacks(t) {
		l := listenHostAt(t, at)
		to := gateway(l.Addr())
		from := netip.AddrPortFrom(GuestAddr, 4000)
		if to.Addr().Is6() {
			from = netip.AddrPortFrom(GuestAddr6, 4000)
		}
		for range 20 {
			// The fake guest's stack knows nothing of this SYN, so it answers the SYN/ACK with a reset.
			b.guest.SendIP(synPacket(from, to))
			host := accept(t, l)
			err := within(t, "Read", func() error { _, err := host.Read(make([]byte, 1)); return err })
			if !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("host.Read() = %v, want ECONNRESET", err)
			}
			host.Close()
			eventually(t, "the attempt is forgotten", func() bool {
				b.syns.mu.Lock()
				defer b.syns.mu.Unlock()
				return len(b.syns.seq) == 0
			})
		}
		guest, err := b.guest.DialTCP(hangContext(t), to)
		if err != nil {
			t.Fatalf("DialTCP() = %v", err)
		}
		host, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(guest, "hello")
		expectRead(t, host, "hello")
		guest.Close()
		host.Close()
	}
}

func synPacket(src, dst netip.AddrPort) []byte {
	syn := make([]byte, header.TCPMinimumSize)
	tcp := header.TCP(syn)
	tcp.Encode(&header.TCPFields{
		SrcPort: src.Port(), DstPort: dst.Port(), SeqNum: 1, DataOffset: header.TCPMinimumSize,
		Flags: header.TCPFlagSyn, WindowSize: 65535,
	})
	tcp.SetChecksum(^tcp.CalculateChecksum(header.PseudoHeaderChecksum(header.TCPProtocolNumber,
		stackAddr(src.Addr()), stackAddr(dst.Addr()), header.TCPMinimumSize)))
	return ipPacket(header.TCPProtocolNumber, src.Addr(), dst.Addr(), 64, true, syn)
}

// testTCPFinWait checks that a connection whose guest has closed its socket ends when the host sends to it, and leaves
// nothing in netstack. Other bridges keep such ones for ever, in FIN_WAIT2.
func testTCPFinWait(t *testing.T) {
	b := newBridge(t, Options{Policy: testPolicy}, nil)
	linger := tcpip.TCPLingerTimeoutOption(time.Millisecond) // the guest forgets its closed sockets
	if err := b.guest.Stack.SetTransportProtocolOption(tcp.ProtocolNumber, &linger); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		guest, host := guestToHost(t, b)
		guest.Close()
		expectEOF(t, host)
		eventually(t, "the host hears of it", func() bool {
			_, err := host.Write([]byte("anybody?"))
			return err != nil
		})
		host.Close()
	}
	eventually(t, "no flow", func() bool { return b.Snapshot().LiveTCP == 0 })
	eventually(t, "no connection in netstack", func() bool { return b.stack.Stats().TCP.CurrentConnected.Value() == 0 })
}

// testTCPManyConnections has 200 connections at once each way, all of them open at the same time. gVisor's own
// fdbased link hangs at 20.
func testTCPManyConnections(t *testing.T) {
	const count = 200
	o, addr := forwardOptions(t, TCP, 80)
	b := newBridge(t, o, nil)
	ctx := hangContext(t)

	echo := func(accept func() (io.ReadWriteCloser, error)) {
		for {
			c, err := accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}
	hostServer := listenHost(t)
	go echo(func() (io.ReadWriteCloser, error) { return hostServer.AcceptTCP() })
	guestServer, err := b.guest.ListenTCP(80)
	if err != nil {
		t.Fatal(err)
	}
	defer guestServer.Close()
	go echo(func() (io.ReadWriteCloser, error) { return guestServer.Accept() })

	test := func(dial func(context.Context) (duplex, error)) {
		conns := make([]duplex, count)
		var all sync.WaitGroup
		for i := range conns {
			all.Go(func() {
				var err error
				if conns[i], err = dial(ctx); err != nil {
					t.Errorf("connection %d: %v", i, err)
				}
			})
		}
		all.Wait()
		if t.Failed() {
			t.FailNow()
		}
		for i, c := range conns {
			all.Go(func() {
				want := strings.Repeat(fmt.Sprintf("connection %d. ", i), 1000)
				go func() {
					fmt.Fprint(c, want)
					c.CloseWrite()
				}()
				got, err := io.ReadAll(c)
				if err != nil || string(got) != want {
					t.Errorf("connection %d: read %d bytes, %v; want %d", i, len(got), err, len(want))
				}
				c.Close()
			})
		}
		all.Wait()
	}
	t.Run("guest connects", func(t *testing.T) {
		test(func(ctx context.Context) (duplex, error) { return b.guest.DialTCP(ctx, gateway(hostServer.Addr())) })
	})
	t.Run("host connects", func(t *testing.T) {
		test(func(ctx context.Context) (duplex, error) {
			var d net.Dialer
			c, err := d.DialContext(ctx, "tcp4", addr.String())
			if err != nil {
				return nil, err
			}
			return c.(*net.TCPConn), nil
		})
	})
}

// TestTCPPendingLimit checks that SYNs beyond the limit are dropped and come through later.
func TestTCPPendingLimit(t *testing.T) {
	b := newBridge(t, Options{Policy: testPolicy}, func(n *Network) { n.limits.pendingSYNs = 1 })
	l := listenHost(t)
	var all sync.WaitGroup
	for range 2 {
		all.Go(func() {
			c, err := b.guest.DialTCP(hangContext(t), gateway(l.Addr()))
			if err != nil {
				t.Errorf("DialTCP() = %v", err)
				return
			}
			c.Close()
		})
	}
	all.Wait()
}

func TestTCPFlowLimit(t *testing.T) {
	b := newBridge(t, Options{Policy: testPolicy}, func(n *Network) { n.limits.flows[TCP] = 1 })
	guestToHost(t, b)
	eventually(t, "one flow", func() bool { return b.Snapshot().LiveTCP == 1 })
	l := listenHost(t)
	if _, err := b.guest.DialTCP(hangContext(t), gateway(l.Addr())); !errors.Is(err, slirptest.ErrRefused) {
		t.Errorf("DialTCP() = %v, want %v", err, slirptest.ErrRefused)
	}
	if got := b.Snapshot().TCPRefused; got != 1 {
		t.Errorf("Snapshot().TCPRefused = %d, want 1", got)
	}
}
