package command

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"docker-usermode-linux/internal/slirp"
)

func sampleInspection() slirp.Inspection {
	addr := netip.MustParseAddrPort
	return slirp.Inspection{
		Up: true, Age: 93784.2,
		Forwards: []slirp.ForwardInfo{
			{Proto: "tcp", HostAddr: "*", HostPort: 2222, GuestPort: 22, Count: 1, Clients: 12, Live: 1},
			{Proto: "udp", HostAddr: "::1", HostPort: 8000, GuestPort: 80, Count: 11},
		},
		Flows: []slirp.FlowInfo{
			{
				ID: 7, Proto: "tcp", Direction: "in", Initiator: addr("10.0.2.2:49152"), Target: addr("10.0.2.15:22"),
				Peer: addr("172.17.0.1:53124"), State: "established", Age: 3725, Idle: 12.3, ToHost: 1536, ToGuest: 5 << 30,
			},
			{
				ID: 9, Proto: "udp", Direction: "out", Initiator: addr("10.0.2.15:5353"), State: "unanswered",
				Age: 0.25, Idle: 0.25, ToHost: 40,
			},
			{ID: 10, Proto: "icmp", Direction: "out", Initiator: addr("10.0.2.15:1234"), Age: 5, Idle: 4.04, ToHost: 64, ToGuest: 64},
		},
		Counters: slirp.Stats{
			LiveTCP: 1, LiveUDP: 1, LivePing: 1, TCPFlows: 7, UDPFlows: 2, PingFlows: 1, PolicyClosed: 3,
			TCPToHost: 1536, TCPToGuest: 5 << 30, UDPToHost: 40,
			FramesIn: 200_000, BytesIn: 20 << 20, FramesOut: 4_000_000, BytesOut: 5<<30 + 300<<20, FramesDroppedOut: 2,
		},
		Limits: slirp.LimitsInfo{TCPFlows: 8192, UDPFlows: 4096, PingFlows: 256},
		Drops:  2,
	}
}

const sampleTable = `Network  up  for 1d02h  2 drops

Forwards
PROTO  HOST             GUEST  CLIENTS  LIVE
tcp    *:2222           22     12       1
udp    [::1]:8000-8010  80-90  0        0

Flows
ID  PROTO  DIR  INITIATOR       TARGET        STATE        AGE    IDLE  TO HOST  TO GUEST  PEER
9   udp    out  10.0.2.15:5353  -             unanswered   0.2s   0.2s  40 B     0 B       -
10  icmp   out  10.0.2.15:1234  -             -            5.0s   4.0s  64 B     64 B      -
7   tcp    in   10.0.2.2:49152  10.0.2.15:22  established  1h02m  12s   1.5 KiB  5.0 GiB   172.17.0.1:53124

Counters
FLOWS  LIVE  LIMIT  TOTAL  REFUSED  TO HOST  TO GUEST
tcp    1     8192   7      0        1.5 KiB  5.0 GiB
udp    1     4096   2      0        40 B     0 B
icmp   1     256    1      0        -        -

LINK  FRAMES   BYTES     DROPPED
in    200000   20.0 MiB  0
out   4000000  5.3 GiB   2

flows ended idle          0
closed by policy          3
host did not connect      0
guest did not accept      0
guest refused a datagram  0
connections reset         0
too many being made       0
datagrams dropped         0
DNS queries               0
DNS queries not answered  0
DNS queries dropped       0
waits for the guest       0
frames not captured       0
`

func TestNetTable(t *testing.T) {
	var out strings.Builder
	if err := WriteNet(&out, sampleInspection(), false); err != nil || out.String() != sampleTable {
		t.Errorf("WriteNet() = %v\n%s\nwant\n%s", err, out.String(), sampleTable)
	}
}

// TestNetTableCut checks that a long list of flows is cut to those that moved last.
func TestNetTableCut(t *testing.T) {
	i := slirp.Inspection{}
	for n := range shownFlows + 3 {
		i.Flows = append(i.Flows, slirp.FlowInfo{ID: uint64(1000 + n), Idle: float64(100 - n)})
	}
	var out strings.Builder
	if err := WriteNet(&out, i, false); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); !strings.Contains(got, "\n… and 3 more (--json shows all)\n") ||
		strings.Contains(got, "\n1002") || !strings.Contains(got, "\n1003") || !strings.Contains(got, "waiting for the guest") {
		t.Errorf("cut table:\n%s", got)
	}
	out.Reset()
	if err := WriteNet(&out, i, true); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); strings.Contains(got, "more") || !strings.Contains(got, "\n1000") {
		t.Errorf("table with --all:\n%s", got)
	}
}

// TestNetTableComplete checks that people see every counter, as programs do.
func TestNetTableComplete(t *testing.T) {
	var i slirp.Inspection
	v := reflect.ValueOf(&i.Counters).Elem()
	for n := range v.NumField() {
		if f := v.Field(n); f.CanInt() {
			f.SetInt(int64(101 + n))
		} else {
			f.SetUint(uint64(101 + n))
		}
	}
	var out strings.Builder
	if err := WriteNet(&out, i, false); err != nil {
		t.Fatal(err)
	}
	words := strings.Fields(out.String())
	for n := range v.NumField() {
		seen := 0
		for _, w := range words {
			if w == fmt.Sprint(101+n) {
				seen++
			}
		}
		if seen != 1 {
			t.Errorf("%s is in the table %d times:\n%s", v.Type().Field(n).Name, seen, out.String())
		}
	}
}

func TestIEC(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1<<20 - 1: "1.0 MiB", 1<<20 - 100: "1023.9 KiB", 1 << 20: "1.0 MiB",
		3 << 39: "1.5 TiB", 1<<64 - 1: "16.0 EiB",
	} {
		if got := iec(n); got != want {
			t.Errorf("iec(%d) = %s, want %s", n, got, want)
		}
	}
}

func TestShortTime(t *testing.T) {
	for seconds, want := range map[float64]string{
		0: "0.0s", 0.05: "0.0s", 9.999: "9.9s", 10: "10s", 59.9: "59s", 60: "1m00s", 3599: "59m59s", 3600: "1h00m",
		86399: "23h59m", 86400: "1d00h", 1e7: "115d17h",
	} {
		if got := ShortTime(seconds); got != want {
			t.Errorf("ShortTime(%v) = %s, want %s", seconds, got, want)
		}
	}
}
