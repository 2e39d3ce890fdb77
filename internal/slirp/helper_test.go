package slirp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"docker-usermode-linux/internal/slirp/slirptest"
)

// hang is far longer than anything takes: it turns a hang into a failure.
const hang = 60 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bridge is a Network with a fake guest.
type bridge struct {
	*Network
	guest *slirptest.Guest
	done  chan error // result of Run
}

// testPolicy lets the guest reach the servers of a test, on the host's loopback.
var testPolicy = Policy{Allow: rules("10.0.2.2/32", "fd00:10:0:2::2/128", "127.0.0.0/8", "::1/128")}

// rules makes a rule for all ports of each prefix.
func rules(prefixes ...string) (all []Rule) {
	for _, p := range prefixes {
		all = append(all, Rule{Prefix: netip.MustParsePrefix(p)})
	}
	return all
}

// newBridge starts a network with a guest that is up. change may alter the network before it runs.
func newBridge(t testing.TB, o Options, change func(*Network)) *bridge {
	t.Helper()
	b := newSilentBridge(t, o, change)
	b.guest.Announce()
	within(t, "the guest's NIC", func() bool { <-b.Up(); return true })
	return b
}

// newSilentBridge is newBridge with a guest that has sent nothing yet.
func newSilentBridge(t testing.TB, o Options, change func(*Network)) *bridge {
	t.Helper()
	return newBridgeWithNIC(t, o, change, nil)
}

// newBridgeWithNIC is newSilentBridge where nic may alter the guest's NIC before it is connected.
func newBridgeWithNIC(t testing.TB, o Options, change func(*Network), nic func(*slirptest.NIC)) *bridge {
	t.Helper()
	o.Socket = socketPath(t)
	o.Log = zerolog.Nop()
	if o.ResolvConf == "" {
		o.ResolvConf = filepath.Join(t.TempDir(), "resolv.conf")
	}
	n, err := New(o)
	if err != nil {
		t.Fatalf("New() = %v", err)
	}
	n.limits.probe = 2 * hang
	n.limits.servers = 0
	if change != nil {
		change(n)
	}
	b := &bridge{Network: n, done: make(chan error, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { b.done <- n.Run(ctx) }()
	b.guest = slirptest.New(t, o.Socket, slirptest.Config{
		Address:  netip.PrefixFrom(GuestAddr, PrefixBits),
		Address6: netip.PrefixFrom(GuestAddr6, PrefixBits6),
		MAC:      GuestMAC,
		NIC:      nic,
	})
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-b.done:
			if err != nil {
				t.Errorf("Run() = %v", err)
			}
		case <-time.After(hang):
			t.Fatal("Run() does not return")
		}
		b.guest.Close()
	})
	return b
}

// socketPath is a path for the link's socket. That of t.TempDir may be too long for one.
func socketPath(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "slirp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "nic")
}

// gateway is the address by which the guest reaches a server on the host's loopback.
func gateway(a net.Addr) netip.AddrPort {
	host := a.(interface{ AddrPort() netip.AddrPort }).AddrPort()
	return netip.AddrPortFrom(gatewayOf(host.Addr().Unmap()), host.Port())
}

// loopbacks are the host's, of the families that it has.
func loopbacks(t testing.TB) []string {
	c, err := net.ListenPacket("udp6", "[::1]:0")
	if err != nil {
		t.Logf("no IPv6: %v", err)
		return []string{"127.0.0.1:0"}
	}
	c.Close()
	return []string{"127.0.0.1:0", "[::1]:0"}
}

func port(a net.Addr) uint16 {
	switch a := a.(type) {
	case *net.TCPAddr:
		return uint16(a.Port)
	case *net.UDPAddr:
		return uint16(a.Port)
	}
	panic(fmt.Sprintf("no port in a %T", a))
}

// listenHost is a TCP server on the host's loopback.
func listenHost(t testing.TB) *net.TCPListener {
	t.Helper()
	return listenHostAt(t, "127.0.0.1:0")
}

