package config

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func TestParseNetRules(t *testing.T) {
	prefix := netip.MustParsePrefix
	for _, test := range []struct {
		in   string
		want []NetRule
	}{
		{"", nil},
		{" , ", nil},
		{"10.0.0.0/8", []NetRule{{Prefix: prefix("10.0.0.0/8")}}},
		{"192.0.2.1", []NetRule{{Prefix: prefix("192.0.2.1/32")}}},
		{"192.0.2.1:443", []NetRule{{Prefix: prefix("192.0.2.1/32"), First: 443, Last: 443}}},
		{"192.0.2.0/24:8000-8010/udp", []NetRule{
			{Protos: []Proto{UDP}, Prefix: prefix("192.0.2.0/24"), First: 8000, Last: 8010},
		}},
		{"192.0.2.0/24:1-65535", []NetRule{{Prefix: prefix("192.0.2.0/24"), First: 1, Last: 65535}}},
		{"192.0.2.1/icmp", []NetRule{{Protos: []Proto{ICMP}, Prefix: prefix("192.0.2.1/32")}}},
		{"192.0.2.0/24/UDP+tcp", []NetRule{{Protos: []Proto{TCP, UDP}, Prefix: prefix("192.0.2.0/24")}}},
		{"fd00::/8", []NetRule{{Prefix: prefix("fd00::/8")}}},
		{"fd00::1", []NetRule{{Prefix: prefix("fd00::1/128")}}},
		{"::1/tcp", []NetRule{{Protos: []Proto{TCP}, Prefix: prefix("::1/128")}}},
		{"fd00::/8/tcp+icmp", []NetRule{{Protos: []Proto{TCP, ICMP}, Prefix: prefix("fd00::/8")}}},
		{"[fd00::/8]:443/tcp", []NetRule{{Protos: []Proto{TCP}, Prefix: prefix("fd00::/8"), First: 443, Last: 443}}},
		{"[fd00::1]:443", []NetRule{{Prefix: prefix("fd00::1/128"), First: 443, Last: 443}}},
		{"[fd00::1]", []NetRule{{Prefix: prefix("fd00::1/128")}}},
		{"[fd00::1]/icmp", []NetRule{{Protos: []Proto{ICMP}, Prefix: prefix("fd00::1/128")}}},
		{"::ffff:192.0.2.1", []NetRule{{Prefix: prefix("192.0.2.1/32")}}},
		{"::ffff:192.0.2.0/120", []NetRule{{Prefix: prefix("192.0.2.0/24")}}},
		{"gateway", []NetRule{{Gateway: true}}},
		{"Gateway:5432/tcp", []NetRule{{Gateway: true, Protos: []Proto{TCP}, First: 5432, Last: 5432}}},
		{"all", []NetRule{{Prefix: prefix("0.0.0.0/0")}, {Prefix: prefix("::/0")}}},
		{"all:25/tcp", []NetRule{
			{Protos: []Proto{TCP}, Prefix: prefix("0.0.0.0/0"), First: 25, Last: 25},
			{Protos: []Proto{TCP}, Prefix: prefix("::/0"), First: 25, Last: 25},
		}},
		{"10.0.0.0/8 ,fd00::/8\t gateway:80\n", []NetRule{
			{Prefix: prefix("10.0.0.0/8")}, {Prefix: prefix("fd00::/8")}, {Gateway: true, First: 80, Last: 80},
		}},
	} {
		if got, err := ParseNetRules(test.in); err != nil || !reflect.DeepEqual(got, test.want) {
			t.Errorf("ParseNetRules(%q) = %v, %v, want %v", test.in, got, err, test.want)
		}
	}
}

