package config

import (
	"fmt"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"unicode/utf8"
)

// testProc is a /proc whose kernel gives 40000 to 49999 to outgoing connections.
var testProc = fstest.MapFS{"sys/net/ipv4/ip_local_port_range": {Data: []byte("40000\t49999\n")}}

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
		{"127.0.0.1:53:53/tcp+udp", []Forward{
			{HostAddr: v4, HostPort: 53, GuestPort: 53, Count: 1},
			{Proto: UDP, HostAddr: v4, HostPort: 53, GuestPort: 53, Count: 1},
		}},
		{"53/udp+TCP", []Forward{
			{HostPort: 53, GuestPort: 53, Count: 1}, {Proto: UDP, HostPort: 53, GuestPort: 53, Count: 1},
		}},

		// Exclusions.
		{"8000-8010:9000-9010 ~8005", []Forward{
			{HostPort: 8000, GuestPort: 9000, Count: 5}, {HostPort: 8006, GuestPort: 9006, Count: 5},
		}},
		{"~8000,~8009-8020/tcp,8000-8010", []Forward{{HostPort: 8001, GuestPort: 8001, Count: 8}}},
		{"5000-5003/tcp+udp ~5001/udp", []Forward{
			{HostPort: 5000, GuestPort: 5000, Count: 4},
			{Proto: UDP, HostPort: 5000, GuestPort: 5000, Count: 1},
			{Proto: UDP, HostPort: 5002, GuestPort: 5002, Count: 2},
		}},
		{"5000-5003/tcp+udp ~5001-5003/tcp+udp", []Forward{
			{HostPort: 5000, GuestPort: 5000, Count: 1}, {Proto: UDP, HostPort: 5000, GuestPort: 5000, Count: 1},
		}},
		{"5000-5005 ~5001-5003 ~5002-5004 ~5003", []Forward{
			{HostPort: 5000, GuestPort: 5000, Count: 1}, {HostPort: 5005, GuestPort: 5005, Count: 1},
		}},
		{"127.0.0.1:1-2:3-4 [::1]:1-2:3-4 ~2", []Forward{
			{HostAddr: v4, HostPort: 1, GuestPort: 3, Count: 1}, {HostAddr: v6, HostPort: 1, GuestPort: 3, Count: 1},
		}},
		{"22 80 ~22", []Forward{{HostPort: 80, GuestPort: 80, Count: 1}}},
		{"22 ~22", nil},

		// All.
		{"all", []Forward{
			{HostPort: 1, GuestPort: 1, Count: 39999, BestEffort: true},
			{HostPort: 50000, GuestPort: 50000, Count: 15536, BestEffort: true},
		}},
		{"ALL/udp ~1-50000 ~65535", []Forward{
			{Proto: UDP, HostPort: 50001, GuestPort: 50001, Count: 15534, BestEffort: true},
		}},
		{"~10-65535 all/tcp+udp 5/udp", []Forward{
			{HostPort: 1, GuestPort: 1, Count: 9, BestEffort: true},
			{Proto: UDP, HostPort: 1, GuestPort: 1, Count: 4, BestEffort: true},
			{Proto: UDP, HostPort: 6, GuestPort: 6, Count: 4, BestEffort: true},
			{Proto: UDP, HostPort: 5, GuestPort: 5, Count: 1},
		}},
		{"45000 2:22 127.0.0.1:4:4 all ~6-65535", []Forward{
			{HostPort: 2, GuestPort: 22, Count: 1},
			{HostAddr: v4, HostPort: 4, GuestPort: 4, Count: 1},
			{HostPort: 1, GuestPort: 1, Count: 1, BestEffort: true},
			{HostPort: 3, GuestPort: 3, Count: 1, BestEffort: true},
			{HostPort: 5, GuestPort: 5, Count: 1, BestEffort: true},
		}},
		{"127.0.0.1:all [::1]:all 127.0.0.2:2:2 ~3-65535", []Forward{
			{HostAddr: v4, HostPort: 1, GuestPort: 1, Count: 2, BestEffort: true},
			{HostAddr: v6, HostPort: 1, GuestPort: 1, Count: 2, BestEffort: true},
			{HostAddr: netip.MustParseAddr("127.0.0.2"), HostPort: 2, GuestPort: 2, Count: 1},
		}},
		{"all all/udp ~2-65535", []Forward{
			{HostPort: 1, GuestPort: 1, Count: 1, BestEffort: true},
			{Proto: UDP, HostPort: 1, GuestPort: 1, Count: 1, BestEffort: true},
		}},
		{"all ~45000 ~2-65535", []Forward{{HostPort: 1, GuestPort: 1, Count: 1, BestEffort: true}}},
		{"45000 all ~1-44999 ~45001-65535", []Forward{{HostPort: 45000, GuestPort: 45000, Count: 1}}},
	} {
		if got, err := ParsePorts(test.in, testProc); err != nil || !reflect.DeepEqual(got, test.want) {
			t.Errorf("ParsePorts(%q) = %v, %v, want %v", test.in, got, err, test.want)
		}
	}
}

