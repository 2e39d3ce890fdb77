package supervisor

import (
	"bytes"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"docker-usermode-linux/internal/config"
	"docker-usermode-linux/internal/slirp"
	"docker-usermode-linux/internal/slirp/dns"
)

func TestFormatSize(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0", 1: "1", 1023: "1023", 1 << 10: "1K", 256 << 20: "256M", 1 << 30: "1G", 3 << 29: "1536M", 1<<30 + 1: "1073741825",
	} {
		if got := formatSize(n); got != want {
			t.Errorf("formatSize(%d) = %s, want %s", n, got, want)
		}
	}
}

func TestForwards(t *testing.T) {
	loopback := netip.MustParseAddr("127.0.0.1")
	got := forwards([]config.Forward{
		{Proto: config.TCP, HostPort: 2222, GuestPort: 22, Count: 1},
		{Proto: config.UDP, HostAddr: loopback, HostPort: 65534, GuestPort: 53, Count: 2},
	})
	want := []slirp.Forward{
		{Proto: slirp.TCP, Host: netip.AddrPortFrom(netip.Addr{}, 2222), Guest: 22},
		{Proto: slirp.UDP, Host: netip.AddrPortFrom(loopback, 65534), Guest: 53},
		{Proto: slirp.UDP, Host: netip.AddrPortFrom(loopback, 65535), Guest: 54},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("forwards = %v, want %v", got, want)
	}
	if got := forwards(nil); got != nil {
		t.Errorf("forwards(nil) = %v", got)
	}
}

func TestGuestNetwork(t *testing.T) {
	n := guestNetwork(dns.Config{Search: []string{"example.org"}, Options: []string{"ndots:2"}})
	if got := n.Address.String(); got != "10.0.2.15/24" {
		t.Errorf("address = %s", got)
	}
	if !n.Address.Contains(n.Gateway) || !n.Address.Contains(n.Nameservers[0]) {
		t.Errorf("gateway %s or name server %v is not on the guest's link %s", n.Gateway, n.Nameservers, n.Address)
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
