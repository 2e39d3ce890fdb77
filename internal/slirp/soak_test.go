package slirp

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// soakDefault is so many that the soak tests take seconds.
var soakDefault = 20_000

// soakCount is how many flows the soak tests make: SOAK, if it is set.
func soakCount(t testing.TB) int {
	if v := os.Getenv("SOAK"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			t.Fatalf("SOAK=%s: %v", v, err)
		}
		return n
	}
	if testing.Short() {
		return 1000
	}
	return soakDefault
}

// soakHere says whether a soak test is to run in this process. Where it makes more flows than usual, it has a network
// namespace of its own: a packet filter of the host that tracks connections remembers each for minutes, and drops packets
// when its table is full.
func soakHere(t *testing.T) bool {
	t.Helper()
	return os.Getenv("SOAK") == "" || inNamespace(t)
}

// holdings are what a leak shows in.
type holdings struct {
	goroutines, files int
	heap              uint64
}

func held(t testing.TB) (h holdings) {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second one frees what pools held
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return holdings{runtime.NumGoroutine(), len(files), m.HeapAlloc}
}

// soakInRounds has round make soakBatch flows at a time, of which the first has that number. Nothing may be dropped, nor
// be held afterwards that was not held after the first round.
func soakInRounds(t *testing.T, b *bridge, round func(first int)) {
	t.Helper()
	round(0)
	before := held(t)
	for first := soakBatch; first < soakCount(t); first += soakBatch {
		round(first)
	}
	if got := b.Inspect().Drops; got != 0 {
		t.Errorf("%d drops, want none", got)
	}
	expectBack(t, before)
}

// expectBack waits until as much is held as before. A map or a pool that has grown may keep some memory, a flow that
// leaks would keep more: its splice alone has two stacks, and there are thousands.
func expectBack(t testing.TB, before holdings) {
	t.Helper()
	const slack = 8 << 20
	var now holdings
	defer func() { t.Logf("before %+v, now %+v", before, now) }()
	eventually(t, "goroutines, files and heap are as before", func() bool {
		now = held(t)
		return now.goroutines <= before.goroutines && now.files <= before.files && now.heap <= before.heap+slack
	})
}

// soakBatch is how many UDP flows there are at a time in a soak test: any socket's buffer holds a small datagram of each.
const soakBatch = 40

// soakLanes is how many connections there are at a time in a soak test of TCP.
const soakLanes = 16

// soakTCP makes many connections one after the other in a few lanes, and checks that nothing of them is left, in netstack
// neither.
func soakTCP(t *testing.T, b *bridge, connect func(i int) (duplex, error)) {
	t.Helper()
	// The guest's time-wait is its own affair, and would be all that is left here.
	wait := tcpip.TCPTimeWaitTimeoutOption(time.Millisecond)
	if err := b.guest.Stack.SetTransportProtocolOption(tcp.ProtocolNumber, &wait); err != nil {
		t.Fatal(err)
	}
	ask := func(i int) error {
		c, err := connect(i)
		if err != nil {
			return err
		}
		defer c.Close()
		want := fmt.Sprintf("connection %d", i)
		c.Write([]byte(want))
		buf := make([]byte, 100)
		if n, err := c.Read(buf); err != nil || string(buf[:n]) != want {
			return fmt.Errorf("read %q, %v, want %q", buf[:n], err, want)
		}
		return nil
	}
	idle := func() {
		t.Helper()
		eventually(t, "no flow", func() bool { return b.Snapshot().LiveTCP == 0 })
		eventually(t, "no connection in netstack", func() bool { return b.stack.Stats().TCP.CurrentConnected.Value() == 0 })
	}
	for i := range 100 { // so that all is there that stays
		if err := ask(i); err != nil {
			t.Fatal(err)
		}
	}
	idle()
	before := held(t)
	count := soakCount(t)
	var done atomic.Int64
	var lanes sync.WaitGroup
	for range soakLanes {
		lanes.Go(func() {
			for {
				i := int(done.Add(1))
				if i > count || t.Failed() {
					return
				}
				if err := ask(i); err != nil {
					t.Errorf("connection %d: %v", i, err)
				}
			}
		})
	}
	lanes.Wait()
	idle()
	if got := b.Snapshot().TCPFlows; got < uint64(count) {
		t.Errorf("%d flows, want %d", got, count)
	}
	if got := b.Inspect().Drops; got != 0 {
		t.Errorf("%d drops, want none", got)
	}
	expectBack(t, before)
}

// echoOnce answers each connection's first message with the same, and closes.
func echoOnce[C io.ReadWriteCloser](accept func() (C, error)) {
	for {
		c, err := accept()
		if err != nil {
			return
		}
		buf := make([]byte, 100)
		n, _ := c.Read(buf)
		c.Write(buf[:n])
		c.Close()
	}
}