func TestParseNetRulesErrors(t *testing.T) {
	const (
		notAddr  = "is not an IP address; write 10.0.0.0/8, fd00::/8, gateway or all"
		brackets = "character 1: brackets hold an IPv6 address; write it like [fd00::/8]:443"
		unknown  = "is unknown; write /tcp, /udp, /icmp or several, like /tcp+udp"
	)
	for _, test := range []struct {
		in   string
		want []string
	}{
		// Addresses.
		{"x", []string{`character 1: "x" ` + notAddr}},
		{"example.com:443", []string{`character 1: "example.com" ` + notAddr}},
		{":443", []string{`character 1: "" ` + notAddr}},
		{"10.0.0.0.0/8", []string{`character 1: "10.0.0.0.0" ` + notAddr}},
		{"10.0.0.1:80:90", []string{`character 1: "10.0.0.1:80:90" ` + notAddr}},
		{"[gateway]:80", []string{brackets}},
		{"[10.0.0.0/8]:80", []string{brackets}},
		{"[fd00::/8:80", []string{brackets}},
		{"[fd00::/8]80", []string{brackets}},
		{"[fd00::/8]é", []string{brackets}},
		{"fe80::1%eth0", []string{"character 1: a rule has no zone; write fe80::1"}},

		// Prefixes.
		{"10.0.0.1/8", []string{
			"character 1: 10.0.0.1 is an address within 10.0.0.0/8; write 10.0.0.0/8, or 10.0.0.1 alone",
		}},
		{"gateway [fd00::1/8]:443", []string{
			`item 2, "[fd00::1/8]:443", character 10: fd00::1 is an address within fd00::/8; ` +
				`write fd00::/8, or fd00::1 alone`,
		}},
		{"::ffff:192.0.2.0/80", []string{
			"character 1: ::ffff:192.0.2.0 is an address within ::/80; write ::/80, or ::ffff:192.0.2.0 alone",
		}},
		{"10.0.0.0/33", []string{`character 10: "33" is not the length of a prefix; write /0 to /32`}},
		{"10.0.0.0/8x:80", []string{`character 10: "8x" is not the length of a prefix; write /0 to /32`}},
		{"fd00::/129", []string{`character 8: "129" is not the length of a prefix; write /0 to /128`}},
		{"[fd00::/]:80", []string{`character 9: "" is not the length of a prefix; write /0 to /128`}},
		{"[fd00::]/8:443", []string{
			"character 9: the length of the prefix belongs into the brackets; write it like [fd00::/8]:443",
		}},
		{"fd00::/8:443/tcp", []string{
			"character 9: a port after an IPv6 address needs brackets; write [fd00::/8]:443/tcp",
		}},
		{"gateway/8", []string{"character 9: gateway stands without a prefix; leave /8 out"}},
		{"all/0:80", []string{"character 5: all stands without a prefix; leave /0 out"}},

		// Ports.
		{"10.0.0.1:", []string{"character 10: a port is missing; write it like :443 or :8000-8010"}},
		{"gateway:0", []string{"character 9: port 0 is not between 1 and 65535"}},
		{"10.0.0.0/8:65536", []string{"character 12: port 65536 is not between 1 and 65535"}},
		{"10.0.0.1:http", []string{
			`character 10: "http" is not a port; write a number, like :443 or :8000-8010`,
		}},
		{"10.0.0.0/8:80:90", []string{
			`character 14: "80:90" is not a port; write a number, like :443 or :8000-8010`,
		}},
		{"all:20-10", []string{"character 5: range 20-10 runs backwards; write 10-20"}},

		// Protocols.
		{"all/sctp", []string{`character 5: protocol "sctp" ` + unknown}},
		{"all:80/", []string{`character 8: protocol "" ` + unknown}},
		{"10.0.0.0/", []string{`character 10: protocol "" ` + unknown}},
		{"10.0.0.0/8/tcp+tcp", []string{`character 12: protocol "tcp+tcp" ` + unknown}},
		{"10.0.0.0/8/tcp:80", []string{`character 12: protocol "tcp:80" ` + unknown}},
		{"all:80/icmp", []string{"character 4: icmp has no ports; leave :80 out, or write /tcp or /udp"}},
		{"all:1-9/icmp+tcp", []string{"character 4: icmp has no ports; leave :1-9 out, or write /tcp or /udp"}},

		{"10.0.0.0/8 ä, é/tcp", []string{
			`item 2, "ä", character 12: "ä" ` + notAddr, `item 3, "é/tcp", character 15: "é" ` + notAddr,
		}},
	} {
		got, err := ParseNetRules(test.in)
		if want := strings.Join(test.want, "\n"); err == nil || err.Error() != want || got != nil {
			t.Errorf("ParseNetRules(%q) = %v, %v, want error %q", test.in, got, err, want)
		}
	}
}

func TestNetRuleString(t *testing.T) {
	for in, want := range map[string]string{
		"10.0.0.0/8":                 "10.0.0.0/8",
		"192.0.2.1:443-443/tcp":      "192.0.2.1/32:443/tcp",
		"gateway:1-2/udp+tcp":        "gateway:1-2/tcp+udp",
		"fd00::/8/icmp":              "[fd00::/8]/icmp",
		"[0:0::1]:53/tcp+udp":        "[::1/128]:53/tcp+udp",
		"all:25":                     "0.0.0.0/0:25 [::/0]:25",
		"::ffff:192.0.2.1/icmp+udp":  "192.0.2.1/32/udp+icmp",
		"[::ffff:192.0.2.0/120]:080": "192.0.2.0/24:80",
	} {
		rules, err := ParseNetRules(in)
		if got := fmt.Sprint(rules); err != nil || got != "["+want+"]" {
			t.Errorf("ParseNetRules(%q) = %v, %v, want [%s]", in, got, err, want)
		}
	}
}

