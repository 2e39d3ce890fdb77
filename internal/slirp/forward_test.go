package slirp

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// ownName is the name of this process.
func ownName(t testing.TB) string {
	t.Helper()
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(string(comm), "\n")
}

// newNetwork makes a network that does not run.
func newNetwork(t testing.TB, o Options) (*Network, error) {
	t.Helper()
	o.Socket, o.Log = socketPath(t), zerolog.Nop()
	n, err := New(o)
	if err == nil {
		t.Cleanup(func() { n.Close() })
	}
	return n, err
}

// freeRun finds ports of the loopback in a row that are free for both protocols.
func freeRun(t testing.TB, count int) netip.AddrPort {
	t.Helper()
	for first := 20000; first+count < 32768; first += count {
		free := true
		for p := first; p < first+count && free; p++ {
			address := fmt.Sprintf("127.0.0.1:%d", p)
			l, err := net.Listen("tcp4", address)
			if err == nil {
				l.Close()
			}
			c, err2 := net.ListenPacket("udp4", address)
			if err2 == nil {
				c.Close()
			}
			free = err == nil && err2 == nil
		}
		if free {
			return netip.AddrPortFrom(loopback4, uint16(first))
		}
	}
	t.Fatalf("no %d free ports in a row", count)
	panic("unreachable")
}

