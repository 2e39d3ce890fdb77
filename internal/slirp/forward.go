package slirp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// Theory of operation
//
// A client of a forwarded TCP port (listen.go and ports.go have the sockets, udpclient.go has UDP) is accepted at
// once, since the kernel has already done so, and then waits: first for the guest's NIC to come up (bounded), then for
// the guest to accept. A guest that refuses resets the client.
//
// A guest's network is up long before its servers are. So a client that came before that, and has waited already, is not
// refused by the first answer: it goes on waiting, within the same bound, until there is a server. The same holds for a
// client that comes soon after, unless the port has served one before.
//
// There are up to three ways to the guest, tried in this order until one is accepted:
//
//  1. from the client's address (clientaddr.go says which) to the guest's address of that family,
//  2. from the gateway's address to the same,
//  3. from the gateway's other address to the guest's other one: a program that listens on 0.0.0.0 only serves clients
//     of IPv6 too, and the reverse.
//
// The next way begins when the last one is refused, or is silent for a second. A silent one goes on meanwhile, and
// wins if it is answered before the later one: a guest that is merely slow answers in order. So a later way that is
// answered alone says that the guest does not answer the earlier one, which is remembered: a client's address for
// minutes (clientaddr.go), the family of a port for seconds.
//
// A guest that refuses the client's address but accepts the gateway's has a packet filter that means this client: it
// is refused, and 3 is not tried. One that drops a client's packets looks like one that has its network for itself. So
// silence only counts for addresses that a guest may have itself (mayBeGuests), and for IPv6 in a guest that has shown
// none; any other client goes on waiting for the guest, and a filter that drops it stands.

// familyHint is how long a port's clients of one family are led to the guest's other family at once, with TCP after two of
// them were accepted by that alone: one may have come when a program that listens on both was just about to begin. It
// spares the attempts that would fail; a program that begins to listen on both is noticed after that time.
const familyHint = 5 * time.Second

// acceptClients takes the waiting clients of a port, up to its budget.
func (n *Network) acceptClients(f *forward) {
	for range acceptBudget {
		fd, from, errno := rawAccept(f.fd)
		switch errno {
		case 0:
			n.running.Go(func() { n.serveClient(f, fd, from) })
		case unix.EAGAIN:
			return
		case unix.EINTR, unix.ECONNABORTED:
		default:
			n.pausePort(f, os.NewSyscallError("accept", errno))
			return
		}
	}
}

// serveClient carries one connection to the guest. It owns fd.
func (n *Network) serveClient(f *forward, fd int, client netip.AddrPort) {
	conn, err := n.sockets.add(fd, client)
	if err != nil {
		n.log.Debug().Stringer("proto", TCP).Stringer("ini", client).Err(err).Msg("client lost")
		return
	}
	f.clients.Add(1)
	f.live.Add(1)
	defer f.live.Add(-1)
	if n.flows.full(TCP) {
		conn.reset()
		return
	}
	if n.waitingClients.Add(1) > int64(n.limits.pendingClients) {
		n.waitingClients.Add(-1)
		n.stats.pendingLimit.Add(1)
		conn.reset()
		return
	}
	ctx, cancel := context.WithTimeout(n.ctx, n.limits.guestUp)
	early := !n.isUp.Load()
	again := func() bool { return early || n.mayStart(f) }
	flow, err := n.reachGuest(ctx, f, client, again())
	for isRefused(err) && again() && sleep(ctx, n.retryPause()) {
		flow, err = n.reachGuest(ctx, f, client, true)
	}
	cancel()
	if err == nil {
		f.served.Store(true)
	}
	n.waitingClients.Add(-1)
	if err == nil && n.source == SourceProxy {
		var dst netip.AddrPort
		if dst, err = conn.local(); err == nil {
			err = flow.guest.writeFirst(proxyHeader(client, dst))
		}
		if err != nil {
			flow.guest.abort()
			flow.guest.close()
		}
	}
	if err != nil {
		n.stats.guestRefused.Add(1)
		n.log.Debug().Stringer("proto", TCP).Stringer("ini", client).Uint16("port", f.guest).Err(err).
			Msg("guest did not accept")
		conn.reset()
		return
	}
	flow.host = conn
	n.run(flow)
}

// mayStart says whether the server of a port, which refuses, may be one that is still to come.
func (n *Network) mayStart(f *forward) bool {
	return !f.served.Load() && n.now().Sub(time.Unix(0, n.upSince.Load())) < n.limits.servers
}

const (
	// leastRetry is the pause after a refusal of an early client, retriesPerSecond what all of them together may cost a
	// guest that boots.
	leastRetry       = 20 * time.Millisecond
	retriesPerSecond = 500
)

