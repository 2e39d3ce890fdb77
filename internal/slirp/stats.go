package slirp

import "sync/atomic"

// counters count events since the start.
type counters struct {
	flows, refused [numProtos]atomic.Uint64
	expired        atomic.Uint64
	policyClosed   atomic.Uint64
	dialErrors     atomic.Uint64
	guestRefused   atomic.Uint64
	resets         atomic.Uint64
	pendingLimit   atomic.Uint64
	hostBytes      [numProtos]atomic.Uint64 // payload towards the host
	guestBytes     [numProtos]atomic.Uint64 // payload towards the guest
	udpDropped     atomic.Uint64
}

// Stats is what a Network has counted so far.
type Stats struct {
	// Live flows, flows since the start, and flows refused because of a limit.
	LiveTCP, LiveUDP, LivePing          int
	TCPFlows, UDPFlows, PingFlows       uint64
	TCPRefused, UDPRefused, PingRefused uint64
	// Expired counts flows that ended because they were idle.
	Expired uint64
	// PolicyClosed counts connections and datagrams of the guest to addresses that are closed to it.
	PolicyClosed uint64
	// DialErrors counts connections of the guest that the host could not make.
	DialErrors uint64
	// GuestRefused counts forwarded connections that the guest did not take.
	GuestRefused uint64
	// Resets counts connections that ended with a reset or an error on either side.
	Resets uint64
	// PendingLimit counts SYNs that were dropped because too many connections were being dialled.
	PendingLimit uint64
	// Payload in bytes.
	TCPToHost, TCPToGuest, UDPToHost, UDPToGuest uint64
	// UDPDropped counts datagrams that a full socket or a missing route lost.
	UDPDropped uint64
	// The link: frames and bytes of Ethernet, frames dropped, and how often a sender waited for the guest.
	FramesIn, BytesIn, FramesOut, BytesOut, FramesDroppedIn, FramesDroppedOut, Waits uint64
}

// Snapshot returns the counters. They are read one after another, so they may be a few packets apart.
func (n *Network) Snapshot() Stats {
	c, l := &n.stats, n.link.Stats()
	return Stats{
		LiveTCP:          n.flows.live(TCP),
		LiveUDP:          n.flows.live(UDP),
		LivePing:         n.flows.live(icmpEcho),
		TCPFlows:         c.flows[TCP].Load(),
		UDPFlows:         c.flows[UDP].Load(),
		PingFlows:        c.flows[icmpEcho].Load(),
		TCPRefused:       c.refused[TCP].Load(),
		UDPRefused:       c.refused[UDP].Load(),
		PingRefused:      c.refused[icmpEcho].Load(),
		Expired:          c.expired.Load(),
		PolicyClosed:     c.policyClosed.Load(),
		DialErrors:       c.dialErrors.Load(),
		GuestRefused:     c.guestRefused.Load(),
		Resets:           c.resets.Load(),
		PendingLimit:     c.pendingLimit.Load(),
		TCPToHost:        c.hostBytes[TCP].Load(),
		TCPToGuest:       c.guestBytes[TCP].Load(),
		UDPToHost:        c.hostBytes[UDP].Load(),
		UDPToGuest:       c.guestBytes[UDP].Load(),
		UDPDropped:       c.udpDropped.Load(),
		FramesIn:         l.FramesIn.Load(),
		BytesIn:          l.BytesIn.Load(),
		FramesOut:        l.FramesOut.Load(),
		BytesOut:         l.BytesOut.Load(),
		FramesDroppedIn:  l.DroppedIn.Load(),
		FramesDroppedOut: l.DroppedOut.Load(),
		Waits:            l.Waits.Load(),
	}
}
