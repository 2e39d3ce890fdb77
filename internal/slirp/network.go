// Package slirp gives a guest kernel a network without any privilege on the host: a TCP/IP stack in user space
// (gVisor's netstack) that terminates the guest's connections and carries their data over ordinary sockets of the
// host, and the other way round for forwarded ports.
//
// The guest sees what users know from the classic slirp: its own address is 10.0.2.15/24, the gateway 10.0.2.2, which
// answers ping and DHCP, and the name server 10.0.2.3. The same numbers are in fd00:10:0:2::/64 for IPv6, where the gateway
// also answers router solicitations.
package slirp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
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
//	                                    +== our own services: DHCP, DNS, ping, ndp.go
//	host sockets ==> ports.go ==+== forward.go    TCP: dial the guest, then splice
//	 (listen.go)                +== udpclient.go  UDP: one flow per client
//	                               ==> netstack ==> link ==> guest kernel
//
// Life. New binds every forwarded port and makes the link's socket, but starts nothing. Run starts all
// goroutines and returns when all of them have ended. It ends when its context does, on Close, or when the guest's
// kernel closes its end of the link.
//
// Goroutines. The link's reader must never wait (package link says why): handleTCP, handleUDP and handleICMP run in
// it and neither block nor send data to the guest. All else has goroutines of its own: two per TCP connection, one
// per UDP socket of the guest, one for all forwarded ports, one that waits for the host's ends of all TCP connections,
// one for what the reader leaves (pathmtu.go). All of them are counted in Network.running.
//
// Order of the end: cancel the context and stop watching the ports, so that nothing new starts; end the link, which
// frees every sender that waits for the guest; reset all flows; close netstack; wait for all; close the ports.

// The addresses of the guest's network.
var (
	GuestAddr   = netip.AddrFrom4([4]byte{10, 0, 2, 15})
	GatewayAddr = netip.AddrFrom4([4]byte{10, 0, 2, 2})
	DNSAddr     = netip.AddrFrom4([4]byte{10, 0, 2, 3})
	// The same for IPv6, in a prefix of unique local addresses (RFC 4193) that reads like the one of IPv4. All zeros
	// would be shorter, and clash with what others have chosen for that reason.
	GuestAddr6   = netip.MustParseAddr("fd00:10:0:2::15")
	GatewayAddr6 = netip.MustParseAddr("fd00:10:0:2::2")
	DNSAddr6     = netip.MustParseAddr("fd00:10:0:2::3")
	// GatewayLinkLocal is the address that routers have to have (RFC 4861 section 6.1.2), made of GatewayMAC.
	GatewayLinkLocal = netip.MustParseAddr("fe80::5055:aff:fe00:202")
	// GuestMAC is the address to give to the guest's NIC. Another one works as well: it is learned from the guest's
	// frames.
	GuestMAC = net.HardwareAddr{0x52, 0x54, 0x00, 0x12, 0x34, 0x56}
	// GatewayMAC is the gateway's own, the classic slirp's.
	GatewayMAC = net.HardwareAddr{0x52, 0x55, 0x0a, 0x00, 0x02, 0x02}
)

const (
	// PrefixBits is the length of the prefix of the guest's network.
	PrefixBits = 24
	// PrefixBits6 is that of its IPv6 network.
	PrefixBits6 = 64
	// MTU of the link, in bytes.
	MTU = 1500
)

// Proto is a protocol that has flows.
type Proto uint8

// The protocols.
const (
	TCP Proto = iota
	UDP
	ICMP // echo, of both families; it has no ports to forward
	numProtos
)

// String returns the name as it stands in logs and in PORTS.
func (p Proto) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case ICMP:
		return "icmp"
	}
	return fmt.Sprintf("proto %d", uint8(p))
}

