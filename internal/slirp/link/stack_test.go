package link

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"docker-usermode-linux/internal/slirp/slirptest"
	"docker-usermode-linux/internal/vhostuser"
)

var (
	hostAddrs  = []netip.Addr{netip.MustParseAddr("10.0.2.2"), netip.MustParseAddr("fd00::2")}
	guestAddrs = []netip.Addr{netip.MustParseAddr("10.0.2.15"), netip.MustParseAddr("fd00::15")}
)

// newStack makes a netstack with both families on a link.
func newStack(t testing.TB, ep stack.LinkEndpoint, addrs []netip.Addr) *stack.Stack {
	t.Helper()
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	t.Cleanup(func() {
		ep.Close() // Wait waits for it
		s.Close()
		s.Wait()
	})
	if err := s.CreateNIC(1, ep); err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		addr := tcpip.ProtocolAddress{Protocol: proto(a), AddressWithPrefix: tcpip.AddrFromSlice(a.AsSlice()).WithPrefix()}
		if err := s.AddProtocolAddress(1, addr, stack.AddressProperties{}); err != nil {
			t.Fatal(err)
		}
	}
	s.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: 1}, {Destination: header.IPv6EmptySubnet, NIC: 1},
	})
	return s
}

func proto(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}

func full(a netip.Addr, port uint16) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: 1, Addr: tcpip.AddrFromSlice(a.AsSlice()), Port: port}
}

// connect opens a TCP connection from the guest to the host.
func connect(t testing.TB, host, guest *stack.Stack, to netip.Addr) (atHost, atGuest *gonet.TCPConn) {
	t.Helper()
	return connectTo(t, host, guest, to, 80)
}

// connectTo is connect to a port.
func connectTo(t testing.TB, host, guest *stack.Stack, to netip.Addr, port uint16) (atHost, atGuest *gonet.TCPConn) {
	t.Helper()
	l, err := gonet.ListenTCP(host, full(to, port), proto(to))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(context.Background(), hang)
	defer cancel()
	atGuest, err = gonet.DialContextTCP(ctx, guest, full(to, port), proto(to))
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return c.(*gonet.TCPConn), atGuest
}

// copyAll sends data from one end to the other, and compares.
func copyAll(t testing.TB, from, to *gonet.TCPConn, data []byte) {
	var sender sync.WaitGroup
	sender.Go(func() {
		if _, err := from.Write(data); err != nil {
			t.Errorf("Write() = %v", err)
		}
		from.CloseWrite()
	})
	got, err := io.ReadAll(to)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("received %d bytes, %v, want %d", len(got), err, len(data))
	}
	sender.Wait()
}

func pattern(size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(i) ^ byte(i>>8)
	}
	return b
}

// TestStacks connects two netstacks by guests of different abilities, over both families, and looks at the frames.
func TestStacks(t *testing.T) {
	const large = featureHostTSO4 | featureHostTSO6 | featureHostECN | featureGuestTSO4 | featureGuestTSO6
	data := pattern(2 << 20)
	for _, tt := range []struct {
		name  string
		lacks uint64
		large bool
	}{
		{"all", 0, true},
		{"no event index", vhostuser.FeatureEventIdx | vhostuser.FeatureIndirect, true},
		{"no large segments", large, false},
		{"no merged buffers", large | featureMergeRX, false},
		{"no checksums", large | featureCsum | featureGuestCsum, false},
		{"nothing", ^uint64(0), false},
	} {
		for family, to := range hostAddrs {
			t.Run(fmt.Sprintf("%s, %s", tt.name, to), func(t *testing.T) {
				var log guestLog
				l := start(t, func(n *slirptest.NIC) {
					n.Features &^= tt.lacks
					n.Received = log.add
				})
				host, guest := newStack(t, l, hostAddrs), newStack(t, l.nic, guestAddrs)
				atHost, atGuest := connect(t, host, guest, to)
				defer atHost.Close()
				defer atGuest.Close()
				copyAll(t, atHost, atGuest, data)
				copyAll(t, atGuest, atHost, data)

				biggest := 0
				for _, f := range log.all() {
					biggest = max(biggest, len(f.frame))
					if f.hdr.gsoType == gsoNone {
						if len(f.frame) > mtu+header.EthernetMinimumSize {
							t.Fatalf("frame of %d bytes with %+v", len(f.frame), f.hdr)
						}
					} else {
						want := wantHeader(f.frame, family)
						want.gsoSize = f.hdr.gsoSize
						segment := int(want.hdrLen+want.gsoSize) - header.EthernetMinimumSize
						if !tt.large || f.hdr != want || segment > mtu || segment < mtu-40 { // options of TCP
							t.Fatalf("frame of %d bytes with %+v, want %+v", len(f.frame), f.hdr, want)
						}
					}
					if tt.lacks&featureGuestCsum != 0 && f.hdr.flags != 0 {
						t.Fatalf("flags %#x for a guest that does not know them", f.hdr.flags)
					}
				}
				if tt.large && biggest < 1<<15 {
					t.Errorf("the guest's largest frame has %d bytes", biggest)
				}
				s := l.Stats()
				if got := s.BytesIn.Load() / s.FramesIn.Load(); tt.large != (got > mtu) {
					t.Errorf("the guest's frames have %d bytes on average", got)
				}
				if in, out := s.DroppedIn.Load(), s.DroppedOut.Load(); in != 0 || out != 0 {
					t.Errorf("dropped %d in, %d out, want none", in, out)
				}
			})
		}
	}
}

// wantHeader is what a large frame must come with, but for its gsoSize.
func wantHeader(frame []byte, family int) virtioHeader {
	h := virtioHeader{flags: flagNeedsCsum, gsoType: gsoTCPv4, csumStart: 34, csumOffset: 16}
	if family == 1 {
		h.gsoType, h.csumStart = gsoTCPv6, 54
	}
	h.hdrLen = h.csumStart + uint16(header.TCP(frame[h.csumStart:]).DataOffset())
	h.buffers = uint16((virtioHeaderBytes + len(frame) + 4095) / 4096)
	return h
}

// TestFullLoad has both directions full while the guest stops now and then: nothing is dropped.
func TestFullLoad(t *testing.T) {
	l := start(t, nil)
	host, guest := newStack(t, l, hostAddrs), newStack(t, l.nic, guestAddrs)
	data := pattern(8 << 20)
	var all sync.WaitGroup
	for _, to := range hostAddrs {
		atHost, atGuest := connect(t, host, guest, to)
		defer atHost.Close()
		defer atGuest.Close()
		all.Go(func() { copyAll(t, atHost, atGuest, data) })
		all.Go(func() { copyAll(t, atGuest, atHost, data) })
	}
	stop := make(chan struct{})
	var pausing sync.WaitGroup
	pausing.Go(func() {
		for {
			for _, on := range []bool{true, false} {
				l.nic.Pause(on)
				in := l.Stats().FramesIn.Load()
				for range 1000 {
					select {
					case <-stop:
						l.nic.Pause(false)
						return
					default:
					}
					if l.Stats().FramesIn.Load() > in+20 {
						break
					}
				}
			}
		}
	})
	all.Wait()
	close(stop)
	pausing.Wait()
	s := l.Stats()
	if in, out := s.DroppedIn.Load(), s.DroppedOut.Load(); in != 0 || out != 0 {
		t.Errorf("dropped %d in, %d out, want none", in, out)
	}
}