// guestTCP is a server at one address of the guest only, also where the fake guest's own listen on both families.
func guestTCP(t testing.TB, b *bridge, addr netip.AddrPort) net.Listener {
	t.Helper()
	l, err := gonet.ListenTCP(b.guest.Stack, fullAddress(addr), networkProtocol(addr.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// connectAs makes a connection to a forwarded port as if it came from client. It returns the client's end.
func connectAs(t testing.TB, b *bridge, f *forward, client string) *net.TCPConn {
	t.Helper()
	l := listenHost(t)
	c, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	server, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	file, err := server.File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	b.running.Go(func() { b.serveClient(f, fd, netip.MustParseAddrPort(client)) })
	return c.(*net.TCPConn)
}

func TestForwardRun(t *testing.T) {
	host := freeRun(t, 3)
	b := newBridge(t, Options{Forwards: []Forward{{Proto: TCP, Host: host, Guest: 80, Count: 3}}}, nil)
	for i := range uint16(3) {
		l := guestTCP(t, b, netip.AddrPortFrom(GuestAddr, 80+i))
		c, err := net.Dial("tcp4", netip.AddrPortFrom(host.Addr(), host.Port()+i).String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprint(accept(t, l), "hello")
		expectRead(t, c, "hello")
	}
}

// TestForwardRunErrors checks that neighbours with the same reason are one line.
func TestForwardRunErrors(t *testing.T) {
	host := freeRun(t, 6)
	at := func(i uint16) netip.AddrPort { return netip.AddrPortFrom(host.Addr(), host.Port()+i) }
	for _, i := range []uint16{1, 2, 4} {
		l, err := net.Listen("tcp4", at(i).String())
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	holder := fmt.Sprintf("already taken by %s (pid %d)", ownName(t), os.Getpid())
	for _, c := range []struct {
		forwards []Forward
		want     []string
	}{
		{
			[]Forward{{Proto: TCP, Host: host, Guest: 80, Count: 6}},
			[]string{
				fmt.Sprintf("listen on tcp %s-%d: %s", at(1), at(2).Port(), holder),
				fmt.Sprintf("listen on tcp %s: %s", at(4), holder),
			},
		},
		{
			[]Forward{{Proto: TCP, Host: at(5), Guest: 80}, {Proto: TCP, Host: at(5), Guest: 81}},
			[]string{fmt.Sprintf("listen on tcp %s: already taken by the forward of %s to the guest's port 80", at(5), at(5))},
		},
		{
			[]Forward{{Proto: TCP, Host: at(1), Guest: 80, Count: 2, BestEffort: true}},
			[]string{fmt.Sprintf("listen on tcp %s-%d: %s", at(1), at(2).Port(), holder)},
		},
		{
			[]Forward{{Proto: UDP, Host: netip.MustParseAddrPort("127.0.0.1:65535"), Guest: 80, Count: 2}},
			[]string{"listen on udp 127.0.0.1:65535: the run goes beyond port 65535"},
		},
		{
			[]Forward{{Proto: ICMP, Host: at(0), Guest: 80}},
			[]string{fmt.Sprintf("listen on icmp %s: only tcp and udp ports can be forwarded", at(0))},
		},
	} {
		_, err := newNetwork(t, Options{Forwards: c.forwards})
		if err == nil || err.Error() != strings.Join(c.want, "\n") {
			t.Errorf("New(%v) =\n%v\nwant\n%s", c.forwards, err, strings.Join(c.want, "\n"))
		}
	}
}

func TestForwardBestEffort(t *testing.T) {
	host := freeRun(t, 4)
	taken := netip.AddrPortFrom(host.Addr(), host.Port()+2)
	l, err := net.Listen("tcp4", taken.String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	n, err := newNetwork(t, Options{Forwards: []Forward{{Proto: TCP, Host: host, Guest: 80, Count: 4, BestEffort: true}}})
	if err != nil {
		t.Fatalf("New() = %v", err)
	}
	var got []uint16
	for _, f := range n.ports.all {
		got = append(got, f.guest)
	}
	if want := "[80 81 83]"; fmt.Sprint(got) != want {
		t.Errorf("the ports lead to %v, want %s", got, want)
	}
}

func TestBindReason(t *testing.T) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		err  error
		host string
		want string
	}{
		{unix.EADDRINUSE, "127.0.0.1:80", "already taken by another program of this container"},
		{unix.EACCES, "127.0.0.1:80", "permission denied: a port below net.ipv4.ip_unprivileged_port_start, mostly 1024, " +
			"needs the capability CAP_NET_BIND_SERVICE or a lower value of that sysctl"},
		{unix.EACCES, "127.0.0.1:8080", "permission denied"},
		{unix.EADDRNOTAVAIL, "198.51.100.1:80", "198.51.100.1 is not one of this host's addresses"},
		{os.NewSyscallError("socket", unix.EMFILE), "127.0.0.1:80", fmt.Sprintf(
			"too many open files: the limit is %d, raise it (ulimit -n) to 11024 at least", limit.Cur)},
	} {
		b := bindFailure{run: Forward{Proto: TCP, Host: netip.MustParseAddrPort(c.host)}, err: c.err}
		if got := b.reason(nil, 10000); got != c.want {
			t.Errorf("reason of %v at %s = %q, want %q", c.err, c.host, got, c.want)
		}
	}
}

// testForwardManyPorts checks that a port costs a socket and little else: 500 published UDP ports once cost another
// forwarder 600 MB (moby#34328), a process or a goroutine with its buffers each.
func testForwardManyPorts(t *testing.T) {
	const udpPorts, tcpPorts = 500, 2000
	host := freeRun(t, tcpPorts)
	heap, goroutines := heapBytes(), runtime.NumGoroutine()
	b := newBridge(t, Options{Forwards: []Forward{
		{Proto: UDP, Host: host, Guest: 1000, Count: udpPorts},
		{Proto: TCP, Host: host, Guest: 1000, Count: tcpPorts},
	}}, nil)
	<-b.Up()
	manyHeap, manyGoroutines := heapBytes(), runtime.NumGoroutine()
	t.Logf("%d KiB, %d goroutines more", (manyHeap-heap)>>10, manyGoroutines-goroutines)

	one := newBridge(t, Options{Forwards: []Forward{
		{Proto: UDP, Host: netip.AddrPortFrom(loopback4, 0), Guest: 1000},
	}}, nil)
	<-one.Up()
	// The whole bridge and a fake guest are in both numbers; some goroutines may come and go.
	if got, most := manyHeap-heap, heapBytes()-manyHeap+1<<20; got > most {
		t.Errorf("the heap grew by %d bytes, want at most %d", got, most)
	}
	if got, most := manyGoroutines-goroutines, runtime.NumGoroutine()-manyGoroutines+8; got > most {
		t.Errorf("%d goroutines more, want at most %d", got, most)
	}
	// The last port works like the first.
	l := guestTCP(t, b, netip.AddrPortFrom(GuestAddr, 1000+tcpPorts-1))
	c, err := net.Dial("tcp4", netip.AddrPortFrom(host.Addr(), host.Port()+tcpPorts-1).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(accept(t, l), "hello")
	expectRead(t, c, "hello")
}

func heapBytes() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// residentBytes is the memory of this process.
func residentBytes(t testing.TB) int64 {
	t.Helper()
	debug.FreeOSMemory()
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(b))[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

// BenchmarkBind10000 is the start with 10,000 forwarded TCP ports.
func BenchmarkBind10000(b *testing.B) {
	forwards := []Forward{{
		Proto: TCP, Host: netip.MustParseAddrPort("127.0.0.1:20000"), Guest: 1, Count: 10000, BestEffort: true,
	}}
	var resident int64
	for b.Loop() {
		b.StopTimer()
		before := residentBytes(b)
		b.StartTimer()
		n, err := newNetwork(b, Options{Forwards: forwards})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		resident = max(resident, residentBytes(b)-before)
		n.Close()
		b.StartTimer()
	}
	b.ReportMetric(float64(resident)/(1<<20), "MiB-RSS")
}

// TestForwardWithoutFiles checks that a port whose clients cannot be accepted is left alone for a while, instead of
// keeping a CPU busy, and serves them later.
func TestForwardWithoutFiles(t *testing.T) {
	o, addr := forwardOptions(t, TCP, 22)
	n, err := newNetwork(t, o)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp4", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	n.acceptClients(n.ports.all[0])
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if got := len(n.ports.paused); got != 1 {
		t.Errorf("%d ports are paused, want 1", got)
	}
	if err := n.ports.epoll.raw.Read(func(uintptr) bool { return false }); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("waiting for ports = %v, want %v", err, os.ErrDeadlineExceeded)
	}
	n.portsWoken()
	if got := len(n.ports.paused); got != 0 {
		t.Errorf("%d ports are paused later, want 0", got)
	}
	events := make([]unix.EpollEvent, 2)
	if err := n.ports.epoll.raw.Control(func(fd uintptr) {
		if ready, err := unix.EpollWait(int(fd), events, 0); ready != 1 || err != nil {
			t.Errorf("%d ports are ready, %v; want 1", ready, err)
		}
	}); err != nil {
		t.Error(err)
	}
}

func TestIsGuestSource(t *testing.T) {
	for addr, want := range map[string]bool{
		"203.0.113.7": true, "172.17.0.1": true, "10.0.3.1": true, "2001:db8::7": true, "fd01::1": true,
		"127.0.0.1": false, "127.9.9.9": false, "::1": false, "0.0.0.0": false, "0.1.2.3": false, "::": false,
		"169.254.1.1": false, "fe80::1": false, "224.0.0.1": false, "ff02::1": false, "255.255.255.255": false,
		"240.0.0.1": false, "10.0.2.2": false, "10.0.2.99": false, "fd00:10:0:2::2": false, "fd00:10:0:2::99": false,
	} {
		if got := isGuestSource(netip.MustParseAddr(addr)); got != want {
			t.Errorf("isGuestSource(%s) = %v, want %v", addr, got, want)
		}
	}
}

func TestClientMemory(t *testing.T) {
	var m clientMemory
	now := time.Unix(1e9, 0)
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}) }
	for i := range maxKnownClients {
		if at := now.Add(time.Duration(i)); !m.unanswered(addr(i), at, at) {
			t.Fatalf("unanswered(%s) = false, want it silent from now on", addr(i))
		}
	}
	now = now.Add(knownClientTime - time.Second)
	if m.unanswered(addr(1), now, now) {
		t.Error("unanswered() of a silent address = true, want false: that is not new")
	}
	m.unanswered(addr(maxKnownClients), now, now)
	for i, want := range map[int]bool{0: false, 1: true, 2: true, maxKnownClients: true} {
		if got := m.isSilent(addr(i), now); got != want {
			t.Errorf("isSilent(%s) = %v, want %v", addr(i), got, want)
		}
	}
	now = now.Add(2 * time.Second)
	for i, want := range map[int]bool{1: true, 2: true, 3: false} {
		if got := m.isSilent(addr(i), now); got != want {
			t.Errorf("later: isSilent(%s) = %v, want %v", addr(i), got, want)
		}
	}
	// One of several connections was answered.
	m.answered(addr(1), now)
	if m.unanswered(addr(1), now.Add(-time.Second), now) || m.isSilent(addr(1), now) {
		t.Error("an address that is answered now and then is silent")
	}
	if later := now.Add(time.Second); !m.unanswered(addr(1), later, later) || !m.isSilent(addr(1), later) {
		t.Error("an address that is not answered any more is not silent")
	}
}

// testForwardSource checks what the guest takes for the client (the client's address is lost in moby#45742).
func testForwardSource(t *testing.T) {
	for _, c := range []struct {
		source       Source
		client, want string
	}{
		{SourceClient, "203.0.113.7:4242", "203.0.113.7:4242"},
		{SourceClient, "203.0.113.7:1", "203.0.113.7:1"},
		{SourceClient, "127.0.0.1:4242", "10.0.2.2"},
		{SourceClient, "10.0.2.15:4242", "10.0.2.2"},
		{SourceClient, "169.254.7.7:4242", "10.0.2.2"},
		{SourceClient, "[2001:db8::7]:4242", "[2001:db8::7]:4242"},
		{SourceClient, "[fe80::7]:4242", "fd00:10:0:2::2"},
		{SourceGateway, "203.0.113.7:4242", "10.0.2.2"},
		{SourceGateway, "[2001:db8::7]:4242", "fd00:10:0:2::2"},
		{SourceProxy, "203.0.113.7:4242", "10.0.2.2"},
	} {
		t.Run(fmt.Sprint(c.source, " ", c.client), func(t *testing.T) {
			o, _ := forwardOptions(t, TCP, 22)
			o.Source = c.source
			b := newBridge(t, o, nil)
			client := netip.MustParseAddrPort(c.client).Addr()
			l := guestTCP(t, b, netip.AddrPortFrom(guestOf(client), 22))
			connectAs(t, b, b.ports.all[0], c.client)
			got := accept(t, l).RemoteAddr().(*net.TCPAddr).AddrPort()
			if got.String() != c.want && got.Addr().String() != c.want {
				t.Errorf("client %s is %s in the guest, want %s", c.client, got, c.want)
			}
		})
	}
}

// testForwardOwnAddress is testForwardSource with a real client, from the first address of this host that is no
// loopback address.
func testForwardOwnAddress(t *testing.T) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		own, err := netip.ParsePrefix(a.String())
		if err != nil || !own.Addr().Is4() || !isGuestSource(own.Addr()) {
			continue
		}
		b := newBridge(t, Options{Forwards: []Forward{{Proto: TCP, Host: netip.AddrPortFrom(own.Addr(), 0), Guest: 22}}}, nil)
		l := guestTCP(t, b, netip.AddrPortFrom(GuestAddr, 22))
		c, err := net.Dial("tcp4", boundAddr(t, b.ports.all[0]).String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if got := accept(t, l).RemoteAddr().String(); got != c.LocalAddr().String() {
			t.Errorf("the guest sees %s, want %s", got, c.LocalAddr())
		}
		return
	}
	t.Skip("this host has loopback addresses only")
}

// boundAddr is where a port listens.
func boundAddr(t testing.TB, f *forward) netip.AddrPort {
	t.Helper()
	at, errno := rawLocal(f.fd)
	if errno != 0 {
		t.Fatal(errno)
	}
	return at
}

// TestForwardSameClientPort checks that connections from one port of a client do not clash in netstack.
func TestForwardSameClientPort(t *testing.T) {
	any4 := netip.AddrPortFrom(loopback4, 0)
	b := newBridge(t, Options{Forwards: []Forward{
		{Proto: TCP, Host: any4, Guest: 22}, {Proto: TCP, Host: any4, Guest: 80}, {Proto: TCP, Host: any4, Guest: 22},
	}}, nil)
	const client = "203.0.113.7:4242"
	ssh, http := guestTCP(t, b, netip.AddrPortFrom(GuestAddr, 22)), guestTCP(t, b, netip.AddrPortFrom(GuestAddr, 80))
	for i, l := range []net.Listener{ssh, http} {
		connectAs(t, b, b.ports.all[i], client)
		if got := accept(t, l).RemoteAddr().String(); got != client {
			t.Errorf("connection %d comes from %s, want %s", i, got, client)
		}
	}
	// The guest could not tell the third from the first.
	connectAs(t, b, b.ports.all[2], client)
	got := accept(t, ssh).RemoteAddr().(*net.TCPAddr).AddrPort()
	if got.Addr().String() != "203.0.113.7" || got.Port() == 4242 {
		t.Errorf("the third connection comes from %s, want another port of 203.0.113.7", got)
	}
}

// hideClient takes the guest its way back to all addresses but its own network.
func hideClient(b *bridge) {
	own, _ := tcpip.NewSubnet(stackAddr(guestNet.Addr()), tcpip.MaskFromBytes([]byte{255, 255, 255, 0}))
	b.guest.Stack.SetRouteTable([]tcpip.Route{{Destination: own, NIC: nicID}})
}

// TestForwardSilentClient checks that a client whose address the guest cannot answer is served from the gateway's, at
// once from its second connection on, and with UDP as well.
func TestForwardSilentClient(t *testing.T) {
	any4 := netip.AddrPortFrom(loopback4, 0)
	b := newBridge(t, Options{Forwards: []Forward{
		{Proto: TCP, Host: any4, Guest: 22}, {Proto: UDP, Host: any4, Guest: 53},
	}}, func(n *Network) { n.limits.silence = 10 * time.Millisecond })
	hideClient(b)
	l := guestTCP(t, b, netip.AddrPortFrom(GuestAddr, 22))
	silent := netip.MustParseAddr("172.17.0.1")
	for range 2 {
		c := connectAs(t, b, b.ports.all[0], "172.17.0.1:4242")
		g := accept(t, l)
		if got := g.RemoteAddr().(*net.TCPAddr).IP.String(); got != "10.0.2.2" {
			t.Errorf("the client is %s in the guest, want 10.0.2.2", got)
		}
		fmt.Fprint(g, "hello")
		expectRead(t, c, "hello")
		if b.showsClient(silent) {
			t.Error("the address is tried again")
		}
	}
	// SYNs: two to begin with, repeated ones to the silent guest are not counted, and one for the second connection.
	if got := b.stack.Stats().TCP.ActiveConnectionOpenings.Value(); got != 3 {
		t.Errorf("%d attempts, want 3", got)
	}
	c := b.client(clientID{b.ports.all[1], clientKey{client: netip.MustParseAddrPort("172.17.0.1:4242")}})
	if got := c.key.ini.String(); got != "10.0.2.2:4242" {
		t.Errorf("with UDP the client is %s, want 10.0.2.2:4242", got)
	}
}

// TestForwardSlowGuest checks that a guest that is merely slow sees the client: it answers in order.
func TestForwardSlowGuest(t *testing.T) {
	o, _ := forwardOptions(t, TCP, 22)
	b := newBridge(t, o, func(n *Network) { n.limits.silence = 1 })
	l := guestTCP(t, b, netip.AddrPortFrom(GuestAddr, 22))
	const client = "203.0.113.7:4242"
	c := connectAs(t, b, b.ports.all[0], client)
	go func() {
		for { // also the connections that were too many
			g, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(g, g.RemoteAddr())
			g.Close()
		}
	}()
	expectRead(t, c, client)
	if !b.showsClient(netip.MustParseAddr("203.0.113.7")) {
		t.Error("the guest is taken for silent")
	}
}

// TestForwardFiltered checks that a client that the guest's packet filter rejects is not let in another way.
func TestForwardFiltered(t *testing.T) {
	o, _ := forwardOptions(t, TCP, 22)
	b := newBridge(t, o, nil)
	accepted := make(chan netip.Addr, 10)
	server := tcp.NewForwarder(b.guest.Stack, 0, 10, func(r *tcp.ForwarderRequest) {
		accepted <- goAddr(r.ID().RemoteAddress)
		var wq waiter.Queue
		ep, err := r.CreateEndpoint(&wq)
		r.Complete(false)
		if err == nil {
			ep.Close()
		}
	})
	b.guest.Stack.SetTransportProtocolHandler(tcp.ProtocolNumber,
		func(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
			return goAddr(id.RemoteAddress) != netip.MustParseAddr("203.0.113.7") && server.HandlePacket(id, pkt)
		})
	// The handler may be seen by the guest's goroutines from now on: this takes the lock that they take.
	guestTCP(t, b, netip.AddrPortFrom(GuestAddr, 1))
	c := connectAs(t, b, b.ports.all[0], "203.0.113.7:4242")
	err := within(t, "Read", func() error { _, err := c.Read(make([]byte, 1)); return err })
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("Read() = %v, want ECONNRESET", err)
	}
	// The gateway's address is only to see whether the port is closed for all.
	if got := <-accepted; got != GatewayAddr || len(accepted) > 0 {
		t.Errorf("the guest accepted %s and %d more, want %s", got, len(accepted), GatewayAddr)
	}
}

