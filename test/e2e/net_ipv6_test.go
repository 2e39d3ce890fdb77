package e2e

import (
	"strings"
	"testing"
)

func TestNetIPv6(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	c, own, own6 := l.guest(t, "-e", "PORTS=7000-7002/tcp+udp")

	wants(t, "who reaches a peer by TCP", c.talk("tcp6", "peer:7000", "who"), own6)
	wants(t, "who reaches a peer by UDP", c.talk("udp6", "peer:7000", "who"), own6)
	wants(t, "who of the peer's reaches the guest by TCP", peerTalk(t, l.peer, "tcp6", "["+own6+"]:7000", "who"), l.addr6)
	wants(t, "who of the peer's reaches the guest by UDP", peerTalk(t, l.peer, "udp6", "["+own6+"]:7000", "who"), l.addr6)

	// A program that knows one family only serves clients of the other, which it cannot see.
	c.sh("/peer listen tcp4 0.0.0.0:7001 >/dev/null 2>&1 & /peer listen udp4 0.0.0.0:7001 >/dev/null 2>&1 &")
	c.sh("/peer listen tcp6 [::]:7002 >/dev/null 2>&1 &")
	waitFor(t, "a server for IPv4", func() error {
		return is(peerTalk(t, l.peer, "tcp4", own+":7001", "who"), l.addr)
	})
	wants(t, "client of IPv6, server of IPv4", peerTalk(t, l.peer, "tcp6", "["+own6+"]:7001", "who"), gateway)
	wants(t, "the same by UDP", peerTalk(t, l.peer, "udp6", "["+own6+"]:7001", "who"), gateway)
	waitFor(t, "a server for IPv6", func() error {
		return is(peerTalk(t, l.peer, "tcp6", "["+own6+"]:7002", "who"), l.addr6)
	})
	wants(t, "client of IPv4, server of IPv6", peerTalk(t, l.peer, "tcp4", own+":7002", "who"), gateway6)
	c.noDrops()
}

// TestNetNoIPv6 runs on a network without IPv6: the guest learns that at once, and programs go on with IPv4.
func TestNetNoIPv6(t *testing.T) {
	t.Parallel()
	c := quick(t)
	wants(t, "TCP to a global address", c.talk("tcp6", "[2001:db8::1]:80", "who"), "unreachable")
	if got := c.sh("ping -c 1 -W 20 2001:db8::1"); !strings.Contains(got, "No route") {
		t.Errorf("ping of a global address = %q, want No route in it", got)
	}
	c.noDrops()
}
