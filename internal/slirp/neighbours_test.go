package slirp

import (
	"fmt"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"docker-usermode-linux/internal/slirp/slirptest"
)

// TestNeighbours has a test for each bug of other programs of this kind, by the name of its report. Packages link, dns
// and dhcp have more of them. Short names: containers/gvisor-tap-vsock, google/gvisor, lima-vm/lima,
// rootless-containers/slirp4netns, moby/moby.
func TestNeighbours(t *testing.T) {
	for _, b := range []struct {
		report string
		test   func(*testing.T)
	}{
		// A client that has said all gets no answer: the end of one direction ends the other.
		{"lima#5264", testTCPHalfClose},
		{"lima#5264 forwarded", testForwardHalfClose},
		// `echo hello | nc` does not return although the server has closed, and connections pile up.
		{"gvisor-tap-vsock#387", testBothSayAll},
		// Each datagram of a storm of queries keeps a socket and a goroutine for 90 s.
		{"gvisor-tap-vsock#622", testUDPStorm},
		// The goroutines of UDP flows stay when the flows have ended.
		{"gvisor-tap-vsock#107", testUDPEndsLeaveNothing},
		// A port of the guest is dead for good when its flow was idle for 90 s.
		{"gvisor-tap-vsock#393", testUDPTimeout},
		// A socket with an error on it keeps a CPU busy.
		{"gvisor-tap-vsock#587", testUDPRefused},
		// After ten SYNs that were answered and then reset, no connection can be made.
		{"gvisor-tap-vsock#127", testTCPHalfOpenScan},
		// Queries over TCP have no answer.
		{"gvisor-tap-vsock#223", testDNSThroughBridge},
		// Connections whose program in the guest was killed stay for days, in FIN_WAIT2.
		{"slirp4netns#350", testTCPFinWait},
		{"slirp4netns#350 silent server", testTCPFinWaitSilent},
		{"slirp4netns#350 silent guest", testResetAfterEnd},
		// 500 published UDP ports cost 600 MB.
		{"moby#34328", testForwardManyPorts},
		// Published ports hide the addresses of their clients.
		{"moby#45742", testForwardSource},
		{"moby#45742 real client", testForwardOwnAddress},
		{"moby#45742 UDP", testForwardUDPSource},
		// fdbased drops frames when its socket is full, and all hangs from 20 connections on.
		{"gvisor#7379", testTCPManyConnections},
	} {
		t.Run(b.report, b.test)
	}
}

// testBothSayAll has both ends close when they have said all, the second one altogether, as netcat and its server do.
// Both see that, and nothing is left of the connection.
func testBothSayAll(t *testing.T) {
	o, addr := forwardOptions(t, TCP, 22)
	b := newBridge(t, o, nil)
	wait := tcpip.TCPTimeWaitTimeoutOption(time.Millisecond)
	if err := b.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &wait); err != nil {
		t.Fatal(err)
	}
	l, err := b.guest.ListenTCP(22)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	sayAll := func(client, server duplex) {
		t.Helper()
		fmt.Fprint(client, "hello\n")
		client.CloseWrite()
		if got := within(t, "the server", func() string { b, _ := io.ReadAll(server); return string(b) }); got != "hello\n" {
			t.Errorf("the server got %q", got)
		}
		server.Close()
		expectEOF(t, client)
		client.Close()
	}
	for range 10 {
		guest, host := fromHost(t, addr, l)
		sayAll(host, guest)
		guest, host = guestToHost(t, b)
		sayAll(guest, host)
	}
	eventually(t, "no flow", func() bool { return b.Snapshot().LiveTCP == 0 })
	eventually(t, "no connection in netstack", func() bool { return b.stack.Stats().TCP.CurrentConnected.Value() == 0 })
	if got := b.Snapshot().Resets; got != 0 {
		t.Errorf("Snapshot().Resets = %d, want 0", got)
	}
}

// testUDPEndsLeaveNothing checks that goroutines and sockets of UDP flows are gone when the flows are.
func testUDPEndsLeaveNothing(t *testing.T) {
	clock := newClock()
	b := newBridge(t, Options{Policy: testPolicy}, func(n *Network) {
		n.now = clock.now
		n.flows = newFlowTable(n)
	})
	to := udpAddr(gateway(echoUDP(t, "127.0.0.1:0").LocalAddr()))
	const flows = 100
	round := func() {
		for i := range uint16(flows) {
			c, err := b.guest.ListenUDP(10000 + i)
			if err != nil {
				t.Fatal(err)
			}
			ask(t, c, to, "hello")
			c.Close()
		}
		if got := b.Snapshot().LiveUDP; got != flows {
			t.Errorf("Snapshot().LiveUDP = %d, want %d", got, flows)
		}
		clock.pass(defaultLimits.udpAnswered)
		b.flows.expire()
	}
	round()
	before := held(t)
	if before.goroutines > flows {
		eventually(t, "the first goroutines end", func() bool { return runtime.NumGoroutine() < flows })
		before = held(t)
	}
	for range 5 {
		round()
	}
	expectBack(t, before)
}

// testTCPFinWaitSilent has a guest that has forgotten its closed connection and a server that says nothing, so that
// nobody asks. The keep-alive does.
func testTCPFinWaitSilent(t *testing.T) {
	b := newBridge(t, Options{Policy: testPolicy}, nil)
	linger := tcpip.TCPLingerTimeoutOption(time.Millisecond)
	if err := b.guest.Stack.SetTransportProtocolOption(tcp.ProtocolNumber, &linger); err != nil {
		t.Fatal(err)
	}
	guest, host := guestToHost(t, b)
	var flow *tcpFlow
	eventually(t, "a flow", func() bool {
		b.flows.mu.RLock()
		defer b.flows.mu.RUnlock()
		for _, e := range b.flows.flows {
			flow = e.(*tcpFlow)
		}
		return flow != nil
	})
	for _, o := range []tcpip.SettableSocketOption{
		ptr(tcpip.KeepaliveIdleOption(10 * time.Millisecond)), ptr(tcpip.KeepaliveIntervalOption(10 * time.Millisecond)),
	} {
		if err := flow.guest.ep.SetSockOpt(o); err != nil {
			t.Fatal(err)
		}
	}
	guest.Close()
	expectEOF(t, host)
	eventually(t, "no connection in netstack", func() bool { return b.stack.Stats().TCP.CurrentConnected.Value() == 0 })
	eventually(t, "no flow", func() bool { return b.Snapshot().LiveTCP == 0 })
	eventually(t, "the server hears of it", func() bool {
		_, err := host.Write([]byte("anybody?"))
		return err != nil
	})
}

// testResetAfterEnd has the host reset a connection that it had half closed before, while the guest is silent: nobody
// reads from the host any more, and the guest is told nevertheless.
func testResetAfterEnd(t *testing.T) {
	pairs(t, func(t *testing.T, guest *slirptest.Conn, host *net.TCPConn) {
		host.CloseWrite()
		expectEOF(t, guest)
		host.SetLinger(0)
		host.Close()
		eventually(t, "the guest hears of it", func() bool { return guest.State() == tcp.StateClose })
	})
}
