package link

import "sync/atomic"

// Stats counts what passed the link. "In" is from the guest.
type Stats struct {
	FramesIn, BytesIn   atomic.Uint64
	FramesOut, BytesOut atomic.Uint64
	// DroppedIn counts frames that are too short, too long or not for us.
	DroppedIn atomic.Uint64
	// DroppedOut counts frames without data that found the queue full, frames that are larger than the guest takes,
	// and those that were queued when the link ended.
	DroppedOut atomic.Uint64
	// Waits counts how often a sender of data had to wait for the guest: back-pressure at work.
	Waits atomic.Uint64
}

// Stats returns the counters, which go on counting.
func (e *Endpoint) Stats() *Stats { return &e.stats }