// TestSoakTCP has the guest connect, over both families.
func TestSoakTCP(t *testing.T) {
	if !soakHere(t) {
		return
	}
	b := newBridge(t, Options{Policy: testPolicy}, nil)
	at := loopbacks(t)
	var servers []netip.AddrPort // several: the host's kernel has 28,000 ports for connections to one
	for i := range soakLanes {
		l := listenHostAt(t, at[i%len(at)])
		servers = append(servers, gateway(l.Addr()))
		go echoOnce(l.Accept)
	}
	soakTCP(t, b, func(i int) (duplex, error) {
		ctx, cancel := context.WithTimeout(context.Background(), hang)
		defer cancel()
		return b.guest.DialTCP(ctx, servers[i%len(servers)])
	})
}

// TestSoakTCPForwarded has clients connect to forwarded ports.
func TestSoakTCPForwarded(t *testing.T) {
	if !soakHere(t) {
		return
	}
	host := freeRun(t, soakLanes)
	b := newBridge(t, Options{Forwards: []Forward{{Proto: TCP, Host: host, Guest: 1000, Count: soakLanes}}}, nil)
	for i := range uint16(soakLanes) {
		l, err := b.guest.ListenTCP(1000 + i)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go echoOnce(l.Accept)
	}
	soakTCP(t, b, func(i int) (duplex, error) {
		d := net.Dialer{Timeout: hang}
		c, err := d.Dial("tcp4", netip.AddrPortFrom(host.Addr(), host.Port()+uint16(i%soakLanes)).String())
		if err != nil {
			return nil, err
		}
		return c.(*net.TCPConn), nil
	})
}

// TestSoakUDP makes many UDP flows, some at a time, and checks that nothing is lost and nothing of them is left.
func TestSoakUDP(t *testing.T) {
	if !soakHere(t) {
		return
	}
	clock := newClock()
	b := newBridge(t, Options{Policy: testPolicy}, func(n *Network) {
		n.now = clock.now
		n.flows = newFlowTable(n)
	})
	var servers []netip.AddrPort
	for _, at := range loopbacks(t) {
		servers = append(servers, gateway(echoUDP(t, at).LocalAddr()))
	}
	var answers atomic.Int64
	b.guest.Watch(func(packet []byte) {
		if _, proto, _ := cutIP(packet); proto == header.UDPProtocolNumber {
			answers.Add(1)
		}
	})
	round := func(first int) {
		for i := range soakBatch {
			to := servers[i%len(servers)]
			from := GuestAddr
			if to.Addr().Is6() {
				from = GuestAddr6
			}
			port := uint16(1024 + (first+i)%60000)
			b.guest.SendIP(udpPacket(netip.AddrPortFrom(from, port), to, 64, true, "hello"))
		}
		want := uint64(first + soakBatch)
		eventually(t, "a flow for each datagram", func() bool { return b.Snapshot().UDPFlows == want })
		eventually(t, "all answers", func() bool { return answers.Load() == int64(want) })
		eventually(t, "all have ended", func() bool {
			clock.pass(defaultLimits.udpAnswered)
			b.flows.expire()
			return b.Snapshot().LiveUDP == 0
		})
	}
	soakInRounds(t, b, round)
}

// TestSoakUDPForwarded has many clients of a forwarded UDP port, each with an address of its own.
func TestSoakUDPForwarded(t *testing.T) {
	if !soakHere(t) {
		return
	}
	clock := newClock()
	o, addr := forwardOptions(t, UDP, 53)
	b := newBridge(t, o, func(n *Network) {
		n.now = clock.now
		n.flows = newFlowTable(n)
	})
	server := guestUDP(t, b, 53)
	var serving sync.WaitGroup
	serving.Go(func() {
		buf := make([]byte, 100)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			server.WriteTo(buf[:n], from)
		}
	})
	defer serving.Wait()
	defer server.Close()
	round := func(first int) {
		t.Helper()
		var clients [soakBatch]net.Conn
		for i := range clients {
			c, err := net.Dial("udp4", addr.String())
			if err != nil {
				t.Fatal(err)
			}
			clients[i] = c
			fmt.Fprintf(c, "client %d", first+i)
		}
		buf := make([]byte, 100)
		for i, c := range clients {
			want := fmt.Sprintf("client %d", first+i)
			c.SetReadDeadline(time.Now().Add(hang))
			if n, err := c.Read(buf); err != nil || string(buf[:n]) != want {
				t.Fatalf("read %q, %v, want %q", buf[:n], err, want)
			}
			c.Close()
		}
		if got, want := b.Snapshot().UDPFlows, uint64(first+soakBatch); got != want {
			t.Errorf("%d flows, want %d", got, want)
		}
		clock.pass(defaultLimits.udpAnswered)
		b.flows.expire()
		if got := b.Snapshot().LiveUDP; got != 0 {
			t.Errorf("%d flows live, want none", got)
		}
	}
	soakInRounds(t, b, round)
}
