package slirp

import (
	"net/netip"
	"testing"
)

func TestPolicy(t *testing.T) {
	open := Policy{}
	allowed := Policy{Allow: rules("127.0.0.0/8", "169.254.169.254/32", "::1/128", "fe80::1/128", "fd00:ec2::254/128")}
	all := Policy{Allow: rules("0.0.0.0/0", "::/0")}
	mapped := Policy{Allow: rules("10.0.2.2/32", "fd00:10:0:2::2/128")}
	denied := Policy{
		Allow: []Rule{
			{Prefix: netip.MustParsePrefix("192.0.2.0/28")},
			{Prefix: netip.MustParsePrefix("203.0.113.0/24"), First: 443, Last: 444, Protos: []Proto{TCP}},
			{Prefix: netip.MustParsePrefix("10.0.2.2/32"), First: 80, Last: 80},
		},
		Deny: rules("192.0.2.0/24", "203.0.113.0/24", "2001:db8::/32"),
	}
	closed := Policy{Allow: rules("198.51.100.7/32"), Deny: rules("0.0.0.0/0", "::/0")}
	for _, c := range []struct {
		name   string
		policy Policy
		proto  Proto
		to     string
		want   string // "" is closed
	}{
		{"outside", open, TCP, "192.0.2.1:80", "192.0.2.1:80"},
		{"outside, ping", open, ICMP, "192.0.2.1:0", "192.0.2.1:0"},
		{"private", open, TCP, "172.17.0.1:80", "172.17.0.1:80"},
		{"port 0", open, TCP, "192.0.2.1:0", ""},
		{"loopback", open, TCP, "127.0.0.1:80", ""},
		{"docker's resolver", open, UDP, "127.0.0.11:53", ""},
		{"this host", open, TCP, "0.0.0.0:80", ""},
		{"metadata", open, TCP, "169.254.169.254:80", ""},
		{"gateway", open, TCP, "10.0.2.2:80", ""},
		{"guest's network", open, TCP, "10.0.2.99:80", ""},
		{"multicast", open, UDP, "224.0.0.251:5353", ""},
		{"broadcast", open, UDP, "255.255.255.255:67", ""},

		{"ipv6 outside", open, TCP, "[2001:db8::1]:80", "[2001:db8::1]:80"},
		{"ipv6 unique local", open, TCP, "[fd12::1]:80", "[fd12::1]:80"},
		{"ipv6 port 0", open, UDP, "[2001:db8::1]:0", ""},
		{"ipv6 loopback", open, TCP, "[::1]:80", ""},
		{"ipv6 this host", open, TCP, "[::]:80", ""},
		{"ipv4-compatible", open, TCP, "[::127.0.0.1]:80", ""},
		{"ipv4-mapped", open, TCP, "[::ffff:127.0.0.1]:80", ""},
		{"ipv4-mapped outside", open, TCP, "[::ffff:192.0.2.1]:80", ""},
		{"ipv4-translated", open, TCP, "[::ffff:0:127.0.0.1]:80", ""},
		{"ipv6 link-local", open, TCP, "[fe80::1]:80", ""},
		{"ipv6 multicast", open, UDP, "[ff02::fb]:5353", ""},
		{"ipv6 gateway", open, TCP, "[fd00:10:0:2::2]:80", ""},
		{"ipv6 guest's network", open, TCP, "[fd00:10:0:2::99]:80", ""},
		{"amazon's metadata", open, TCP, "[fd00:ec2::254]:80", ""},
		{"google's metadata", open, TCP, "[fd20:ce::254]:80", ""},
		{"oracle's metadata", open, TCP, "[fd00:c1::a9fe:a9fe]:80", ""},

		{"nat64", open, TCP, "[64:ff9b::192.0.2.1]:80", "[64:ff9b::c000:201]:80"},
		{"nat64 to the loopback", open, TCP, "[64:ff9b::127.0.0.1]:80", ""},
		{"nat64 to metadata", open, TCP, "[64:ff9b::169.254.169.254]:80", ""},
		{"nat64 to the guest's network", open, TCP, "[64:ff9b::10.0.2.2]:80", ""},
		{"local nat64 to metadata", open, TCP, "[64:ff9b:1::169.254.169.254]:80", ""},
		{"6to4", open, TCP, "[2002:c000:201::1]:80", "[2002:c000:201::1]:80"},
		{"6to4 to the loopback", open, TCP, "[2002:7f00:1::1]:80", ""},
		{"nat64 and all", all, TCP, "[64:ff9b::127.0.0.1]:80", ""},
		{"nat64 and metadata allowed", allowed, TCP, "[64:ff9b::169.254.169.254]:80", ""},
		{"nat64 and denied", denied, TCP, "[64:ff9b::192.0.2.99]:80", ""},
		{"nat64 and allowed", denied, TCP, "[64:ff9b::192.0.2.1]:80", "[64:ff9b::c000:201]:80"},

		{"allowed loopback", allowed, TCP, "127.0.0.1:80", "127.0.0.1:80"},
		{"allowed ipv6 loopback", allowed, TCP, "[::1]:80", "[::1]:80"},
		{"allowed metadata", allowed, TCP, "169.254.169.254:80", "169.254.169.254:80"},
		{"allowed ipv6 metadata", allowed, TCP, "[fd00:ec2::254]:80", "[fd00:ec2::254]:80"},
		{"allowed link-local", allowed, TCP, "[fe80::1]:80", "[fe80::1]:80"},
		{"link-local that is not allowed", allowed, TCP, "169.254.169.253:80", ""},
		{"gateway when loopback is allowed", allowed, TCP, "10.0.2.2:80", ""},

		{"all, outside", all, TCP, "192.0.2.1:80", "192.0.2.1:80"},
		{"all, loopback", all, TCP, "127.0.0.1:80", ""},
		{"all, ipv6 loopback", all, TCP, "[::1]:80", ""},
		{"all, metadata", all, TCP, "169.254.169.254:80", ""},
		{"all, gateway", all, TCP, "10.0.2.2:80", ""},
		{"all, ipv6 gateway", all, TCP, "[fd00:10:0:2::2]:80", ""},
		{"all, the guest itself", all, TCP, "[fd00:10:0:2::15]:80", ""},

		{"gateway as loopback", mapped, TCP, "10.0.2.2:80", "127.0.0.1:80"},
		{"ipv6 gateway as loopback", mapped, UDP, "[fd00:10:0:2::2]:80", "[::1]:80"},
		{"gateway as loopback, port 0", mapped, TCP, "10.0.2.2:0", ""},
		{"loopback itself", mapped, TCP, "127.0.0.1:80", ""},
		{"ipv6 loopback itself", mapped, TCP, "[::1]:80", ""},
		{"name server", mapped, TCP, "10.0.2.3:80", ""},
		{"gateway's port", denied, TCP, "10.0.2.2:80", "127.0.0.1:80"},
		{"gateway's other port", denied, TCP, "10.0.2.2:81", ""},

		{"denied", denied, TCP, "192.0.2.99:80", ""},
		{"denied, ping", denied, ICMP, "192.0.2.99:0", ""},
		{"denied ipv6", denied, TCP, "[2001:db8::1]:80", ""},
		{"allowed within denied", denied, TCP, "192.0.2.1:80", "192.0.2.1:80"},
		{"allowed port", denied, TCP, "203.0.113.1:444", "203.0.113.1:444"},
		{"port that is not allowed", denied, TCP, "203.0.113.1:445", ""},
		{"protocol that is not allowed", denied, UDP, "203.0.113.1:443", ""},
		{"ping has no port", denied, ICMP, "203.0.113.1:0", ""},
		{"all denied", closed, TCP, "192.0.2.1:80", ""},
		{"all denied, nat64", closed, TCP, "[64:ff9b::192.0.2.1]:80", ""},
		{"all denied but one", closed, ICMP, "198.51.100.7:0", "198.51.100.7:0"},
	} {
		got, ok := c.policy.target(c.proto, netip.MustParseAddrPort(c.to))
		if !ok && c.want != "" || ok && got.String() != c.want {
			t.Errorf("%s: target(%s, %s) = %v, %v, want %q", c.name, c.proto, c.to, got, ok, c.want)
		}
		if !ok {
			continue
		}
		want := netip.MustParseAddrPort(c.to)
		if back, ok := c.policy.guestView(c.proto, got); !ok || back != want {
			t.Errorf("%s: guestView(%s, %s) = %v, %v, want %s", c.name, c.proto, got, back, ok, want)
		}
	}
}