func TestVerdict(t *testing.T) {
	const (
		u, i, s, r, a = wayUntried, wayImpassable, waySilent, wayRefused, wayAccepted
		none, open    = -1, -2
	)
	for _, c := range []struct {
		client, gateway, other wayState
		want                   int
	}{
		{a, u, u, fromClient},
		{s, u, u, open},
		{s, a, u, fromGateway},
		{a, a, s, fromClient},
		{r, u, u, open},
		{r, a, u, none},
		{r, r, u, open},
		{r, r, a, toOtherFamily},
		{r, r, r, none},
		{r, r, s, open},
		{i, a, u, fromGateway},
		{i, r, a, toOtherFamily},
		{s, s, a, toOtherFamily},
		{u, u, a, toOtherFamily}, // with a hint
		{i, r, i, none},
	} {
		ways := [numWays]*way{{state: c.client}, {state: c.gateway}, {state: c.other}}
		winner, done := verdict(ways)
		got := open
		if done {
			got = none
		}
		for j, w := range ways {
			if w == winner {
				got = j
			}
		}
		if got != c.want {
			t.Errorf("verdict(%d) = %d, want %d", []wayState{c.client, c.gateway, c.other}, got, c.want)
		}
	}
}

// TestForwardOtherFamily checks that a server of one family serves clients of the other one too.
func TestForwardOtherFamily(t *testing.T) {
	for _, c := range []struct{ client, server, want string }{
		{"[2001:db8::7]:4242", "10.0.2.15:22", "10.0.2.2"},
		{"203.0.113.7:4242", "[fd00:10:0:2::15]:22", "fd00:10:0:2::2"},
		{"[::1]:4242", "10.0.2.15:22", "10.0.2.2"},
	} {
		t.Run(c.client, func(t *testing.T) {
			o, _ := forwardOptions(t, TCP, 22)
			b := newBridge(t, o, func(n *Network) { n.limits.silence = 50 * time.Millisecond })
			server := netip.MustParseAddrPort(c.server)
			client := netip.MustParseAddrPort(c.client).Addr()
			l := guestTCP(t, b, server)
			for i := range 3 { // the third one with a hint
				if b.ports.all[0].crossedNow(familyOf(client), b.now()) != (i == 2) {
					t.Errorf("client %d of 3: the hint is for the third alone", i+1)
				}
				connectAs(t, b, b.ports.all[0], c.client)
				if got := accept(t, l).RemoteAddr().(*net.TCPAddr).IP.String(); got != c.want {
					t.Errorf("the client is %s in the guest, want %s", got, c.want)
				}
			}
			if !b.showsClient(client) && isGuestSource(client) {
				t.Error("the client's address is blamed for the family that is not served")
			}
			if !b.ports.all[0].crossedNow(familyOf(client), b.now()) {
				t.Error("there is no hint")
			}
			// A server for the client's own family gets the clients when the hint is over.
			b.ports.all[0].crossed[familyOf(client)].Store(0)
			own := guestTCP(t, b, netip.AddrPortFrom(guestOf(client), 22))
			connectAs(t, b, b.ports.all[0], c.client)
			accept(t, own)
		})
	}
}