// retryPause is how long an early client that was refused waits until it tries again.
func (n *Network) retryPause() time.Duration {
	return max(leastRetry, time.Duration(n.waitingClients.Load())*time.Second/retriesPerSecond)
}

// isRefused says whether the guest answered that no program listens.
func isRefused(err error) bool {
	refusal, ok := errors.AsType[stackError](err)
	if ok {
		_, ok = refusal.err.(*tcpip.ErrConnectionRefused)
	}
	return ok
}

// sleep waits, and reports false if ctx has ended.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// way is one way to connect to the guest.
type way struct {
	from, to netip.AddrPort

	state wayState
	err   tcpip.Error // of wayImpassable and wayRefused
	ep    tcpip.Endpoint
	wq    waiter.Queue
	entry waiter.Entry
}

type wayState uint8

const (
	wayUntried    wayState = iota
	wayImpassable          // not for this client, or netstack has no port for it
	waySilent              // not answered yet
	wayRefused
	wayAccepted
)

// The ways to the guest, as the theory of operation numbers them.
const (
	fromClient = iota
	fromGateway
	toOtherFamily
	numWays
)

const (
	// wayEvents come when a connection is made or has failed.
	wayEvents = waiter.WritableEvents | waiter.EventHUp | waiter.EventErr
	// wayJitter is how much later the answer to an earlier SYN may be noticed: netstack's processors run side by side.
	wayJitter = 20 * time.Millisecond
)

// reachGuest waits for the guest's NIC and connects to the guest on behalf of a client. The flow that it returns lacks
// the host's side. If it will be tried again, one way that is silent is not waited for when the others are refused: a guest
// that boots may not be able to answer by it yet.
func (n *Network) reachGuest(ctx context.Context, f *forward, client netip.AddrPort, again bool) (*tcpFlow, error) {
	select {
	case <-n.up:
	case <-ctx.Done():
		return nil, fmt.Errorf("the guest's network is not up: %w", ctx.Err())
	}
	addr, other := client.Addr(), otherFamily(client.Addr())
	to := netip.AddrPortFrom(guestOf(addr), f.guest)
	ways := [numWays]*way{
		fromClient:    {from: client, to: to},
		fromGateway:   {from: netip.AddrPortFrom(gatewayOf(addr), 0), to: to},
		toOtherFamily: {from: netip.AddrPortFrom(gatewayOf(other), 0), to: netip.AddrPortFrom(guestOf(other), f.guest)},
	}
	if !n.showsClient(addr) {
		ways[fromClient].state = wayImpassable
	}
	order := [numWays]int{fromClient, fromGateway, toOtherFamily}
	strict := n.showsClient(addr) && !mayBeGuests(addr) && (addr.Is4() || n.hasIPv6.Load())
	hinted := !strict && f.crossedNow(familyOf(addr), n.now())
	if hinted {
		order = [numWays]int{toOtherFamily, fromClient, fromGateway}
	}
	begun := n.now()
	winner, err := n.try(ctx, ways, order, strict, again)
	for _, w := range ways {
		if w != winner {
			w.abandon()
		}
	}

	// What was learned.
	switch byClient, now := ways[fromClient].state, n.now(); {
	case byClient > waySilent:
		n.known.answered(addr, now)
	case byClient == waySilent && ways[fromGateway].state > waySilent && n.known.unanswered(addr, begun, now):
		n.log.Info().Stringer("ini", addr).Stringer("tgt", to.Addr()).
			Msg("the guest answers the gateway but not this client's address, which may be in a network of its own: " +
				"it sees this client as the gateway from now on, as PORTS_SOURCE=gateway has it for all, without trying")
	}
	switch crossed := &f.crossed[familyOf(addr)]; {
	case winner != ways[toOtherFamily]:
		crossed.Store(0)
	case !hinted && !crossed.CompareAndSwap(0, crossedOnce):
		crossed.Store(n.now().Add(familyHint).UnixNano())
	}
	if err != nil {
		return nil, err
	}
	return winner.flow(n.flows.live(TCP))
}

