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
	pcapDropped    atomic.Uint64
	// Datagrams of forwarded ports.
	guestUnreachable atomic.Uint64
}

// Stats is what a Network has counted so far. The JSON names are stable: some may come, none goes or changes.
type Stats struct {
	// Live flows.
	LiveTCP  int `json:"tcp_live"`
	LiveUDP  int `json:"udp_live"`
	LivePing int `json:"icmp_live"`
	// Flows since the start.
	TCPFlows  uint64 `json:"tcp_flows"`
	UDPFlows  uint64 `json:"udp_flows"`
	PingFlows uint64 `json:"icmp_flows"`
	// Flows refused because of a limit.
	TCPRefused  uint64 `json:"tcp_refused"`
	UDPRefused  uint64 `json:"udp_refused"`
	PingRefused uint64 `json:"icmp_refused"`
	// Expired counts flows that ended because they were idle.
	Expired uint64 `json:"expired"`
	// PolicyClosed counts connections and datagrams of the guest to addresses that are closed to it.
	PolicyClosed uint64 `json:"policy_closed"`
	// DialErrors counts connections of the guest that the host could not make.
	DialErrors uint64 `json:"dial_errors"`
	// GuestRefused counts forwarded connections that the guest did not take.
	GuestRefused uint64 `json:"guest_refused"`
	// GuestUnreachable counts datagrams of forwarded ports that the guest refused.
	GuestUnreachable uint64 `json:"guest_unreachable"`
	// Resets counts connections that ended with a reset or an error on either side.
	Resets uint64 `json:"resets"`
	// PendingLimit counts connections that had to wait (out of the guest) or were reset (into it), because too many were
	// being made.
	PendingLimit uint64 `json:"pending_limit"`
	// Payload in bytes.
	TCPToHost  uint64 `json:"tcp_bytes_to_host"`
	TCPToGuest uint64 `json:"tcp_bytes_to_guest"`
	UDPToHost  uint64 `json:"udp_bytes_to_host"`
	UDPToGuest uint64 `json:"udp_bytes_to_guest"`
	// UDPDropped counts datagrams that were lost, mostly to a full socket. What the guest is told about, such as a missing
	// route, is not lost.
	UDPDropped uint64 `json:"udp_dropped"`
	// The DNS relay: queries that it got, those that no server answered, and queries and connections beyond its bounds,
	// which it dropped.
	DNSQueries  uint64 `json:"dns_queries"`
	DNSFailures uint64 `json:"dns_failures"`
	DNSDropped  uint64 `json:"dns_dropped"`
	// The link: frames and bytes of Ethernet, frames dropped, and how often a sender waited for the guest.
	FramesIn         uint64 `json:"link_frames_in"`
	BytesIn          uint64 `json:"link_bytes_in"`
	FramesOut        uint64 `json:"link_frames_out"`
	BytesOut         uint64 `json:"link_bytes_out"`
	FramesDroppedIn  uint64 `json:"link_dropped_in"`
	FramesDroppedOut uint64 `json:"link_dropped_out"`
	Waits            uint64 `json:"link_waits"`
	// PcapDropped counts frames that are missing in the packet capture because its file was too slow or failed.
	PcapDropped uint64 `json:"pcap_dropped"`
}

// Snapshot returns the counters. They are read one after another, so they may be a few packets apart.
func (n *Network) Snapshot() Stats {
	c, l, d := &n.stats, n.link.Stats(), n.dns.Stats()
	return Stats{
		LiveTCP:          n.flows.live(TCP),
		LiveUDP:          n.flows.live(UDP),
		LivePing:         n.flows.live(ICMP),
		TCPFlows:         c.flows[TCP].Load(),
		UDPFlows:         c.flows[UDP].Load(),
		PingFlows:        c.flows[ICMP].Load(),
		TCPRefused:       c.refused[TCP].Load(),
		UDPRefused:       c.refused[UDP].Load(),
		PingRefused:      c.refused[ICMP].Load(),
		Expired:          c.expired.Load(),
		PolicyClosed:     c.policyClosed.Load(),
		DialErrors:       c.dialErrors.Load(),
		GuestRefused:     c.guestRefused.Load(),
		GuestUnreachable: c.guestUnreachable.Load(),
		Resets:           c.resets.Load(),
		PendingLimit:     c.pendingLimit.Load(),
		TCPToHost:        c.hostBytes[TCP].Load(),
		TCPToGuest:       c.guestBytes[TCP].Load(),
		UDPToHost:        c.hostBytes[UDP].Load(),
		UDPToGuest:       c.guestBytes[UDP].Load(),
		UDPDropped:       c.udpDropped.Load(),
		DNSQueries:       d.Queries.Load(),
		DNSFailures:      d.Failures.Load(),
		DNSDropped:       d.Dropped.Load(),
		FramesIn:         l.FramesIn.Load(),
		BytesIn:          l.BytesIn.Load(),
		FramesOut:        l.FramesOut.Load(),
		BytesOut:         l.BytesOut.Load(),
		FramesDroppedIn:  l.DroppedIn.Load(),
		FramesDroppedOut: l.DroppedOut.Load(),
		Waits:            l.Waits.Load(),
		PcapDropped:      c.pcapDropped.Load(),
	}
}