func TestProxyHeader(t *testing.T) {
	for _, c := range []struct{ src, dst, want string }{
		{
			"203.0.113.7:4242", "192.0.2.1:22",
			"0d0a0d0a000d0a515549540a" + "21" + "11" + "000c" + "cb007107" + "c0000201" + "1092" + "0016",
		},
		{
			"[2001:db8::7]:4242", "[2001:db8::1]:22",
			"0d0a0d0a000d0a515549540a" + "21" + "21" + "0024" + "20010db8000000000000000000000007" +
				"20010db8000000000000000000000001" + "1092" + "0016",
		},
	} {
		got := hex.EncodeToString(proxyHeader(netip.MustParseAddrPort(c.src), netip.MustParseAddrPort(c.dst)))
		if got != c.want {
			t.Errorf("proxyHeader(%s, %s) = %s, want %s", c.src, c.dst, got, c.want)
		}
	}
}

// TestForwardProxy checks that the header comes first, with what the client sees, and nothing of it goes back.
func TestForwardProxy(t *testing.T) {
	p := freePort(t, "tcp")
	b := newBridge(t, Options{Source: SourceProxy, Forwards: []Forward{
		{Proto: TCP, Host: netip.AddrPortFrom(netip.Addr{}, p), Guest: 22}, // IPv4 comes as IPv4-mapped here
	}}, nil)
	l := guestTCP(t, b, netip.AddrPortFrom(GuestAddr, 22))
	c, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", p))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	g := accept(t, l)
	fmt.Fprint(c, "hello")
	src, dst := c.LocalAddr().(*net.TCPAddr).AddrPort(), c.RemoteAddr().(*net.TCPAddr).AddrPort()
	expectRead(t, g, string(proxyHeader(src, dst))+"hello")
	fmt.Fprint(g, "hello yourself")
	expectRead(t, c, "hello yourself")
}

