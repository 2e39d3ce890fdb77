package slirp

import (
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Theory of operation
//
// One table holds all flows of all protocols, so that there is one place that counts them, bounds them and ends them.
// The key is what the guest sees: two flows with equal keys could not be told apart by it.
//
// Bounds are per protocol. A flow above the bound is refused and counted; those that exist are left alone, so that a
// guest that floods hurts its new connections and nothing else.
//
// TCP flows end with their connection. The others have no end that one could see: they end when nothing moved for
// their idle time, which the sweeper looks for. Refreshing a flow is one atomic store; the sweeper takes the lock.
//
// A flow is stopped by whoever takes it out of the table, and stops itself when it fails: to stop it twice is fine.

var (
	errFlowLimit  = errors.New("too many flows")
	errFlowExists = errors.New("flow exists")
)

// flowKey names a flow by both sides as the guest sees them. UDP flows that the guest initiates have no target: one
// serves all targets of a guest's socket (udp.go). In ICMP the identifier stands for the port.
type flowKey struct {
	proto    Proto
	ini, tgt netip.AddrPort
}

// entry is a flow in the table.
type entry interface {
	base() *flow
	// stop ends the flow at once and frees what it holds, without waiting for its goroutines.
	stop()
}

// unreachable is a flow that can be told that the guest refused what was sent to it.
type unreachable interface{ guestUnreachable() }

// flow is what all flows have. The types of the protocols embed it.
type flow struct {
	key     flowKey
	id      uint64
	started time.Time
	active  atomic.Int64 // time of the last packet, in ns since the table's epoch
	idle    atomic.Int64 // ns without a packet after which the flow ends; 0 is never

	hostBytes, guestBytes atomic.Uint64 // payload towards the host and towards the guest
}

func (f *flow) base() *flow { return f }

type flowTable struct {
	n     *Network
	epoch time.Time

	mu     sync.RWMutex
	flows  map[flowKey]entry // guarded by mu
	count  [numProtos]int    // guarded by mu
	nextID uint64            // guarded by mu
	closed bool              // guarded by mu
}

func newFlowTable(n *Network) *flowTable {
	return &flowTable{n: n, epoch: n.now(), flows: make(map[flowKey]entry)}
}

// get returns the flow with that key, or nil.
func (t *flowTable) get(key flowKey) entry {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.flows[key]
}

// add puts a flow into the table, which from then on may stop it.
func (t *flowTable) add(e entry) error {
	f := e.base()
	f.started = t.n.now()
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closed:
		return errors.New("network is closed")
	case t.flows[f.key] != nil:
		return errFlowExists
	case t.count[f.key.proto] >= t.n.limits.flows[f.key.proto]:
		t.n.stats.refused[f.key.proto].Add(1)
		return errFlowLimit
	}
	t.nextID++
	f.id = t.nextID
	f.active.Store(int64(f.started.Sub(t.epoch)))
	t.flows[f.key] = e
	t.count[f.key.proto]++
	t.n.stats.flows[f.key.proto].Add(1)
	return nil
}

// full says that no flow of a protocol can be added, and counts that as a refusal. It spares work that add would make
// void.
func (t *flowTable) full(p Proto) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.count[p] < t.n.limits.flows[p] {
		return false
	}
	t.n.stats.refused[p].Add(1)
	return true
}

// remove takes a flow out and reports whether it was still in.
func (t *flowTable) remove(e entry) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.removeLocked(e)
}

func (t *flowTable) removeLocked(e entry) bool {
	key := e.base().key
	if t.flows[key] != e {
		return false
	}
	delete(t.flows, key)
	t.count[key.proto]--
	return true
}

// touch notes that something moved on f and that the flow lives for idle from now on.
func (t *flowTable) touch(f *flow, idle time.Duration) {
	f.active.Store(int64(t.n.now().Sub(t.epoch)))
	f.idle.Store(int64(idle))
}

// expire stops flows that were idle for too long.
func (t *flowTable) expire() {
	now := int64(t.n.now().Sub(t.epoch))
	var old []entry
	t.mu.Lock()
	for _, e := range t.flows {
		f := e.base()
		if idle := f.idle.Load(); idle != 0 && now-f.active.Load() >= idle {
			t.removeLocked(e)
			old = append(old, e)
		}
	}
	t.mu.Unlock()
	for _, e := range old {
		t.n.stats.expired.Add(1)
		e.stop()
	}
}

// closeAll stops all flows. None can be added afterwards.
func (t *flowTable) closeAll() {
	t.mu.Lock()
	t.closed = true
	all := make([]entry, 0, len(t.flows))
	for _, e := range t.flows {
		all = append(all, e)
	}
	clear(t.flows)
	t.count = [numProtos]int{}
	t.mu.Unlock()
	for _, e := range all {
		e.stop()
	}
}

// live returns how many flows of a protocol there are.
func (t *flowTable) live(p Proto) int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.count[p]
}