// try goes the ways in the given order until it is clear which one is taken. If strict, silence on one is no reason to
// begin the next; if again, the last one has less time for an answer when another was refused. The caller abandons the
// others.
func (n *Network) try(ctx context.Context, ways [numWays]*way, order [numWays]int, strict, again bool) (*way, error) {
	news := make(chan struct{}, 1)
	patience := time.NewTimer(n.limits.silence) // with the way that was begun last
	defer patience.Stop()
	begun, impatient, hesitating := 0, false, false
	for {
		winner, done := verdict(ways)
		switch {
		case done && (hesitating && impatient || !overtook(ways, order[:begun], winner)):
			return winner, failure(ways, winner)
		case done && !hesitating:
			hesitating, impatient = true, false
			patience.Reset(wayJitter)
		case !done && impatient && refused(ways) && (begun == numWays || ways[fromClient].state == wayRefused):
			return nil, failure(ways, nil) // what answers refuses
		case !done:
			for begun < numWays && (begun == 0 || impatient && !strict || ways[order[begun-1]].state != waySilent) {
				n.begin(ways[order[begun]], news)
				begun++
				impatient = false
				silence := n.limits.silence
				if again && begun == numWays && refused(ways) {
					silence /= 10
				}
				patience.Reset(silence)
			}
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-news:
		case <-patience.C:
			impatient = true
		}
		for _, w := range ways {
			w.update()
		}
	}
}

// verdict says which way is taken, or that none is. It reports false as long as that is open.
func verdict(ways [numWays]*way) (*way, bool) {
	client, gateway, other := ways[fromClient], ways[fromGateway], ways[toOtherFamily]
	switch {
	case client.state == wayAccepted:
		return client, true
	case gateway.state == wayAccepted && client.state == wayRefused:
		return nil, true
	case gateway.state == wayAccepted:
		return gateway, true
	case other.state == wayAccepted:
		return other, true
	}
	for _, w := range ways {
		if w.state == wayUntried || w.state == waySilent {
			return nil, false
		}
	}
	return nil, true
}

// overtook says whether a way was answered before one that was begun earlier.
func overtook(ways [numWays]*way, begun []int, winner *way) bool {
	for _, i := range begun {
		if ways[i] == winner {
			return false
		}
		if winner != nil && ways[i].state == waySilent {
			return true
		}
	}
	return false
}

// refused says whether a way was refused.
func refused(ways [numWays]*way) bool {
	return slices.ContainsFunc(ways[:], func(w *way) bool { return w.state == wayRefused })
}

// failure is why no way is taken, nil if one is.
func failure(ways [numWays]*way, winner *way) error {
	if winner != nil {
		return nil
	}
	var reason tcpip.Error = &tcpip.ErrAborted{}
	for _, w := range ways {
		if w.err != nil {
			reason = w.err
		}
		if w.state == wayRefused {
			break
		}
	}
	return stackError{reason}
}

// begin sends the first SYN of a way.
func (n *Network) begin(w *way, news chan<- struct{}) {
	if w.state == wayImpassable {
		return
	}
	w.entry = waiter.NewFunctionEntry(wayEvents, func(waiter.EventMask) {
		select {
		case news <- struct{}{}:
		default:
		}
	})
	// The client's own port, unless another connection to the same port of the guest has it.
	if w.err = n.connect(w); w.err != nil && w.from.Port() != 0 {
		w.from = netip.AddrPortFrom(w.from.Addr(), 0)
		w.err = n.connect(w)
	}
}

// connect begins to connect, and sets the state.
func (n *Network) connect(w *way) tcpip.Error {
	w.state = wayImpassable
	ep, err := n.stack.NewEndpoint(tcp.ProtocolNumber, networkProtocol(w.from.Addr()), &w.wq)
	if err != nil {
		return err
	}
	// A client may use one port of its own for connections to several of ours.
	ep.SocketOptions().SetReuseAddress(w.from.Port() != 0)
	w.wq.EventRegister(&w.entry)
	if err = ep.Bind(fullAddress(w.from)); err == nil {
		err = ep.Connect(fullAddress(w.to))
	}
	if _, started := err.(*tcpip.ErrConnectStarted); started {
		w.state, w.ep = waySilent, ep
		return nil
	}
	w.wq.EventUnregister(&w.entry)
	ep.Close()
	return err
}

// update notes what has become of a way.
func (w *way) update() {
	if w.state != waySilent || w.ep.Readiness(wayEvents) == 0 {
		return
	}
	w.state = wayAccepted
	if w.err = w.ep.LastError(); w.err != nil {
		w.state = wayRefused
	}
}

// abandon ends a way that is not taken.
func (w *way) abandon() {
	if w.ep == nil {
		return
	}
	w.wq.EventUnregister(&w.entry)
	w.ep.Abort()
	w.ep.Close()
}

// flow is the guest's side of a connection by this way, one of that many.
func (w *way) flow(flows int) (*tcpFlow, error) {
	w.wq.EventUnregister(&w.entry)
	local, err := w.ep.GetLocalAddress()
	if err != nil {
		w.ep.Close()
		return nil, stackError{err}
	}
	ini := addrPort(local.Addr, local.Port)
	return &tcpFlow{
		flow:  flow{key: flowKey{proto: TCP, ini: ini, tgt: w.to}},
		guest: newGuestConn(w.ep, &w.wq, flows),
	}, nil
}