func TestParsePortsErrors(t *testing.T) {
	for _, test := range []struct {
		in   string
		want []string
	}{
		{"0", []string{"character 1: port 0 is not between 1 and 65535"}},
		{"65536", []string{"character 1: port 65536 is not between 1 and 65535"}},
		{"99999999999999999999", []string{"character 1: port 99999999999999999999 is not between 1 and 65535"}},
		{"-1", []string{"character 1: a port is missing; write it like 22, 8080:80 or 53/udp"}},
		{":80", []string{"character 1: a port is missing; write it like 22, 8080:80 or 53/udp"}},
		{"80:", []string{"character 4: a port is missing; write it like 22, 8080:80 or 53/udp"}},
		{"/udp", []string{"character 1: a port is missing; write it like 22, 8080:80 or 53/udp"}},
		{"ssh", []string{`character 1: "ssh" is not a port; write a number, like 22, 8080:80 or 53/udp`}},
		{"+22", []string{`character 1: "+22" is not a port; write a number, like 22, 8080:80 or 53/udp`}},
		{" 127.0.0.1:80x:80", []string{
			`character 14: "80x" is not a port; write a number, like 22, 8080:80 or 53/udp`,
		}},
		{"22,80x:80", []string{
			`item 2, "80x:80", character 6: "80x" is not a port; write a number, like 22, 8080:80 or 53/udp`,
		}},
		{"ä, 22:2ä", []string{
			`item 1, "ä", character 1: "ä" is not a port; write a number, like 22, 8080:80 or 53/udp`,
			`item 2, "22:2ä", character 8: "2ä" is not a port; write a number, like 22, 8080:80 or 53/udp`,
		}},
		{"80/sctp", []string{`character 4: protocol "sctp" is unknown; write /tcp, /udp or /tcp+udp`}},
		{"80/icmp", []string{`character 4: protocol "icmp" is unknown; write /tcp, /udp or /tcp+udp`}},
		{"80/tcp+tcp", []string{`character 4: protocol "tcp+tcp" is unknown; write /tcp, /udp or /tcp+udp`}},
		{"80/", []string{`character 4: protocol "" is unknown; write /tcp, /udp or /tcp+udp`}},
		{"20-10", []string{"character 1: range 20-10 runs backwards; write 10-20"}},
		{"8000-8010:80", []string{
			"character 1: 8000-8010 and 80 differ in length, 11 and 1; make both sides equally long",
		}},
		{"127.0.0.1:80", []string{"character 11: an address needs both ports; write it like 127.0.0.1:8080:80"}},
		{"127.0.0.1:80/udp", []string{"character 11: an address needs both ports; write it like 127.0.0.1:8080:80"}},
		{"[::1]", []string{"character 6: an address needs both ports; write it like [::1]:8080:80"}},
		{"[::1:80:80", []string{"character 1: brackets hold an IPv6 address; write it like [::1]:443:443"}},
		{"[::1]80:80", []string{"character 1: brackets hold an IPv6 address; write it like [::1]:443:443"}},
		{"[127.0.0.1]:80:80", []string{
			`character 2: "127.0.0.1" is not an IP address; write one like 127.0.0.1 or [::1]`,
		}},
		{"::1:80:80", []string{"character 1: too many colons; put an IPv6 address into brackets, like [::1]:443:443"}},
		{"localhost:80:80", []string{
			`character 1: "localhost" is not an IP address; write one like 127.0.0.1 or [::1]`,
		}},
		{"22 x 99999", []string{
			`item 2, "x", character 4: "x" is not a port; write a number, like 22, 8080:80 or 53/udp`,
			`item 3, "99999", character 6: port 99999 is not between 1 and 65535`,
		}},

		// Overlaps.
		{"22 22", []string{
			`item 2, "22", character 4: host port 22/tcp is already taken by item 1, "22"; remove one of the two`,
		}},
		{"53/tcp+udp 1053:53 53:1053/udp", []string{
			`item 3, "53:1053/udp", character 20: host port 53/udp is already taken by item 1, "53/tcp+udp"; ` +
				`remove one of the two`,
		}},
		{"8005:1 8000-8010", []string{
			`item 2, "8000-8010", character 8: host port 8005/tcp is already taken by item 1, "8005:1"; ` +
				`remove one of the two`,
		}},
		{"127.0.0.1:80:80 80:81", []string{
			`item 2, "80:81", character 17: host port 80/tcp is already taken by item 1, "127.0.0.1:80:80"; ` +
				`remove one of the two`,
		}},
		{"0.0.0.0:80:80 127.0.0.1:80:81", []string{
			`item 2, "127.0.0.1:80:81", character 15: host port 80/tcp is already taken by item 1, "0.0.0.0:80:80"; ` +
				`remove one of the two`,
		}},
		{"all 127.0.0.1:all/tcp+udp", []string{
			`item 2, "127.0.0.1:all/tcp+udp", character 5: host port 1/tcp is already taken by item 1, "all"; ` +
				`remove one of the two`,
		}},
		{"80-90 85:1 all ~85", []string{
			`item 2, "85:1", character 7: host port 85/tcp is already taken by item 1, "80-90"; remove one of the two`,
		}},

		// All and exclusions.
		{"all:all", []string{"character 1: all stands for both sides; write it once, like all or 127.0.0.1:all"}},
		{"80:all", []string{"character 1: all stands for both sides; write it once, like all or 127.0.0.1:all"}},
		{"127.0.0.1:all:80", []string{
			"character 11: all stands for both sides; write it once, like all or 127.0.0.1:all",
		}},
		{"all-80", []string{`character 1: "all" is not a port; write a number, like 22, 8080:80 or 53/udp`}},
		{"~", []string{"character 2: a port is missing; write it like ~22 or ~8000-8010/udp"}},
		{"all ~x", []string{
			`item 2, "~x", character 6: "x" is not a port; write a number, like ~22 or ~8000-8010/udp`,
		}},
		{"all ~22/icmp", []string{
			`item 2, "~22/icmp", character 9: protocol "icmp" is unknown; write /tcp, /udp or /tcp+udp`,
		}},
		{"all ~127.0.0.1:22", []string{
			`item 2, "~127.0.0.1:22", character 15: an exclusion is for all addresses and has no guest port; ` +
				`write ~ and ports of the container, like ~22 or ~8000-8010/udp`,
		}},
		{"~22", []string{
			"character 1: excludes nothing that the list forwards; remove it, or add all to forward every other port",
		}},
		{"80-90 ~22 ~85 ~85/udp", []string{
			`item 2, "~22", character 7: excludes nothing that the list forwards; remove it, or add all to forward ` +
				`every other port`,
			`item 4, "~85/udp", character 15: excludes nothing that the list forwards; remove it, or add all to forward ` +
				`every other port`,
		}},
		{"80x-90 ~85", []string{
			`item 1, "80x-90", character 3: "80x" is not a port; write a number, like 22, 8080:80 or 53/udp`,
		}},
	} {
		got, err := ParsePorts(test.in, testProc)
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
		forwards, err := ParsePorts(in, testProc)
		if got := fmt.Sprint(forwards); err != nil || got != "["+want+"]" {
			t.Errorf("ParsePorts(%q) = %v, %v, want [%s]", in, got, err, want)
		}
	}
}

