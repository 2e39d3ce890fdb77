package slirp

import (
	"net/netip"
	"testing"
)

func TestPolicy(t *testing.T) {
	open := Policy{}
	allowed := Policy{Allow: []netip.Prefix{
		netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.169.254/32"),
	}}
	mapped := Policy{GatewayIsLoopback: true}
	for _, c := range []struct {
		name   string
		policy Policy
		to     string
		want   string // "" is closed
	}{
		{"outside", open, "192.0.2.1:80", "192.0.2.1:80"},
		{"private", open, "172.17.0.1:80", "172.17.0.1:80"},
		{"port 0", open, "192.0.2.1:0", ""},
		{"loopback", open, "127.0.0.1:80", ""},
		{"docker's resolver", open, "127.0.0.11:53", ""},
		{"this host", open, "0.0.0.0:80", ""},
		{"metadata", open, "169.254.169.254:80", ""},
		{"gateway", open, "10.0.2.2:80", ""},
		{"guest's network", open, "10.0.2.99:80", ""},
		{"multicast", open, "224.0.0.251:5353", ""},
		{"broadcast", open, "255.255.255.255:67", ""},
		{"ipv6", open, "[2001:db8::1]:80", ""},
		{"allowed loopback", allowed, "127.0.0.1:80", "127.0.0.1:80"},
		{"allowed metadata", allowed, "169.254.169.254:80", "169.254.169.254:80"},
		{"link-local that is not allowed", allowed, "169.254.169.253:80", ""},
		{"gateway when loopback is allowed", allowed, "10.0.2.2:80", ""},
		{"gateway as loopback", mapped, "10.0.2.2:80", "127.0.0.1:80"},
		{"gateway as loopback, port 0", mapped, "10.0.2.2:0", ""},
		{"loopback itself", mapped, "127.0.0.1:80", ""},
		{"name server", mapped, "10.0.2.3:80", ""},
	} {
		got, ok := c.policy.target(netip.MustParseAddrPort(c.to))
		if !ok && c.want != "" || ok && got.String() != c.want {
			t.Errorf("%s: target(%s) = %v, %v, want %q", c.name, c.to, got, ok, c.want)
		}
		if !ok {
			continue
		}
		if back, ok := c.policy.guestView(got); !ok || back.String() != c.to {
			t.Errorf("%s: guestView(%s) = %v, %v, want %s", c.name, got, back, ok, c.to)
		}
	}
}
