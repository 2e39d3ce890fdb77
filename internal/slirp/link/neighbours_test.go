package link

import (
	"fmt"
	"sync"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// TestNeighbours has a test for each bug of other programs of this kind, by the name of its report; see package slirp.
// Those here are of netstack's own link, fdbased.
func TestNeighbours(t *testing.T) {
	// One frame for another address ends reception for good.
	t.Run("gvisor#14448", testForeignMAC)
	// Frames are dropped when the other end is slow for a moment; from 20 connections on, all of them hang.
	t.Run("gvisor#7379", testManyConnections)
}

// testForeignMAC sends frames for others between those for us.
func testForeignMAC(t *testing.T) {
	l := start(t, nil)
	const frames = 300 // more than a ring has
	for i := range frames {
		l.send(frame(tcpip.LinkAddress(fmt.Sprintf("\x02\x00\x00\x00\x99%c", i%100)), header.IPv4ProtocolNumber, []byte("foreign")))
		l.send(frame(ours, header.IPv4ProtocolNumber, []byte("ours")))
	}
	eventually(t, "our frames", func() bool { return l.sink.count() == frames })
	for i, p := range l.sink.packets {
		if string(p) != "ours" {
			t.Fatalf("packet %d is %q", i, p)
		}
	}
	if got := l.Stats().DroppedIn.Load(); got != frames {
		t.Errorf("DroppedIn = %d, want %d", got, frames)
	}
}

// testManyConnections moves data on 60 connections at once, both ways, and loses nothing.
func testManyConnections(t *testing.T) {
	l := start(t, nil)
	host, guest := newStack(t, l, hostAddrs), newStack(t, l.nic, guestAddrs)
	data := pattern(256 << 10)
	var all sync.WaitGroup
	for i := range 60 {
		atHost, atGuest := connectTo(t, host, guest, hostAddrs[i%len(hostAddrs)], uint16(1000+i))
		for _, c := range []struct{ from, to *gonet.TCPConn }{{atHost, atGuest}, {atGuest, atHost}} {
			all.Go(func() { copyAll(t, c.from, c.to, data) })
		}
		defer atHost.Close()
		defer atGuest.Close()
	}
	all.Wait()
	s := l.Stats()
	if in, out := s.DroppedIn.Load(), s.DroppedOut.Load(); in != 0 || out != 0 {
		t.Errorf("dropped %d in, %d out, want none", in, out)
	}
}
