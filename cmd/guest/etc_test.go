//go:build linux

package main

import (
	"net/netip"
	"strings"
	"testing"

	"docker-usermode-linux/internal/boot"
)

func TestResolvConf(t *testing.T) {
	servers := []netip.Addr{netip.MustParseAddr("10.0.2.3"), netip.MustParseAddr("fd00:10:0:2::3")}
	tests := []struct {
		network boot.Network
		want    string
	}{
		{boot.Network{Nameservers: servers[:1]}, "nameserver 10.0.2.3\n"},
		{
			boot.Network{Nameservers: servers, Search: []string{"a.example", "b"}, Options: []string{"ndots:2", "edns0"}},
			"nameserver 10.0.2.3\nnameserver fd00:10:0:2::3\nsearch a.example b\noptions ndots:2 edns0\n",
		},
	}
	for _, tt := range tests {
		_, got, _ := strings.Cut(string(resolvConf(tt.network)), "\n") // without the comment
		if got != tt.want {
			t.Errorf("resolvConf(%+v) = %q, want %q", tt.network, got, tt.want)
		}
	}
}

func TestResolvedConf(t *testing.T) {
	network := boot.Network{
		Nameservers: []netip.Addr{netip.MustParseAddr("10.0.2.3"), netip.MustParseAddr("fd00:10:0:2::3")},
		Search:      []string{"a", "b"},
	}
	const want = "[Resolve]\nDNS=10.0.2.3 fd00:10:0:2::3\nDomains=a b\n"
	if got := string(resolvedConf(network)); !strings.HasSuffix(got, want) {
		t.Errorf("resolvedConf() = %q, want %q at its end", got, want)
	}
}

func TestHosts(t *testing.T) {
	guest := netip.MustParseAddr("10.0.2.15")
	more := []boot.HostsEntry{
		{Addr: netip.MustParseAddr("192.0.2.1"), Names: []string{"db", "db-1"}},
		{Addr: netip.MustParseAddr("2001:db8::1"), Names: []string{"db"}},
	}
	tests := []struct {
		hostname string
		addr     netip.Addr
		more     []boot.HostsEntry
		want     string // the last lines
	}{
		{"box", guest, nil, "10.0.2.15\tbox\n"},
		{"box.example.org", guest, nil, "10.0.2.15\tbox.example.org box\n"},
		{"box", netip.Addr{}, nil, "127.0.1.1\tbox\n"},
		{"", guest, nil, "ff02::2\tip6-allrouters\n"},
		{"localhost", guest, nil, "ff02::2\tip6-allrouters\n"},
		{"box", guest, more, "10.0.2.15\tbox\n192.0.2.1\tdb db-1\n2001:db8::1\tdb\n"},
		{"", guest, more, "ff02::2\tip6-allrouters\n192.0.2.1\tdb db-1\n2001:db8::1\tdb\n"},
	}
	for _, tt := range tests {
		got := string(hosts(tt.hostname, tt.addr, tt.more))
		if !strings.HasPrefix(got, "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n") {
			t.Errorf("hosts(%q, %v, %v) = %q, want localhost first", tt.hostname, tt.addr, tt.more, got)
		}
		if !strings.HasSuffix(got, "\n"+tt.want) {
			t.Errorf("hosts(%q, %v, %v) = %q, want %q at its end", tt.hostname, tt.addr, tt.more, got, tt.want)
		}
	}
}

func TestBelowRun(t *testing.T) {
	tests := []struct {
		link, want string
		ok         bool
	}{
		{"../run/systemd/resolve/stub-resolv.conf", "systemd/resolve/stub-resolv.conf", true},
		{"/run/resolvconf/resolv.conf", "resolvconf/resolv.conf", true},
		{"/var/run/resolv.conf", "resolv.conf", true},
		{"../../../../run/x", "x", true},
		{"/run/../etc/x", "", false},
		{"/run", "", false},
		{"/runner/x", "", false},
		{"resolv.conf.static", "", false},
	}
	for _, tt := range tests {
		got, ok := belowRun("etc/resolv.conf", tt.link)
		if ok != tt.ok || (ok && got != tt.want) {
			t.Errorf("belowRun(%q) = %q, %v, want %q, %v", tt.link, got, ok, tt.want, tt.ok)
		}
	}
}

func TestFirstWord(t *testing.T) {
	for text, want := range map[string]string{
		"": "", "\n": "", "box\n": "box", "# comment\n\n box extra\n": "box",
	} {
		if got := firstWord([]byte(text)); got != want {
			t.Errorf("firstWord(%q) = %q, want %q", text, got, want)
		}
	}
}
