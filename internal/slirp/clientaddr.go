package slirp

import (
	"net/netip"
	"sync"
	"time"
)

// Theory of operation
//
// The guest sees a client of a forwarded port with its own address, so that its logs, access lists and rate limits
// are worth something. Netstack sends from any address, and all that the guest sends comes back to us.
//
// Some addresses cannot be shown, and the gateway's stands for them: those that a guest drops as martians or would
// never route back, loopback first of all, and those of its own network.
//
// Others it may have or route itself: behind Docker most clients come from 172.17.0.1, and the guest's own Docker has
// that very address. Such a guest drops the client's SYN, or its answer goes astray. It cannot be asked beforehand,
// so whoever dials the guest (forward.go) tries the client's address first, and notes here that it stayed silent
// while it answered the gateway. That may also be a guest whose queue was full for a moment, so it does not count when
// another connection of the same client was answered meanwhile.
//
// A guest that drops a client's packets on purpose looks just the same, and a client of a private network then comes
// from the gateway. A packet filter in the guest has to reject those, which is an answer and stands.

const (
	// maxKnownClients bounds what is remembered; a client has some 150 bytes.
	maxKnownClients = 1024
	// knownClientTime is how long a client is remembered without being seen.
	knownClientTime = 10 * time.Minute
)

// isGuestSource says whether a guest takes packets from an address and sends its answers to us.
func isGuestSource(a netip.Addr) bool {
	if a.IsUnspecified() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() {
		return false
	}
	if a.Is4() {
		// This network, and the reserved addresses with the broadcast one (RFC 1122 section 3.2.1.3).
		if first := a.As4()[0]; first == 0 || first >= 240 {
			return false
		}
	}
	return !guestNet.Contains(a) && !guestNet6.Contains(a)
}

// sharedAddresses is RFC 6598's.
var sharedAddresses = netip.MustParsePrefix("100.64.0.0/10")

// mayBeGuests says whether a guest may well have a client's network itself.
func mayBeGuests(a netip.Addr) bool { return a.IsPrivate() || sharedAddresses.Contains(a) }

// showsClient says whether the guest gets to see a client's own address.
func (n *Network) showsClient(a netip.Addr) bool {
	return n.source == SourceClient && isGuestSource(a) && !n.known.isSilent(a, n.now())
}

// gatewayOf is the gateway's address of the family of a, and guestOf the guest's.
func gatewayOf(a netip.Addr) netip.Addr {
	if a.Is4() {
		return GatewayAddr
	}
	return GatewayAddr6
}

func guestOf(a netip.Addr) netip.Addr {
	if a.Is4() {
		return GuestAddr
	}
	return GuestAddr6
}

// familyOf is 0 for IPv4 and 1 for IPv6, and otherFamily any address of the other one.
func familyOf(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

func otherFamily(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// clientMemory holds what is known of clients by their addresses. Its zero value is empty.
type clientMemory struct {
	mu      sync.Mutex
	clients map[netip.Addr]knownClient // guarded by mu
}

type knownClient struct {
	seen     time.Time
	answered time.Time // by the guest, last
	silent   bool      // the guest does not answer it
}

// isSilent says whether the guest does not answer an address.
func (m *clientMemory) isSilent(a netip.Addr, now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.clients[a]
	if !c.silent || now.Sub(c.seen) >= knownClientTime {
		return false
	}
	c.seen = now
	m.clients[a] = c
	return true
}

// answered notes that the guest has answered an address.
func (m *clientMemory) answered(a netip.Addr, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.put(a, knownClient{seen: now, answered: now})
}

// unanswered notes that the guest did not answer an address since the given time, and reports whether that makes it a
// silent one.
func (m *clientMemory) unanswered(a netip.Addr, since, now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.clients[a]
	if c.silent && now.Sub(c.seen) < knownClientTime || !c.answered.Before(since) {
		return false
	}
	m.put(a, knownClient{seen: now, silent: true})
	return true
}

// put needs mu. If there is no room, the client that was not seen for longest makes it.
func (m *clientMemory) put(a netip.Addr, c knownClient) {
	if m.clients == nil {
		m.clients = make(map[netip.Addr]knownClient)
	}
	if _, known := m.clients[a]; !known && len(m.clients) >= maxKnownClients {
		oldest := a
		for b, other := range m.clients {
			if oldest == a || other.seen.Before(m.clients[oldest].seen) {
				oldest = b
			}
		}
		delete(m.clients, oldest)
	}
	m.clients[a] = c
}
