package supervisor

import (
	"bytes"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"docker-usermode-linux/internal/config"
	"docker-usermode-linux/internal/slirp"
	"docker-usermode-linux/internal/slirp/dns"
)

func TestForwards(t *testing.T) {
	loopback := netip.MustParseAddr("127.0.0.1")
	got := forwards([]config.Forward{
		{Proto: config.TCP, HostPort: 2222, GuestPort: 22, Count: 1},
		{Proto: config.UDP, HostAddr: loopback, HostPort: 65534, GuestPort: 53, Count: 2, BestEffort: true},
	})
	want := []slirp.Forward{
		{Proto: slirp.TCP, Host: netip.AddrPortFrom(netip.Addr{}, 2222), Guest: 22, Count: 1},
		{Proto: slirp.UDP, Host: netip.AddrPortFrom(loopback, 65534), Guest: 53, Count: 2, BestEffort: true},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("forwards = %v, want %v", got, want)
	}
	if got := forwards(nil); got != nil {
		t.Errorf("forwards(nil) = %v", got)
	}
}

func TestRules(t *testing.T) {
	net10 := netip.MustParsePrefix("10.0.0.0/8")
	got := rules([]config.NetRule{
		{Protos: []config.Proto{config.UDP, config.ICMP}, Prefix: net10},
		{Gateway: true, First: 5432, Last: 5433},
	})
	want := []slirp.Rule{
		{Protos: []slirp.Proto{slirp.UDP, slirp.ICMP}, Prefix: net10},
		{Prefix: netip.MustParsePrefix("10.0.2.2/32"), First: 5432, Last: 5433},
		{Prefix: netip.MustParsePrefix("fd00:10:0:2::2/128"), First: 5432, Last: 5433},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("rules() = %v, want %v", got, want)
	}
}

func TestGatewayNames(t *testing.T) {
	v4, v6 := slirp.GatewayAddr, slirp.GatewayAddr6
	for rules, want := range map[string][]netip.Addr{
		"":                                nil,
		"gateway:80":                      {v4, v6},
		"10.0.2.2":                        {v4},
		"10.0.2.0/24":                     {v4},
		"fd00:10:0:2::2":                  {v6},
		"fd00:10:0:2::/64 10.0.2.2:80":    {v4, v6},
		"10.0.0.0/8 all fd00::/8 ::1/128": nil, // open nothing there
	} {
		allow, err := config.ParseNetRules(rules)
		if err != nil {
			t.Fatal(err)
		}
		if got := gatewayNames(allow); !slices.Equal(got[hostName], want) {
			t.Errorf("gatewayNames(%s) = %v, want %v", rules, got, want)
		}
	}
}

// TestWarnRules checks that nobody believes to have opened something that does not exist.
func TestWarnRules(t *testing.T) {
	allow, err := config.ParseNetRules("10.0.2.7 10.0.2.2 10.0.2.0/24 10.0.0.0/8 all gateway:80 fd00:10:0:2::7 fd00:10:0:2::/64 " +
		"10.0.2.128/25:80")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	warnRules(allow, zerolog.New(&out))
	var got []string
	for line := range strings.Lines(out.String()) {
		_, rule, _ := strings.Cut(line, `"rule":"`)
		rule, _, _ = strings.Cut(rule, `"`)
		got = append(got, rule)
	}
	if want := []string{"10.0.2.7/32", "[fd00:10:0:2::7/128]", "10.0.2.128/25:80"}; !slices.Equal(got, want) {
		t.Errorf("warned of %v, want %v", got, want)
	}
}

// TestRunSetsNoPublicPassword checks that a guest for one command, of which nobody is warned, gets no password that nobody
// asked for, and keeps what was asked for.
func TestRunSetsNoPublicPassword(t *testing.T) {
	byDefault := config.Config{RootPassword: config.DefaultRootPassword, PasswordDefault: true}
	run := Job{Command: &Command{}}
	if s := bootSettings(byDefault, run, zerolog.Nop()); s.RootPassword != "" || !s.LoginUnasked ||
		s.DefaultPassword != config.DefaultRootPassword {
		t.Errorf("run by default: %+v", s)
	}
	if s := bootSettings(byDefault, Job{}, zerolog.Nop()); s.RootPassword != config.DefaultRootPassword || s.LoginUnasked {
		t.Errorf("a boot by default: %+v", s)
	}
	chosen := config.Config{RootPassword: config.DefaultRootPassword}
	if s := bootSettings(chosen, run, zerolog.Nop()); s.RootPassword == "" || !s.PasswordForced || s.LoginUnasked {
		t.Errorf("run with a password: %+v", s)
	}
}

