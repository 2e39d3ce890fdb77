// Package slirp gives a guest kernel a network without any privilege on the host: a TCP/IP stack in user space
// (gVisor's netstack) that terminates the guest's connections and carries their data over ordinary sockets of the
// host, and the other way round for forwarded ports.
//
// The guest sees what users know from the classic slirp: its own address is 10.0.2.15/24, the gateway 10.0.2.2, which
// answers ping and DHCP, and the name server 10.0.2.3.
package slirp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"docker-usermode-linux/internal/slirp/dns"
	"docker-usermode-linux/internal/slirp/link"
)

// Theory of operation
//
// Words. The host is the network name space that this process runs in (a container's, mostly), the guest is the
// kernel at the other end of the link, the gateway is us. A flow is a TCP connection, a UDP association or a series
// of pings that crosses the bridge. It has an initiating side (ini) and a target side (tgt), both named as the guest
// sees them.
//
//	guest kernel == link ==> netstack ==+== tcp.go   dial the host, then accept the guest's SYN, then splice
//	                                    +== udp.go   one host socket per guest socket
//	                                    +== icmp.go  ping sockets
//	                                    +== our own services: DHCP, DNS, ping
//	host sockets ==> forward.go ==> netstack ==> link ==> guest kernel
//
// Life. New binds every forwarded port and takes over the link's socket, but starts nothing. Run starts all
// goroutines and returns when all of them have ended. It ends when its context does, on Close, or when the guest's
// kernel closes its end of the link.
//
// Goroutines. The link's reader must never wait (package link says why): handleTCP, handleUDP and handleICMP run in
// it and neither block nor send data to the guest. All else has goroutines of its own: two per TCP connection, one
// per UDP socket. All of them are counted in Network.running.
//
// Order of the end: cancel the context and close the listeners, so that nothing new starts; end the link, which frees
// every sender that waits for the guest; reset all flows; close netstack; wait for all.

// The addresses of the guest's network.
var (
	GuestAddr   = netip.AddrFrom4([4]byte{10, 0, 2, 15})
	GatewayAddr = netip.AddrFrom4([4]byte{10, 0, 2, 2})
	DNSAddr     = netip.AddrFrom4([4]byte{10, 0, 2, 3})
	// GuestMAC is the address to give to the guest's NIC. Another one works as well: it is learned from the guest's
	// frames.
	GuestMAC = net.HardwareAddr{0x52, 0x54, 0x00, 0x12, 0x34, 0x56}
	// GatewayMAC is the gateway's own, the classic slirp's.
	GatewayMAC = net.HardwareAddr{0x52, 0x55, 0x0a, 0x00, 0x02, 0x02}
)

const (
	// PrefixBits is the length of the prefix of the guest's network.
	PrefixBits = 24
	// MTU of the link, in bytes.
	MTU = 1500
)

// Proto is a protocol whose ports can be forwarded.
type Proto uint8

// The protocols.
const (
	TCP Proto = iota
	UDP
	icmpEcho // has flows, but no ports to forward
	numProtos
)

// String returns the name as it stands in logs and in PORTS.
func (p Proto) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case icmpEcho:
		return "icmp"
	}
	return fmt.Sprintf("proto %d", uint8(p))
}

// Forward is one port of the host that leads to one of the guest.
type Forward struct {
	Proto Proto
	// Host is where to listen. An invalid address means all addresses, IPv4 and IPv6; 0.0.0.0 and :: those of
	// one family.
	Host netip.AddrPort
	// Guest is the port at GuestAddr.
	Guest uint16
}

// Options of a Network.
type Options struct {
	// Socket is the host's end of link.SocketPair. New takes ownership, also when it fails.
	Socket *os.File
	// MTU of the link in bytes; 0 means the constant MTU.
	MTU int
	// Forwards are bound by New, at once.
	Forwards []Forward
	// ResolvConf is the path of the resolv.conf(5) whose name servers answer the guest's queries. It is read again when
	// it changes.
	ResolvConf string
	// Policy says what the guest reaches. The zero value is closed where it matters; see Policy.
	Policy Policy
	// Log gets one debug line per flow and warnings that a user can act upon.
	Log zerolog.Logger
}

// Network is one guest's network.
type Network struct {
	log    zerolog.Logger
	policy Policy
	limits limits
	now    func() time.Time

	link      *link.Endpoint
	stack     *stack.Stack
	forwarder *tcp.Forwarder
	flows     *flowTable
	stats     counters
	dns       *dns.Relay
	resolv    string

	tcpForwards []*tcpForward
	udpForwards []*udpForward

	syns           synTable
	waitingClients atomic.Int64 // of forwarded ports, not yet accepted by the guest

	up   chan struct{} // closed when the guest's NIC is up
	isUp atomic.Bool   // only set by the link's reader

	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup // every goroutine but the one in Run
	started atomic.Bool
	closing sync.Once
}

