package slirptest

import (
	"bytes"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// Theory of operation
//
// The bridge's link neither loses nor reorders, and is as fast as memory. Faults make a bad one of it, for tests of what
// stands on it: they sit between the fake guest's netstack and its driver, one lane for each direction. A lane is a
// FIFO under a lock, so what it does to one frame is decided before the next one comes, from its own random source: the
// same seed and the same frames have the same fate. (TCP's frames depend on time, so whole tests do not repeat exactly.)

// Faults are what happens to the frames of a fake guest.
type Faults struct {
	// Seed of the random decisions.
	Seed uint64
	// ToHost is about what the guest sends, ToGuest about what it receives.
	ToHost, ToGuest Fault
}

// Fault is what happens to the frames of one direction. Its zero value is nothing.
type Fault struct {
	// Loss is the probability that a frame is lost.
	Loss float64
	// Reorder is the probability that a frame is held back until others have overtaken it, at most Distance of them (0
	// is 1), or nothing else came for some time.
	Reorder  float64
	Distance int
	// Rate is in bytes per second; 0 is without a limit. Frames wait, they are not lost.
	Rate int
	// Match, if set, says which frames Loss and Reorder are about. It must not keep the frame.
	Match func(frame []byte) bool
}

// Both is a fault in both directions.
func Both(seed uint64, f Fault) Faults { return Faults{Seed: seed, ToHost: f, ToGuest: f} }

// Injected counts what the faults of one direction have done.
type Injected struct{ Lost, Reordered atomic.Int64 }

// holdTime is how long a frame is held back when nothing overtakes it. It is below TCP's retransmission timeout: such a
// frame is late, not lost.
const holdTime = 20 * time.Millisecond

// burst is how far a lane with a rate may be ahead: shorter sleeps are not worth their while.
const burst = time.Millisecond

// lane is one direction.
type lane struct {
	injected Injected
	active   atomic.Bool // whether there is a fault, so that a lane without one costs nothing

	mu      sync.Mutex
	fault   Fault       // guarded by mu
	random  *rand.Rand  // guarded by mu
	held    []heldFrame // guarded by mu
	due     time.Time   // guarded by mu: when the next frame may pass, by the rate
	flusher *time.Timer // guarded by mu: runs flush; nil if it never did
	closed  bool        // guarded by mu

	// pass is the rest of the way. It keeps neither of the slices, and reports false when the NIC is closed.
	pass func(hdr, frame []byte) bool
}

type heldFrame struct {
	hdr, frame []byte
	ahead      int // frames that are still to overtake this one
}

// set changes the fault. What is held is let go.
func (l *lane) set(f Fault, random *rand.Rand) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.releaseAll()
	l.fault, l.random, l.due = f, random, time.Time{}
	l.active.Store(f.Loss > 0 || f.Reorder > 0 || f.Rate > 0)
}

// send puts a frame on its way. It reports false when the NIC is closed.
func (l *lane) send(hdr, frame []byte) bool {
	if !l.active.Load() {
		return l.pass(hdr, frame)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	f := &l.fault
	if f.Rate > 0 {
		l.pace(len(frame))
	}
	if f.Match == nil || f.Match(frame) {
		switch p := l.random.Float64(); { // one number for each frame, whatever becomes of it
		case p < f.Loss:
			l.injected.Lost.Add(1)
			return true
		case p < f.Loss+f.Reorder:
			l.injected.Reordered.Add(1)
			l.hold(hdr, frame)
			return true
		}
	}
	ok := l.pass(hdr, frame)
	l.overtake()
	return ok
}

// pace waits for the lane's rate. It is called with mu held: a slow lane makes its senders wait.
func (l *lane) pace(size int) {
	now := time.Now()
	if l.due.Before(now) {
		l.due = now
	}
	l.due = l.due.Add(time.Duration(size) * time.Second / time.Duration(l.fault.Rate))
	if ahead := l.due.Sub(now); ahead > burst {
		time.Sleep(ahead)
	}
}

// hold keeps a frame back. It is called with mu held.
func (l *lane) hold(hdr, frame []byte) {
	ahead := 1 + l.random.IntN(max(1, l.fault.Distance))
	l.held = append(l.held, heldFrame{bytes.Clone(hdr), bytes.Clone(frame), ahead})
	if l.flusher == nil {
		l.flusher = time.AfterFunc(holdTime, l.flush)
	} else {
		l.flusher.Reset(holdTime)
	}
}

// overtake notes that a frame has passed, and lets those go that waited for it. It is called with mu held.
func (l *lane) overtake() {
	rest := l.held[:0]
	for _, h := range l.held {
		if h.ahead--; h.ahead > 0 {
			rest = append(rest, h)
			continue
		}
		l.pass(h.hdr, h.frame)
	}
	clear(l.held[len(rest):])
	l.held = rest
}

// flush lets go what nothing has overtaken for a while.
func (l *lane) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.releaseAll()
}

// releaseAll is called with mu held.
func (l *lane) releaseAll() {
	for _, h := range l.held {
		if !l.closed {
			l.pass(h.hdr, h.frame)
		}
	}
	l.held = nil
}

// close ends the lane. Nothing passes any more when it returns.
func (l *lane) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.held = nil
	if l.flusher != nil {
		l.flusher.Stop()
	}
	l.active.Store(true)
}

// Impair makes the link a bad one from now on, or a good one with the zero value.
func (n *NIC) Impair(f Faults) {
	n.toHost.set(f.ToHost, rand.New(rand.NewPCG(f.Seed, 0)))
	n.toGuest.set(f.ToGuest, rand.New(rand.NewPCG(f.Seed, 1)))
}

// Injected returns what the faults have done so far to what the guest sends and to what it receives.
func (n *NIC) Injected() (toHost, toGuest *Injected) { return &n.toHost.injected, &n.toGuest.injected }