func FuzzParseNetRules(f *testing.F) {
	for _, s := range []string{
		"", "10.0.0.0/8", "192.0.2.1:443/tcp", "[fd00::/8]:443/tcp", "fd00::/8", "gateway:5432", "all:25/tcp+udp",
		"all/icmp", "10.0.0.1/8", "::ffff:10.0.0.0/104,x", "[::1]/8", "fe80::1%a", "[]", "[", "10.0.0.0/", "a/0:0/a",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		rules, err := ParseNetRules(s)
		if err != nil {
			if rules != nil {
				t.Errorf("ParseNetRules(%q) = %v beside error %v", s, rules, err)
			}
			checkPlaces(t, s, err)
			return
		}
		var texts []string
		for _, r := range rules {
			if r.Gateway == r.Prefix.IsValid() || r.Prefix != r.Prefix.Masked() || r.Prefix.Addr().Is4In6() ||
				r.First > r.Last || r.First == 0 && r.Last != 0 {
				t.Errorf("ParseNetRules(%q) = %+v, which is not valid", s, r)
			}
			texts = append(texts, r.String())
		}
		again, err := ParseNetRules(strings.Join(texts, " "))
		if err != nil || !reflect.DeepEqual(again, rules) {
			t.Errorf("ParseNetRules(%q) = %v, %v, want %v as from %q", texts, again, err, rules, s)
		}
	})
}

func TestParseMetrics(t *testing.T) {
	for in, want := range map[string]netip.AddrPort{
		":9100":                   netip.AddrPortFrom(netip.Addr{}, 9100),
		"127.0.0.1:9100":          netip.MustParseAddrPort("127.0.0.1:9100"),
		"0.0.0.0:1":               netip.MustParseAddrPort("0.0.0.0:1"),
		"[::1]:9100":              netip.MustParseAddrPort("[::1]:9100"),
		"[::]:65535":              netip.MustParseAddrPort("[::]:65535"),
		"[::ffff:127.0.0.1]:9100": netip.MustParseAddrPort("127.0.0.1:9100"),
	} {
		got, err := parseMetrics(in)
		if err != nil || got != want {
			t.Errorf("parseMetrics(%q) = %v, %v, want %v", in, got, err, want)
		}
		if again, err := parseMetrics(formatMetrics(got)); err != nil || again != want {
			t.Errorf("parseMetrics(%q) = %v, %v, want %v", formatMetrics(got), again, err, want)
		}
	}
}

func TestParseMetricsErrors(t *testing.T) {
	const (
		like   = ":9100, 127.0.0.1:9100 or [::1]:9100"
		noPair = "not an address and a port; write them like " + like
	)
	for in, want := range map[string]string{
		"9100":           noPair,
		"127.0.0.1":      noPair,
		"::1:9100":       noPair,
		"on":             noPair,
		":":              "a port is missing; write it like " + like,
		":0":             "port 0 is not between 1 and 65535",
		":http":          `"http" is not a port; write a number, like ` + like,
		"localhost:9100": `"localhost" is not an IP address; write it like ` + like,
		"http://a:9100":  noPair,
	} {
		if got, err := parseMetrics(in); err == nil || err.Error() != want {
			t.Errorf("parseMetrics(%q) = %v, %v, want error %q", in, got, err, want)
		}
	}
}

// TestMetricsClash checks that one port is not given to the metrics and to the guest.
func TestMetricsClash(t *testing.T) {
	const mend = `; choose another one here, or add ~9100/tcp to PORTS`
	for _, test := range []struct{ ports, metrics, want string }{
		{"22 9100", ":9100", `NET_METRICS=":9100": PORTS="22 9100" forwards 9100:9100 from the same port` + mend},
		{"9000-9200:1-201", "127.0.0.1:9100", `NET_METRICS="127.0.0.1:9100": PORTS="9000-9200:1-201" forwards ` +
			`9000-9200:1-201 from the same port` + mend},
		{"0.0.0.0:9100:80", "127.0.0.1:9100", `NET_METRICS="127.0.0.1:9100": PORTS="0.0.0.0:9100:80" forwards ` +
			`0.0.0.0:9100:80 from the same port` + mend},
		{"9000-9200 ~9100", ":9100", ""},
		{"9100/udp", ":9100", ""},
		{"all", ":9100", ""},
		{"127.0.0.1:9100:80", "[::]:9100", ""},
		{"127.0.0.1:9100:80", "127.0.0.2:9100", ""},
		{"9101:9100", ":9100", ""},
	} {
		_, err := loadWith(t, map[string]string{"PORTS": test.ports, "NET_METRICS": test.metrics})
		switch {
		case test.want == "" && err != nil, test.want != "" && (err == nil || err.Error() != test.want):
			t.Errorf("PORTS=%q NET_METRICS=%q: %v, want %q", test.ports, test.metrics, err, test.want)
		}
	}
}