func FuzzParsePorts(f *testing.F) {
	for _, s := range []string{
		"", "22", "8080:80", "53/udp", "5000-5010", "8000-8010:9000-9010", "127.0.0.1:8080:80", "[::1]:443:443",
		"~22", "all", "all/tcp+udp ~22,~8000-8010/udp 2222:22", "127.0.0.1:all [::1]:all/udp ~1-9", "1-9:11-19 ~3-5",
		"22,80x:80",
		"80/tcp+udp", "22 22", "1-10 5-15,7", "127.0.0.1:1:1 0.0.0.0:1:2 [::]:1:3", "[fe80::1%a]:1:1", "65535-65536",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		forwards, err := ParsePorts(s, testProc)
		if err != nil {
			if forwards != nil {
				t.Errorf("ParsePorts(%q) = %v beside error %v", s, forwards, err)
			}
			checkPlaces(t, s, err)
			return
		}
		var texts []string
		explicit := slices.Clone(forwards)
		for i, f := range forwards {
			if f.HostPort < 1 || f.GuestPort < 1 || f.Count < 1 ||
				int(f.HostPort)+f.Count-1 > 65535 || int(f.GuestPort)+f.Count-1 > 65535 {
				t.Errorf("ParsePorts(%q) = %+v, which is out of range", s, f)
			}
			for _, g := range forwards[:i] {
				if f.overlaps(g) {
					t.Errorf("ParsePorts(%q) = %v and %v, which overlap", s, g, f)
				}
			}
			texts = append(texts, f.String())
			explicit[i].BestEffort = false
		}
		again, err := ParsePorts(strings.Join(texts, ","), testProc)
		if err != nil || !reflect.DeepEqual(again, explicit) {
			t.Errorf("ParsePorts(%q) = %v, %v, want %v as from %q", texts, again, err, explicit, s)
		}
	})
}

