package config

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func TestParsePorts(t *testing.T) {
	v4, v6 := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")
	for _, test := range []struct {
		in   string
		want []Forward
	}{
		{"", nil},
		{" , ", nil},
		{"22", []Forward{{HostPort: 22, GuestPort: 22, Count: 1}}},
		{"8080:80", []Forward{{HostPort: 8080, GuestPort: 80, Count: 1}}},
		{"8080:80/tcp", []Forward{{HostPort: 8080, GuestPort: 80, Count: 1}}},
		{"53/udp", []Forward{{Proto: UDP, HostPort: 53, GuestPort: 53, Count: 1}}},
		{"53/UDP", []Forward{{Proto: UDP, HostPort: 53, GuestPort: 53, Count: 1}}},
		{"53/tcp+udp", []Forward{
			{HostPort: 53, GuestPort: 53, Count: 1}, {Proto: UDP, HostPort: 53, GuestPort: 53, Count: 1},
		}},
		{"5000-5010", []Forward{{HostPort: 5000, GuestPort: 5000, Count: 11}}},
		{"5000-5000", []Forward{{HostPort: 5000, GuestPort: 5000, Count: 1}}},
		{"1-65535", []Forward{{HostPort: 1, GuestPort: 1, Count: 65535}}},
		{"8000-8010:9000-9010", []Forward{{HostPort: 8000, GuestPort: 9000, Count: 11}}},
		{"127.0.0.1:8080:80", []Forward{{HostAddr: v4, HostPort: 8080, GuestPort: 80, Count: 1}}},
		{"[::1]:443:443", []Forward{{HostAddr: v6, HostPort: 443, GuestPort: 443, Count: 1}}},
		{"[::ffff:127.0.0.1]:1:1", []Forward{{HostAddr: v4, HostPort: 1, GuestPort: 1, Count: 1}}},
		{"80:80,443:443 \n\t53:53/udp,,", []Forward{
			{HostPort: 80, GuestPort: 80, Count: 1},
			{HostPort: 443, GuestPort: 443, Count: 1},
			{Proto: UDP, HostPort: 53, GuestPort: 53, Count: 1},
		}},
		{"80:80/tcp 80:81/udp", []Forward{
			{HostPort: 80, GuestPort: 80, Count: 1}, {Proto: UDP, HostPort: 80, GuestPort: 81, Count: 1},
		}},
		{"127.0.0.1:80:80 127.0.0.2:80:81 [::]:80:82", []Forward{
			{HostAddr: v4, HostPort: 80, GuestPort: 80, Count: 1},
			{HostAddr: netip.MustParseAddr("127.0.0.2"), HostPort: 80, GuestPort: 81, Count: 1},
			{HostAddr: netip.IPv6Unspecified(), HostPort: 80, GuestPort: 82, Count: 1},
		}},
	} {
		if got, err := ParsePorts(test.in); err != nil || !reflect.DeepEqual(got, test.want) {
			t.Errorf("ParsePorts(%q) = %v, %v, want %v", test.in, got, err, test.want)
		}
	}
}