// limits are bounds on what a guest or a client can make us hold, and the times after which idle things end. Tests
// shorten them.
type limits struct {
	flows       [numProtos]int
	pendingSYNs int
	// Clients of forwarded ports that the guest has not accepted yet.
	pendingClients int
	dial           time.Duration // of a connection to the host
	guestUp        time.Duration // how long a forwarded connection waits for the guest's NIC
	udpNew         time.Duration // UDP without an answer yet
	udpAnswered    time.Duration
	udpDNS         time.Duration
	ping           time.Duration
	sweep          time.Duration // how often idle flows are looked for
}

var defaultLimits = limits{
	// A TCP flow costs two goroutines and, while data moves, two buffers of 64 KiB: 8,192 idle ones are some 100 MiB
	// with their sockets. Docker's default for open files is above a million, so the flows are what to bound.
	flows: [numProtos]int{TCP: 8192, UDP: 4096, icmpEcho: 256},
	// Connections that are being dialled hold one descriptor and a goroutine each.
	pendingSYNs: 4096, pendingClients: 4096,
	dial:    30 * time.Second,
	guestUp: 60 * time.Second,
	// RFC 4787 section 4.3 asks for 2 minutes at least, Linux's conntrack has 30 s before the first answer and 120 s
	// after.
	udpNew:      30 * time.Second,
	udpAnswered: 180 * time.Second,
	udpDNS:      10 * time.Second, // a query and its answer; storms of queries must not pile up
	ping:        30 * time.Second,
	sweep:       5 * time.Second,
}

// New makes the network and binds all forwarded ports. The error names each port that could not be bound.
func New(o Options) (*Network, error) {
	if o.MTU == 0 {
		o.MTU = MTU
	}
	ep, err := link.New(link.Options{
		Socket:  o.Socket,
		MTU:     uint32(o.MTU),
		Address: linkAddress(GatewayMAC),
		Peer:    linkAddress(GuestMAC),
	})
	if err != nil {
		return nil, err
	}
	n := &Network{
		log:    o.Log,
		policy: o.Policy,
		limits: defaultLimits,
		now:    time.Now,
		link:   ep,
		dns:    dns.New(dns.Options{ResolvConf: o.ResolvConf}),
		resolv: o.ResolvConf,
		up:     make(chan struct{}),
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.flows = newFlowTable(n)
	n.syns.init()
	if err := n.bindForwards(o.Forwards); err != nil {
		n.cancel()
		ep.Close()
		return nil, err
	}
	if err := n.newStack(); err != nil {
		n.shut()
		return nil, err
	}
	return n, nil
}

// Run serves until ctx ends, Close is called or the guest closes its end of the link, which is no error. It can be
// called once.
func (n *Network) Run(ctx context.Context) error {
	if n.started.Swap(true) {
		return errors.New("the guest's network runs already, or is closed")
	}
	services, err := n.bindServices()
	if err != nil {
		n.shut()
		n.waitForAll()
		return err
	}
	stop := context.AfterFunc(ctx, n.shut)
	defer stop()

	for _, f := range n.tcpForwards {
		n.running.Go(func() { n.acceptLoop(f) })
	}
	for _, f := range n.udpForwards {
		n.running.Go(func() { n.clientLoop(f) })
	}
	n.running.Go(n.sweepLoop)
	for _, serve := range services {
		n.running.Go(serve)
	}
	err = n.link.Run()
	n.shut()
	n.waitForAll()
	if errors.Is(err, link.ErrGuestClosed) {
		n.log.Debug().Msg("guest closed its network interface")
		return nil
	}
	return err
}

// Close ends the network: listeners, flows and stack. Run then returns; Close does not wait for it.
func (n *Network) Close() error {
	n.shut()
	if !n.started.Swap(true) {
		n.stack.Wait()
	}
	return nil
}

// Up is closed when the guest has sent the first packet from its address, which its gratuitous ARP is: it can be
// reached.
func (n *Network) Up() <-chan struct{} { return n.up }

// shut ends everything, without waiting. See the order in the theory of operation.
func (n *Network) shut() {
	n.closing.Do(func() {
		n.cancel()
		n.closeForwards()
		n.link.Close()
		n.flows.closeAll()
		if n.stack != nil {
			n.stack.Close()
		}
	})
}

// waitForAll returns when every goroutine has ended. A handshake with the guest that began while the stack closed
// would go on for minutes, and netstack has no way to cancel it but to abort its endpoint, so that is repeated until
// nothing runs.
func (n *Network) waitForAll() {
	ended := make(chan struct{})
	go func() {
		n.running.Wait()
		close(ended)
	}()
	for {
		select {
		case <-ended:
			n.stack.Close() // what the last goroutines left behind
			n.stack.Wait()
			return
		case <-time.After(10 * time.Millisecond):
			n.stack.Close()
		}
	}
}

// SocketPair makes the two ends of the link: host for Options.Socket, guest for the kernel.
func SocketPair() (host, guest *os.File, err error) { return link.SocketPair() }