// TestPolicyAnswers checks that an answer is let in from nowhere that the guest could not have sent to.
func TestPolicyAnswers(t *testing.T) {
	p := Policy{Allow: []Rule{{Prefix: netip.MustParsePrefix("10.0.2.2/32"), First: 53, Last: 53}}}
	for from, want := range map[string]string{
		"127.0.0.1:53":       "10.0.2.2:53",
		"127.0.0.1:54":       "",
		"[::1]:53":           "",
		"169.254.169.254:53": "",
		"192.0.2.1:1":        "192.0.2.1:1",
	} {
		got, ok := p.guestView(UDP, netip.MustParseAddrPort(from))
		if ok != (want != "") || ok && got.String() != want {
			t.Errorf("guestView(%s) = %s, %v, want %q", from, got, ok, want)
		}
	}
}

func TestPolicyAllocates(t *testing.T) {
	p := Policy{Allow: rules("192.0.2.0/24", "2001:db8::/32"), Deny: rules("0.0.0.0/0", "::/0")}
	to := []netip.AddrPort{
		netip.MustParseAddrPort("192.0.2.1:80"), netip.MustParseAddrPort("[64:ff9b::192.0.2.1]:80"),
		netip.MustParseAddrPort("10.0.2.2:80"),
	}
	if got := testing.AllocsPerRun(100, func() {
		for _, a := range to {
			host, _ := p.target(UDP, a)
			p.guestView(UDP, host)
		}
	}); got != 0 {
		t.Errorf("a decision allocates %v times, want none", got)
	}
}