func TestParsePortsErrors(t *testing.T) {
	for _, test := range []struct {
		in   string
		want []string
	}{
		{"0", []string{"port 0 is not between 1 and 65535"}},
		{"65536", []string{"port 65536 is not between 1 and 65535"}},
		{"99999999999999999999", []string{"port 99999999999999999999 is not between 1 and 65535"}},
		{"-1", []string{"a port is missing; write it like 22, 8080:80 or 53/udp"}},
		{":80", []string{"a port is missing; write it like 22, 8080:80 or 53/udp"}},
		{"80:", []string{"a port is missing; write it like 22, 8080:80 or 53/udp"}},
		{"/udp", []string{"a port is missing; write it like 22, 8080:80 or 53/udp"}},
		{"ssh", []string{`"ssh" is not a port; write a number, like 22, 8080:80 or 53/udp`}},
		{"+22", []string{`"+22" is not a port; write a number, like 22, 8080:80 or 53/udp`}},
		{"80/sctp", []string{`protocol "sctp" is unknown; write /tcp, /udp or /tcp+udp`}},
		{"80/", []string{`protocol "" is unknown; write /tcp, /udp or /tcp+udp`}},
		{"20-10", []string{"range 20-10 runs backwards; write 10-20"}},
		{"8000-8010:80", []string{"8000-8010 and 80 differ in length, 11 and 1; make both sides equally long"}},
		{"127.0.0.1:80", []string{"an address needs both ports; write it like 127.0.0.1:8080:80"}},
		{"127.0.0.1:80/udp", []string{"an address needs both ports; write it like 127.0.0.1:8080:80"}},
		{"[::1]", []string{"an address needs both ports; write it like [::1]:8080:80"}},
		{"[::1:80:80", []string{"brackets hold an IPv6 address; write it like [::1]:443:443"}},
		{"[::1]80:80", []string{"brackets hold an IPv6 address; write it like [::1]:443:443"}},
		{"[127.0.0.1]:80:80", []string{`"127.0.0.1" is not an IP address; write one like 127.0.0.1 or [::1]`}},
		{"::1:80:80", []string{"too many colons; put an IPv6 address into brackets, like [::1]:443:443"}},
		{"localhost:80:80", []string{`"localhost" is not an IP address; write one like 127.0.0.1 or [::1]`}},
		{"22 x 99999", []string{
			`item 2, "x": "x" is not a port; write a number, like 22, 8080:80 or 53/udp`,
			`item 3, "99999": port 99999 is not between 1 and 65535`,
		}},
		{"22 22", []string{`item 2, "22": host port 22/tcp is already taken by item 1, "22"; remove one of the two`}},
		{"53/tcp+udp 1053:53 53:1053/udp", []string{
			`item 3, "53:1053/udp": host port 53/udp is already taken by item 1, "53/tcp+udp"; remove one of the two`,
		}},
		{"8005:1 8000-8010", []string{
			`item 2, "8000-8010": host port 8005/tcp is already taken by item 1, "8005:1"; remove one of the two`,
		}},
		{"127.0.0.1:80:80 80:81", []string{
			`item 2, "80:81": host port 80/tcp is already taken by item 1, "127.0.0.1:80:80"; remove one of the two`,
		}},
		{"0.0.0.0:80:80 127.0.0.1:80:81", []string{
			`item 2, "127.0.0.1:80:81": host port 80/tcp is already taken by item 1, "0.0.0.0:80:80"; ` +
				`remove one of the two`,
		}},
	} {
		got, err := ParsePorts(test.in)
		if want := strings.Join(test.want, "\n"); err == nil || err.Error() != want || got != nil {
			t.Errorf("ParsePorts(%q) = %v, %v, want error %q", test.in, got, err, want)
		}
	}
}

func TestForwardString(t *testing.T) {
	for in, want := range map[string]string{
		"22":                            "22:22",
		"53/udp":                        "53:53/udp",
		"5000-5010:6000-6010/tcp":       "5000-5010:6000-6010",
		"127.0.0.1:8080:80":             "127.0.0.1:8080:80",
		"[0:0::1]:443:443/udp":          "[::1]:443:443/udp",
		"[fe80::1%eth0]:1-2:3-4":        "[fe80::1%eth0]:1-2:3-4",
		"[::ffff:192.0.2.1]:0080:00080": "192.0.2.1:80:80",
	} {
		forwards, err := ParsePorts(in)
		if got := fmt.Sprint(forwards); err != nil || got != "["+want+"]" {
			t.Errorf("ParsePorts(%q) = %v, %v, want [%s]", in, got, err, want)
		}
	}
}

func FuzzParsePorts(f *testing.F) {
	for _, s := range []string{
		"", "22", "8080:80", "53/udp", "5000-5010", "8000-8010:9000-9010", "127.0.0.1:8080:80", "[::1]:443:443",
		"80/tcp+udp", "22 22", "1-10 5-15,7", "127.0.0.1:1:1 0.0.0.0:1:2 [::]:1:3", "[fe80::1%a]:1:1", "65535-65536",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		forwards, err := ParsePorts(s)
		if err != nil {
			if forwards != nil {
				t.Errorf("ParsePorts(%q) = %v beside error %v", s, forwards, err)
			}
			return
		}
		var texts []string
		for i, f := range forwards {
			if f.HostPort < 1 || f.GuestPort < 1 || f.Count < 1 ||
				int(f.HostPort)+f.Count-1 > 65535 || int(f.GuestPort)+f.Count-1 > 65535 {
				t.Errorf("ParsePorts(%q) = %+v, which is out of range", s, f)
			}
			for _, g := range forwards[:i] {
				if f.clashes(g) {
					t.Errorf("ParsePorts(%q) = %v and %v, which clash", s, g, f)
				}
			}
			texts = append(texts, f.String())
		}
		again, err := ParsePorts(strings.Join(texts, ","))
		if err != nil || !reflect.DeepEqual(again, forwards) {
			t.Errorf("ParsePorts(%q) = %v, %v, want %v as from %q", texts, again, err, forwards, s)
		}
	})
}