// testForwardHalfClose checks that either end can close its direction and go on receiving, through the sockets that
// the ports' goroutine accepts.
func testForwardHalfClose(t *testing.T) {
	for _, source := range []Source{SourceClient, SourceGateway} {
		o, _ := forwardOptions(t, TCP, 22)
		o.Source = source
		b := newBridge(t, o, nil)
		l := guestTCP(t, b, netip.AddrPortFrom(GuestAddr, 22))
		c := connectAs(t, b, b.ports.all[0], "203.0.113.7:4242")
		halfClose(t, accept(t, l).(*gonet.TCPConn), c)
		c = connectAs(t, b, b.ports.all[0], "203.0.113.7:4243")
		halfClose(t, c, accept(t, l).(*gonet.TCPConn))
	}
}

// udpForwardBridge is a bridge with one UDP port forwarded to the guest's port 53, and a way to be a client of it.
func udpForwardBridge(t *testing.T, change func(*Network)) (b *bridge, from func(client, text string)) {
	t.Helper()
	b = newSilentBridge(t, Options{Forwards: []Forward{
		{Proto: UDP, Host: netip.AddrPortFrom(loopback4, 0), Guest: 53},
	}}, change)
	return b, func(client, text string) {
		key := clientKey{client: netip.MustParseAddrPort(client)}
		b.fromClient(clientID{b.ports.all[0], key}, []byte(text))
	}
}