func listenHostAt(t testing.TB, address string) *net.TCPListener {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

// freePort is a port of the loopback that nobody listens on.
func freePort(t testing.TB, network string) uint16 {
	t.Helper()
	if network == "udp" {
		c, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return port(c.LocalAddr())
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return port(l.Addr())
}

func hangContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), hang)
	t.Cleanup(cancel)
	return ctx
}

// within fails the test when f does not return.
func within[T any](t testing.TB, what string, f func() T) T {
	t.Helper()
	c := make(chan T, 1)
	go func() { c <- f() }()
	select {
	case v := <-c:
		return v
	case <-time.After(hang):
		t.Fatalf("%s hangs", what)
		panic("unreachable")
	}
}

// eventually waits until f holds.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(hang); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// guestToHost makes a connection from the guest to a server on the host.
func guestToHost(t testing.TB, b *bridge) (guest *slirptest.Conn, host *net.TCPConn) {
	t.Helper()
	return guestToHostAt(t, b, "127.0.0.1:0")
}

// guestToHostAt is guestToHost with a server at an address of the loopback.
func guestToHostAt(t testing.TB, b *bridge, address string) (guest *slirptest.Conn, host *net.TCPConn) {
	t.Helper()
	l := listenHostAt(t, address)
	guest, err := b.guest.DialTCP(hangContext(t), gateway(l.Addr()))
	if err != nil {
		t.Fatalf("DialTCP() = %v", err)
	}
	host, err = l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { guest.Close(); host.Close() })
	return guest, host
}

// forwardOptions forwards one free port of the loopback to a port of the guest, and returns its address.
func forwardOptions(t testing.TB, proto Proto, guest uint16) (Options, netip.AddrPort) {
	t.Helper()
	host := netip.AddrPortFrom(loopback4, freePort(t, proto.String()))
	return Options{Policy: testPolicy, Forwards: []Forward{{Proto: proto, Host: host, Guest: guest}}}, host
}

// hostToGuest makes a bridge and a connection through a forwarded port.
func hostToGuest(t testing.TB) (b *bridge, guest *slirptest.Conn, host *net.TCPConn) {
	t.Helper()
	o, addr := forwardOptions(t, TCP, 22)
	b = newBridge(t, o, nil)
	l, err := b.guest.ListenTCP(22)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp4", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); l.Close() })
	return b, accept(t, l), c.(*net.TCPConn)
}

// accept takes the next connection of a listener of either end. It is closed at the test's end.
func accept[C io.Closer](t testing.TB, l interface{ Accept() (C, error) }) C {
	t.Helper()
	var err error
	c := within(t, "Accept", func() (c C) { c, err = l.Accept(); return c })
	if err != nil {
		t.Fatalf("Accept() = %v", err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// expectRead checks that exactly want arrives next.
func expectRead(t testing.TB, r io.Reader, want string) {
	t.Helper()
	got := within(t, "read", func() string {
		buf := make([]byte, len(want))
		n, err := io.ReadFull(r, buf)
		if err != nil {
			return fmt.Sprintf("%q and then %v", buf[:n], err)
		}
		return string(buf)
	})
	if got != want {
		t.Fatalf("read %q, want %q", got, want)
	}
}

// expectEOF checks that the stream has ended.
func expectEOF(t testing.TB, r io.Reader) {
	t.Helper()
	err := within(t, "read", func() error {
		n, err := r.Read(make([]byte, 1))
		if n != 0 {
			return errors.New("read data")
		}
		return err
	})
	if !errors.Is(err, io.EOF) {
		t.Fatalf("Read() = %v, want EOF", err)
	}
}

func writeFile(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// expectReset connects to a forwarded port that the guest does not take. The reset may be faster than the connect.
func expectReset(t testing.TB, addr netip.AddrPort) {
	t.Helper()
	c, err := net.Dial("tcp4", addr.String())
	if err == nil {
		defer c.Close()
		err = within(t, "Read", func() error { _, err := c.Read(make([]byte, 1)); return err })
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("connection to %s: %v, want ECONNRESET", addr, err)
	}
}