// TestNoPublicPasswordFromOutside checks that a host's port which others reach leads to no password that everyone knows.
func TestNoPublicPasswordFromOutside(t *testing.T) {
	for ports, want := range map[string]bool{
		"2222:22": true, "0.0.0.0:2222:22": true, "[::]:2222:22": true, "192.0.2.1:2222:22": true, "2000-2100:20-120": true,
		"127.0.0.1:2222:22 2222:22/udp 8080:80": false, "127.0.0.1:2222:22 192.0.2.1:2222:22": true,
		"127.9.9.9:2222:22": false, "[::1]:2222:22": false, "": false,
	} {
		forwards, err := config.ParsePorts(ports, os.DirFS("/proc"))
		if err != nil {
			t.Fatal(err)
		}
		cfg := config.Config{
			RootPassword: config.DefaultRootPassword, PasswordDefault: true, Ports: forwards, Options: config.Options{Host: true},
		}
		var out bytes.Buffer
		warn(cfg, Job{}, zerolog.New(&out))
		s := bootSettings(cfg, Job{}, zerolog.Nop())
		if none := s.RootPassword == "" && s.DefaultPassword != "" && !s.LoginUnasked; none != want {
			t.Errorf("PORTS=%s: %+v, want no password: %v", ports, s, want)
		}
		if told := strings.Contains(out.String(), "root gets no password"); told != want {
			t.Errorf("PORTS=%s: log %s", ports, out.String())
		}
		cfg.PasswordDefault = false // the user's own choice, or a container
		if s := bootSettings(cfg, Job{}, zerolog.Nop()); s.RootPassword == "" {
			t.Errorf("PORTS=%s: a password that was asked for is lost", ports)
		}
		cfg.PasswordDefault, cfg.Options.Host = true, false
		if s := bootSettings(cfg, Job{}, zerolog.Nop()); s.RootPassword == "" {
			t.Errorf("PORTS=%s: a container has no password", ports)
		}
	}
}

func TestGuestNetwork(t *testing.T) {
	n := guestNetwork(dns.Config{Search: []string{"example.org"}, Options: []string{"ndots:2"}})
	var got []string
	for _, a := range n.Addresses {
		got = append(got, a.Prefix.String())
		if !a.Prefix.Contains(a.Gateway) {
			t.Errorf("gateway %s is not on the guest's link %s", a.Gateway, a.Prefix)
		}
	}
	if want := "10.0.2.15/24 fd00:10:0:2::15/64"; strings.Join(got, " ") != want {
		t.Errorf("addresses = %v, want %s", got, want)
	}
	if !n.Addresses[0].Prefix.Contains(n.Nameservers[0]) {
		t.Errorf("name server %v is not on the guest's link", n.Nameservers)
	}
	if n.Search[0] != "example.org" || n.Options[0] != "ndots:2" {
		t.Errorf("resolver's settings got lost: %+v", n)
	}
}

// TestCRLFWriter cuts the text at every place: a line end may come in two writes.
func TestCRLFWriter(t *testing.T) {
	const text, want = "a\r\nb\r\r\n10%\r20%\r\n\n", "a\nb\r\n10%\r20%\n\n"
	for i := range len(text) {
		var out bytes.Buffer
		w := &crlfWriter{w: &out}
		for _, part := range []string{text[:i], text[i:]} {
			if n, err := w.Write([]byte(part)); n != len(part) || err != nil {
				t.Fatalf("Write(%q) = %d, %v", part, n, err)
			}
		}
		if out.String() != want {
			t.Errorf("cut at %d: %q, want %q", i, out.String(), want)
		}
	}
}

// TestMessageLog keeps the last lines, whatever their length, and repeats them as errors.
func TestMessageLog(t *testing.T) {
	var out bytes.Buffer
	m, err := newMessageLog(zerolog.New(&out).Level(zerolog.InfoLevel))
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	kernel := m.guest
	m.guest = nil
	go m.read()
	for range keptMessages {
		if _, err := kernel.WriteString("an early line\n"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := kernel.WriteString(strings.Repeat("x", 100_000) + "\n\nToo few physical memory!\r\n"); err != nil {
		t.Fatal(err)
	}
	kernel.Close()
	m.drain(drainTimeout)
	if out.Len() != 0 {
		t.Errorf("logged at once, above debug: %.200s", out.String())
	}
	m.replay()
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != keptMessages || !strings.Contains(lines[len(lines)-1], `"line":"Too few physical memory!"`) {
		t.Errorf("%d lines, want %d, the last: %.200s", len(lines), keptMessages, lines[len(lines)-1])
	}
}