// receive reads one datagram.
func receive(t testing.TB, c net.PacketConn) (text string, from netip.AddrPort) {
	t.Helper()
	buf := make([]byte, 1<<16)
	c.SetReadDeadline(time.Now().Add(hang))
	n, addr, err := c.ReadFrom(buf)
	if err != nil {
		t.Fatalf("ReadFrom() = %v", err)
	}
	return string(buf[:n]), addr.(*net.UDPAddr).AddrPort()
}

func testForwardUDPSource(t *testing.T) {
	b, from := udpForwardBridge(t, nil)
	server := guestUDP(t, b, 53)
	b.guest.Announce()
	<-b.Up()
	for _, c := range []struct{ client, want string }{
		{"203.0.113.7:123", "203.0.113.7:123"},
		{"[::ffff:203.0.113.8]:4242", "203.0.113.8:4242"},
		{"127.0.0.1:4242", "10.0.2.2:4242"},
	} {
		from(c.client, c.client)
		if text, got := receive(t, server); got.String() != c.want || text != c.client {
			t.Errorf("client %s is %s in the guest, want %s", c.client, got, c.want)
		}
	}
	// Two clients that would look the same: the second one gets another port.
	from("127.0.0.2:4242", "")
	if _, got := receive(t, server); got.Addr() != GatewayAddr || got.Port() == 4242 {
		t.Errorf("the second client is %s, want another port of the gateway", got)
	}
}