// Forward is a run of ports of the host that leads to one of the guest.
type Forward struct {
	Proto Proto
	// Host is where to listen: the first port of the run. An invalid address means all addresses, IPv4 and IPv6;
	// 0.0.0.0 and :: those of one family.
	Host netip.AddrPort
	// Guest is the guest's port for the first one.
	Guest uint16
	// Count is the length of the run; 0 is 1.
	Count int
	// BestEffort leaves out ports that are taken, instead of failing. It is an error when all of them are.
	BestEffort bool
}

// Source is what the guest takes for the client of a forwarded port.
type Source uint8

// The sources.
const (
	// SourceClient is the client's own address, where the guest can answer to it; else the gateway's.
	SourceClient Source = iota
	// SourceGateway is always the gateway's address.
	SourceGateway
	// SourceProxy is the gateway's address too, and a PROXY protocol v2 header tells the client's.
	SourceProxy
)

// Options of a Network.
type Options struct {
	// Socket is the path of the unix socket that the guest's NIC connects to, by vhost-user (UML:
	// virtio_uml.device=PATH:1). New makes it; it is removed when the guest has connected, or at the end.
	Socket string
	// OldDriver says that the guest's kernel may be older than Linux 6.5 (vhostuser.Options).
	OldDriver bool
	// MTU of the link in bytes; 0 means the constant MTU.
	MTU int
	// Forwards are bound by New, at once.
	Forwards []Forward
	// ResolvConf is the path of the resolv.conf(5) whose name servers answer the guest's queries. It is read again when
	// it changes.
	ResolvConf string
	// Hosts are names that our DNS answers itself, in lower case and without a dot at the end.
	Hosts map[string][]netip.Addr
	// Source is what the guest takes for the client of a forwarded port.
	Source Source
	// Policy says what the guest reaches. The zero value is closed where it matters; see Policy.
	Policy Policy
	// Pcap gets every frame of the guest's NIC in pcap format (pcap.go), as long as Run runs; nil is none. It stays the
	// caller's, who may close it when Run has returned.
	Pcap io.Writer
	// Log gets one debug line per flow and warnings that a user can act upon.
	Log zerolog.Logger
}

// Network is one guest's network.
type Network struct {
	log    zerolog.Logger
	policy Policy
	source Source
	limits limits
	now    func() time.Time

	link      *link.Endpoint
	stack     *stack.Stack
	forwarder *tcp.Forwarder
	flows     *flowTable
	stats     counters
	capture   *capture // nil is none
	dns       *dns.Relay
	resolv    string

	sockets        hostSockets
	ports          portSet
	clients        clientTable
	known          clientMemory
	waitingClients atomic.Int64 // of forwarded TCP ports, not yet accepted by the guest

	syns synTable
	late chan lateDelivery

	up      chan struct{} // closed when the guest's NIC is up
	isUp    atomic.Bool   // only set by the link's reader
	upSince atomic.Int64  // likewise, before up is closed; ns since 1970
	// hasIPv6 says that the guest has sent something from its IPv6 address; likewise.
	hasIPv6 atomic.Bool

	soliciting atomic.Bool // the guest asked for a router

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
	guestUp        time.Duration // how long a forwarded connection waits for the guest
	servers        time.Duration // after the guest's NIC came up, in which its servers may still start
	silence        time.Duration // of the guest, after which a forwarded connection is tried another way
	linger         time.Duration // in which a guest has to take something of what is left when both sides have ended
	udpNew         time.Duration // UDP without an answer yet
	udpAnswered    time.Duration
	udpDNS         time.Duration
	ping           time.Duration
	sweep          time.Duration // how often idle flows are looked for
	probe          time.Duration // how often the guest is asked for before it is up
	advertise      time.Duration // between router advertisements
}