var place = regexp.MustCompile(`^(?:item \d+, ".*", )?character (\d+): .`)

// checkPlaces checks that every line of err points into s, or to its end.
func checkPlaces(t *testing.T, s string, err error) {
	t.Helper()
	for line := range strings.SplitSeq(err.Error(), "\n") {
		found := place.FindStringSubmatch(line)
		if found == nil {
			t.Errorf("the error of %q has no place: %s", s, line)
			continue
		}
		if n, err := strconv.Atoi(found[1]); err != nil || n < 1 || n > utf8.RuneCountInString(s)+1 {
			t.Errorf("the error of %q points outside of it: %s", s, line)
		}
	}
}

func TestEphemeralPorts(t *testing.T) {
	const name = "sys/net/ipv4/ip_local_port_range"
	for _, test := range []struct {
		name, path, content string
		want                portRange
	}{
		{"the kernel's form", name, "1024\t65535\n", portRange{1024, 64512}},
		{"one port", name, "5000 5000", portRange{5000, 1}},
		{"no file", "x", "", defaultLocalPorts},
		{"empty", name, "", defaultLocalPorts},
		{"half", name, "1024\n", defaultLocalPorts},
		{"backwards", name, "2000 1000", defaultLocalPorts},
		{"zero", name, "0 1000", defaultLocalPorts},
		{"out of range", name, "1024 65536", defaultLocalPorts},
		{"garbage", name, "a b", defaultLocalPorts},
	} {
		proc := fstest.MapFS{test.path: {Data: []byte(test.content)}}
		if got := ephemeralPorts(proc); got != test.want {
			t.Errorf("%s: ephemeralPorts() = %v, want %v", test.name, got, test.want)
		}
	}
	if got := defaultLocalPorts.String(); got != "32768-60999" {
		t.Errorf("defaultLocalPorts = %s, want 32768-60999", got)
	}
}