// TestForwardUDPBeforeGuestIsUp checks that a client's first datagrams wait for the guest, as TCP clients do.
func TestForwardUDPBeforeGuestIsUp(t *testing.T) {
	o, addr := forwardOptions(t, UDP, 53)
	b := newSilentBridge(t, o, nil)
	server := guestUDP(t, b, 53)
	c, err := net.Dial("udp4", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range earlyPerClient + 2 {
		fmt.Fprint(c, i)
	}
	eventually(t, "two are too many", func() bool { return b.Snapshot().UDPDropped == 2 })
	b.guest.Announce()
	for i := range earlyPerClient {
		if got, _ := receive(t, server); got != strconv.Itoa(i) {
			t.Errorf("datagram %d is %q", i, got)
		}
	}
}

func TestForwardUDPEarlyBound(t *testing.T) {
	n, err := newNetwork(t, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2000 {
		key := clientKey{client: netip.AddrPortFrom(netip.MustParseAddr("203.0.113.7"), uint16(i))}
		n.fromClient(clientID{nil, key}, make([]byte, i%1500))
	}
	held := 0
	for _, e := range n.clients.early {
		held += len(e.payload) + earlyOverhead
	}
	if held != n.clients.earlyBytes || held > earlyBytes || held < earlyBytes-2048 {
		t.Errorf("%d bytes are held, %d counted, want close to %d", held, n.clients.earlyBytes, earlyBytes)
	}
}

// TestForwardUDPStorm checks that flows from made-up addresses take no more than half of the table, and nothing from
// those that were answered.
func TestForwardUDPStorm(t *testing.T) {
	b, from := udpForwardBridge(t, func(n *Network) { n.limits.flows[UDP] = 8 })
	server := guestUDP(t, b, 53)
	b.guest.Announce()
	<-b.Up()
	from("203.0.113.7:4242", "")
	_, client := receive(t, server)
	server.WriteTo([]byte("answer"), udpAddr(client))
	key := flowKey{proto: UDP, ini: client, tgt: netip.AddrPortFrom(GuestAddr, 53)}
	answered := b.flows.get(key).(*clientFlow)
	eventually(t, "the flow is answered", answered.answered.Load)
	for i := range 100 {
		from(fmt.Sprintf("198.51.100.1:%d", 1000+i), "")
	}
	if got := b.Snapshot().LiveUDP; got != 5 {
		t.Errorf("Snapshot().LiveUDP = %d, want the answered flow and 4 more", got)
	}
	if b.flows.get(key) != answered {
		t.Error("the answered flow is gone")
	}
	if got := b.Snapshot().UDPRefused; got != 96 {
		t.Errorf("Snapshot().UDPRefused = %d, want 96", got)
	}
	if b.flows.get(flowKey{proto: UDP, ini: netip.MustParseAddrPort("198.51.100.1:1099"), tgt: key.tgt}) == nil {
		t.Error("the latest flow is refused")
	}
}

// TestForwardUDPUnreachable checks what "port unreachable" of the guest does to a client's flow.
func TestForwardUDPUnreachable(t *testing.T) {
	clock := newClock()
	b, from := udpForwardBridge(t, func(n *Network) {
		n.now = clock.now
		n.flows = newFlowTable(n)
	})
	b.guest.Announce()
	<-b.Up()
	b.guest.NIC.Pause(true) // what it refuses is up to the test
	defer b.guest.NIC.Pause(false)
	const addr = "203.0.113.7:4242"
	id := clientID{b.ports.all[0], clientKey{client: netip.MustParseAddrPort(addr)}}
	flowTo := func(want string) *clientFlow {
		t.Helper()
		from(addr, "")
		c := b.client(id)
		if got := c.key.tgt.String(); got != want {
			t.Errorf("the flow leads to %s, want %s", got, want)
		}
		return c
	}
	own := flowTo("10.0.2.15:53")
	own.guestUnreachable()
	if got := b.Snapshot().LiveUDP; got != 0 {
		t.Errorf("Snapshot().LiveUDP = %d, want 0", got)
	}
	// Nobody listens there either.
	flowTo("[fd00:10:0:2::15]:53").guestUnreachable()
	flowTo("10.0.2.15:53").guestUnreachable()
	// No answer at all: back to its own family when the hint is over, though the client never stopped.
	flowTo("[fd00:10:0:2::15]:53")
	clock.pass(familyHint)
	own = flowTo("10.0.2.15:53")
	own.answered.Store(true)
	b.flows.touch(&own.flow, b.limits.udpAnswered)
	own.guestUnreachable()
	clock.pass(b.limits.udpNew)
	b.flows.expire()
	if got := b.Snapshot().LiveUDP; got != 0 {
		t.Errorf("Snapshot().LiveUDP = %d, want 0: the server is gone", got)
	}
	if got := b.stats.guestUnreachable.Load(); got != 4 {
		t.Errorf("%d datagrams were refused, want 4", got)
	}
}

func TestForwardUDPFamily(t *testing.T) {
	b, from := udpForwardBridge(t, nil)
	local := fullAddress(netip.AddrPortFrom(GuestAddr6, 53))
	server, err := gonet.DialUDP(b.guest.Stack, &local, nil, ipv6.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	b.guest.Announce()
	<-b.Up()
	from("[2001:db8::7]:4242", "")
	if _, got := receive(t, server); got.String() != "[2001:db8::7]:4242" {
		t.Errorf("the client is %s in the guest", got)
	}
	from("[::1]:4242", "")
	if _, got := receive(t, server); got.String() != "[fd00:10:0:2::2]:4242" {
		t.Errorf("the client on the loopback is %s in the guest", got)
	}
}

func TestParseProcSocket(t *testing.T) {
	for _, c := range []struct {
		line string
		want procSocket
		ok   bool
	}{
		{
			"   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12345 1 0 100 0",
			procSocket{netip.MustParseAddrPort("127.0.0.1:8080"), procListen, 12345},
			true,
		},
		{
			"   1: 00000000000000000000000001000000:0035 00000000000000000000000000000000:0000 07 00000000:00000000 " +
				"00:00000000 00000000     0        0 99 2 0",
			procSocket{netip.MustParseAddrPort("[::1]:53"), 7, 99},
			true,
		},
		{
			"   2: 0000000000000000FFFF00000100007F:0035 00000000000000000000000000000000:0000 07 00000000:00000000 " +
				"00:00000000 00000000     0        0 99 2 0",
			procSocket{netip.MustParseAddrPort("127.0.0.1:53"), 7, 99},
			true,
		},
		{"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode", procSocket{}, false},
		{"", procSocket{}, false},
	} {
		got, ok := parseProcSocket(c.line)
		if ok != c.ok || ok && got != c.want {
			t.Errorf("parseProcSocket(%q) = %v, %v, want %v, %v", c.line, got, ok, c.want, c.ok)
		}
	}
}

func FuzzParseProcSocket(f *testing.F) {
	f.Add("   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12345 1 0 100 0")
	f.Add("0: 00000000000000000000000001000000:0035 0:0 07 0 0 0 0 0 99")
	f.Fuzz(func(t *testing.T, line string) {
		if s, ok := parseProcSocket(line); ok && !s.local.Addr().IsValid() {
			t.Errorf("parseProcSocket(%q) = %v without an address", line, s)
		}
	})
}

// TestPortHolders checks with a made-up /proc who is named.
func TestPortHolders(t *testing.T) {
	proc := t.TempDir()
	for _, dir := range []string{"net", "12/fd", "13/fd"} {
		if err := os.MkdirAll(filepath.Join(proc, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	line := func(local, state string, inode int) string {
		return fmt.Sprintf("0: %s 00000000:0000 %s 0:0 0:0 0 0 0 %d 1\n", local, state, inode)
	}
	writeFile(t, filepath.Join(proc, "net/tcp"), "  sl  local_address\n"+
		line("0100007F:1F90", "01", 1)+ // a connection
		line("0100007F:1F90", "0A", 2)+
		line("0200007F:1F90", "0A", 3)+
		line("00000000:1F91", "0A", 4))
	writeFile(t, filepath.Join(proc, "12/comm"), "ngi\x1bnx\n")
	writeFile(t, filepath.Join(proc, "13/comm"), "curl\n")
	for link, target := range map[string]string{
		"12/fd/3": "socket:[2]", "12/fd/4": "pipe:[3]", "13/fd/3": "socket:[1]",
	} {
		if err := os.Symlink(target, filepath.Join(proc, link)); err != nil {
			t.Fatal(err)
		}
	}
	const unknown = "another program of this container"
	var failures []bindFailure
	hosts := map[string]string{
		"127.0.0.1:8080": "ngi?nx (pid 12)", "0.0.0.0:8080": "ngi?nx (pid 12)",
		"127.0.0.2:8080": unknown, "127.0.0.1:8081": unknown, "127.0.0.1:8082": unknown,
	}
	for h := range hosts {
		failures = append(failures, bindFailure{run: Forward{Proto: TCP, Host: netip.MustParseAddrPort(h)}, err: unix.EADDRINUSE})
	}
	holders := findHolders(proc, failures, nil)
	for h, want := range hosts {
		if got := holders.of(TCP, netip.MustParseAddrPort(h)); got != want {
			t.Errorf("%s is taken by %q, want %q", h, got, want)
		}
	}
}