var defaultLimits = limits{
	// A TCP flow costs two goroutines: 8,192 idle ones are some 100 MiB with their sockets. What they hold when nothing
	// moves is for bufferSize to bound. Docker's default for open files is above a million, so the flows are what to
	// bound.
	flows: [numProtos]int{TCP: 8192, UDP: 4096, ICMP: 256},
	// Connections that are being dialled hold one descriptor and a goroutine each.
	pendingSYNs: 4096, pendingClients: 4096,
	dial:    30 * time.Second,
	guestUp: 60 * time.Second,
	// A userland with many services; nobody else's first client waits for that long.
	servers: 30 * time.Second,
	// Linux's first retransmission of a SYN comes after as long: it takes the packet for lost.
	silence: time.Second,
	// About what Linux grants the peer of a closed socket (tcp_orphan_retries).
	linger: time.Minute,
	// RFC 4787 section 4.3 asks for 2 minutes at least, Linux's conntrack has 30 s before the first answer and 120 s
	// after.
	udpNew:      30 * time.Second,
	udpAnswered: 180 * time.Second,
	udpDNS:      10 * time.Second, // a query and its answer; storms of queries must not pile up
	ping:        30 * time.Second,
	sweep:       5 * time.Second,
	probe:       200 * time.Millisecond,
	advertise:   10 * time.Minute, // RFC 4861 section 6.2.1
}

// New makes the network and binds all forwarded ports. The error names each port that could not be bound.
func New(o Options) (*Network, error) {
	if o.MTU == 0 {
		o.MTU = MTU
	}
	ep, err := link.New(link.Options{
		Path:      o.Socket,
		MTU:       uint32(o.MTU),
		Address:   linkAddress(GatewayMAC),
		Peer:      linkAddress(GuestMAC),
		OldDriver: o.OldDriver,
	})
	if err != nil {
		return nil, err
	}
	n := &Network{
		log:    o.Log,
		policy: o.Policy,
		source: o.Source,
		limits: defaultLimits,
		now:    time.Now,
		link:   ep,
		dns:    dns.New(dns.Options{ResolvConf: o.ResolvConf, Hosts: o.Hosts}),
		resolv: o.ResolvConf,
		up:     make(chan struct{}),
		late:   make(chan lateDelivery, waitingTooBig),
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.flows = newFlowTable(n)
	n.syns.init()
	n.capture = newCapture(o.Pcap, n)
	if err := n.sockets.open(); err != nil {
		n.shut()
		return nil, err
	}
	if err := n.bindForwards(o.Forwards); err != nil {
		n.shut()
		return nil, err
	}
	if err := n.newStack(); err != nil {
		n.shut()
		n.ports.close()
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

	if len(n.ports.all) > 0 {
		n.running.Go(n.watchPorts)
		n.running.Go(n.wakePortsWhenUp)
	}
	n.running.Go(n.sockets.watch)
	n.running.Go(n.deliverLate)
	n.running.Go(func() { n.every(n.limits.sweep, nil, n.flows.expire) })
	n.running.Go(func() { n.every(n.limits.probe, n.up, n.askForGuest) })
	n.running.Go(n.capture.run)
	n.running.Go(func() { n.every(n.limits.advertise, nil, n.advertiseAgain) })
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

// every calls f at intervals until done is closed (nil never is) or the network ends.
func (n *Network) every(interval time.Duration, done <-chan struct{}, f func()) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-done:
			return
		case <-tick.C:
			f()
		}
	}
}

// Close ends the network: listeners, flows and stack. Run then returns; Close does not wait for it.
func (n *Network) Close() error {
	n.shut()
	if !n.started.Swap(true) {
		n.stack.Wait()
		n.ports.close()
	}
	return nil
}

// Up is closed when the guest has sent the first packet from its address, which its gratuitous ARP is, or the answer to
// ours: it can be reached.
func (n *Network) Up() <-chan struct{} { return n.up }

// shut ends everything, without waiting. See the order in the theory of operation.
func (n *Network) shut() {
	n.closing.Do(func() {
		n.cancel()
		n.ports.stop()
		n.link.Close()
		n.flows.closeAll()
		n.sockets.stop()
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
			n.ports.close()
			return
		case <-time.After(10 * time.Millisecond):
			n.stack.Close()
		}
	}
}
