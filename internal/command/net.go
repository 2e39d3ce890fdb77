package command

import (
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"text/tabwriter"
	"time"

	"docker-usermode-linux/internal/slirp"
)

// shownFlows is how many flows the table has unless all are wanted.
const shownFlows = 20

// WriteNet writes the guest's network as a table for people. Without all it has the flows that moved last.
func WriteNet(out io.Writer, i slirp.Inspection, all bool) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(cells ...any) {
		for n, c := range cells {
			if n > 0 {
				fmt.Fprint(w, "\t")
			}
			fmt.Fprint(w, c)
		}
		fmt.Fprintln(w)
	}
	state := "waiting for the guest's NIC"
	if i.Up {
		state = "up"
	}
	row("Network", state, "for "+ShortTime(i.Age), fmt.Sprintf("%d drops", i.Drops))

	row("\nForwards")
	if len(i.Forwards) == 0 {
		row("none")
	} else {
		row("PROTO", "HOST", "GUEST", "CLIENTS", "LIVE")
	}
	for _, f := range i.Forwards {
		row(f.Proto, f.Host(), f.Guest(), f.Clients, f.Live)
	}

	row("\nFlows")
	flows := slices.Clone(i.Flows)
	slices.SortStableFunc(flows, func(a, b slirp.FlowInfo) int { return cmp.Compare(a.Idle, b.Idle) })
	hidden := 0
	if !all && len(flows) > shownFlows {
		hidden = len(flows) - shownFlows
		flows = flows[:shownFlows]
	}
	if len(flows) == 0 {
		row("none")
	} else {
		row("ID", "PROTO", "DIR", "INITIATOR", "TARGET", "STATE", "AGE", "IDLE", "TO HOST", "TO GUEST", "PEER")
	}
	for _, f := range flows {
		row(f.ID, f.Proto, f.Direction, orDash(f.Initiator), orDash(f.Target), cmp.Or(f.State, "-"), ShortTime(f.Age),
			ShortTime(f.Idle), iec(f.ToHost), iec(f.ToGuest), orDash(f.Peer))
	}
	if hidden > 0 {
		row(fmt.Sprintf("… and %d more (--json shows all)", hidden))
	}

	s := i.Counters
	row("\nCounters")
	row("FLOWS", "LIVE", "LIMIT", "TOTAL", "REFUSED", "TO HOST", "TO GUEST")
	row("tcp", s.LiveTCP, i.Limits.TCPFlows, s.TCPFlows, s.TCPRefused, iec(s.TCPToHost), iec(s.TCPToGuest))
	row("udp", s.LiveUDP, i.Limits.UDPFlows, s.UDPFlows, s.UDPRefused, iec(s.UDPToHost), iec(s.UDPToGuest))
	row("icmp", s.LivePing, i.Limits.PingFlows, s.PingFlows, s.PingRefused, "-", "-")
	row()
	row("LINK", "FRAMES", "BYTES", "DROPPED")
	row("in", s.FramesIn, iec(s.BytesIn), s.FramesDroppedIn)
	row("out", s.FramesOut, iec(s.BytesOut), s.FramesDroppedOut)
	row()
	for _, c := range []struct {
		name  string
		value uint64
	}{
		{"flows ended idle", s.Expired},
		{"closed by policy", s.PolicyClosed},
		{"host did not connect", s.DialErrors},
		{"guest did not accept", s.GuestRefused},
		{"guest refused a datagram", s.GuestUnreachable},
		{"connections reset", s.Resets},
		{"too many being made", s.PendingLimit},
		{"datagrams dropped", s.UDPDropped},
		{"DNS queries", s.DNSQueries},
		{"DNS queries not answered", s.DNSFailures},
		{"DNS queries dropped", s.DNSDropped},
		{"waits for the guest", s.Waits},
		{"frames not captured", s.PcapDropped},
	} {
		row(c.name, c.value)
	}
	return w.Flush()
}

func orDash(a netip.AddrPort) string {
	if !a.IsValid() {
		return "-"
	}
	return a.String()
}

// iec writes bytes with a binary unit and three digits or so.
func iec(bytes uint64) string {
	if bytes < 1<<10 {
		return fmt.Sprintf("%d B", bytes)
	}
	v, unit := float64(bytes)/(1<<10), 0
	const units = "KMGTPE"
	for v >= 1023.95 && unit < len(units)-1 { // where one digit after the point would round up to 1024.0
		v /= 1 << 10
		unit++
	}
	return fmt.Sprintf("%.1f %ciB", v, units[unit])
}

// ShortTime writes seconds with the two units that matter.
func ShortTime(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	const day = 24 * time.Hour
	switch {
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Truncate(100*time.Millisecond).Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
	case d < day:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%02dh", d/day, d%day/time.Hour)
}
