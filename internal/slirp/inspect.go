package slirp

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// Inspection is the state of a Network at one moment, for people and programs to look at.
//
// In JSON all names are lower snake case and stable: some may come, none goes or changes its meaning. Times are
// seconds, sizes bytes, both in numbers; addresses are strings, and empty where there is none.
type Inspection struct {
	// Up says that the guest's NIC has been seen.
	Up bool `json:"up"`
	// Age of the network.
	Age float64 `json:"age_seconds"`
	// Forwards are the forwarded ports, in the order of Options.
	Forwards []ForwardInfo `json:"forwards"`
	// Flows are those that live, the oldest first.
	Flows    []FlowInfo `json:"flows"`
	Counters Stats      `json:"counters"`
	Limits   LimitsInfo `json:"limits"`
	// Drops is the sum of all that we have lost: frames on the link, UDP datagrams, and queries and connections
	// of DNS. It is 0 in normal life.
	Drops uint64 `json:"drops"`
}

// ForwardInfo is a run of forwarded ports.
type ForwardInfo struct {
	Proto string `json:"proto"`
	// HostAddr is where the host listens, * on all addresses of both families.
	HostAddr string `json:"host_addr"`
	// HostPort and GuestPort are the first ports of the run, Count is its length.
	HostPort  uint16 `json:"host_port"`
	GuestPort uint16 `json:"guest_port"`
	Count     int    `json:"count"`
	// Clients so far, and those that are there now or wait for the guest.
	Clients uint64 `json:"clients"`
	Live    int    `json:"live"`
}

// Host is the host's side as it stands in PORTS.
func (f ForwardInfo) Host() string { return net.JoinHostPort(f.HostAddr, f.ports(f.HostPort)) }

// Guest is the guest's ports.
func (f ForwardInfo) Guest() string { return f.ports(f.GuestPort) }

func (f ForwardInfo) ports(first uint16) string {
	if f.Count > 1 {
		return fmt.Sprintf("%d-%d", first, int(first)+f.Count-1)
	}
	return strconv.Itoa(int(first))
}

// FlowInfo is a flow.
type FlowInfo struct {
	ID    uint64 `json:"id"`
	Proto string `json:"proto"` // tcp, udp, icmp
	// Direction is "in" for a client of a forwarded port, "out" for what the guest initiates.
	Direction string `json:"direction"`
	// Initiator and Target as the guest sees them. A UDP socket or ping of the guest has many targets, so none is told.
	// In ICMP the identifier stands for the port.
	Initiator netip.AddrPort `json:"ini"`
	Target    netip.AddrPort `json:"tgt"`
	// Peer is who the host's side of the flow talks to: the client's own address, or the target as it was dialled.
	Peer netip.AddrPort `json:"peer"`
	// State is, of TCP, that of the gateway's connection with the guest (established, close-wait, …), of UDP answered
	// or unanswered, of others empty.
	State string `json:"state"`
	// Age is the time since the flow began, Idle that since something moved.
	Age  float64 `json:"age_seconds"`
	Idle float64 `json:"idle_seconds"`
	// Payload in bytes.
	ToHost  uint64 `json:"bytes_to_host"`
	ToGuest uint64 `json:"bytes_to_guest"`
}

// LimitsInfo are the bounds on what is held at one time.
type LimitsInfo struct {
	TCPFlows       int `json:"tcp_flows"`
	UDPFlows       int `json:"udp_flows"`
	PingFlows      int `json:"icmp_flows"`
	PendingSYNs    int `json:"pending_syns"`
	PendingClients int `json:"pending_clients"`
}

// Inspect describes the network. What it tells was read one after another, so parts may be a few packets apart.
func (n *Network) Inspect() Inspection {
	s := n.Snapshot()
	return Inspection{
		Up:       n.isUp.Load(),
		Age:      seconds(n.now().Sub(n.flows.epoch)),
		Forwards: n.inspectForwards(),
		Flows:    n.flows.inspect(),
		Counters: s,
		Limits: LimitsInfo{
			TCPFlows:       n.limits.flows[TCP],
			UDPFlows:       n.limits.flows[UDP],
			PingFlows:      n.limits.flows[ICMP],
			PendingSYNs:    n.limits.pendingSYNs,
			PendingClients: n.limits.pendingClients,
		},
		Drops: s.FramesDroppedIn + s.FramesDroppedOut + s.UDPDropped + s.DNSDropped,
	}
}

// inspectForwards joins ports that follow on one another on both sides into runs.
func (n *Network) inspectForwards() []ForwardInfo {
	all := []ForwardInfo{} // never null in JSON
	add := func(proto Proto, host netip.AddrPort, guest uint16, clients uint64, live int) {
		f := ForwardInfo{proto.String(), "*", host.Port(), guest, 1, clients, live}
		if host.Addr().IsValid() {
			f.HostAddr = host.Addr().String()
		}
		if len(all) > 0 {
			last := &all[len(all)-1]
			if last.Proto == f.Proto && last.HostAddr == f.HostAddr &&
				int(last.HostPort)+last.Count == int(f.HostPort) && int(last.GuestPort)+last.Count == int(guest) {
				last.Count++
				last.Clients += clients
				last.Live += live
				return
			}
		}
		all = append(all, f)
	}
	for _, f := range n.ports.all {
		add(f.proto, f.host, f.guest, f.clients.Load(), int(f.live.Load()))
	}
	return all
}

// inspect describes all flows. The table is locked only to list them.
func (t *flowTable) inspect() []FlowInfo {
	t.mu.RLock()
	live := make([]entry, 0, len(t.flows))
	for _, e := range t.flows {
		live = append(live, e)
	}
	t.mu.RUnlock()
	now := t.n.now()
	all := make([]FlowInfo, len(live))
	for i, e := range live {
		all[i] = t.describe(e, now)
	}
	slices.SortFunc(all, func(a, b FlowInfo) int { return cmp.Compare(a.ID, b.ID) })
	return all
}

func (t *flowTable) describe(e entry, now time.Time) FlowInfo {
	f := e.base()
	info := FlowInfo{
		ID:        f.id,
		Proto:     f.key.proto.String(),
		Direction: "out",
		Initiator: f.key.ini,
		Target:    f.key.tgt,
		Age:       seconds(now.Sub(f.started)),
		Idle:      seconds(now.Sub(t.epoch) - time.Duration(f.active.Load())),
		ToHost:    f.hostBytes.Load(),
		ToGuest:   f.guestBytes.Load(),
	}
	if a := f.key.tgt.Addr(); a == GuestAddr || a == GuestAddr6 {
		info.Direction = "in"
	}
	switch e := e.(type) {
	case *tcpFlow:
		info.State = strings.ToLower(tcp.EndpointState(e.guest.ep.State()).String())
		info.Peer = e.host.peer
	case *guestFlow:
		info.State = answerState(e.answered.Load())
	case *clientFlow:
		info.State = answerState(e.answered.Load())
		info.Peer = e.client.view()
	}
	return info
}

func answerState(answered bool) string {
	if answered {
		return "answered"
	}
	return "unanswered"
}

// seconds is d with the precision of a millisecond.
func seconds(d time.Duration) float64 { return max(0, d).Round(time.Millisecond).Seconds() }
