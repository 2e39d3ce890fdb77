package slirp

import (
	"encoding/json"
	"io"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestInspectJSON holds the JSON names still: programs depend on them.
func TestInspectJSON(t *testing.T) {
	want := strings.Fields(`
		up age_seconds
		forwards.proto forwards.host_addr forwards.host_port forwards.guest_port forwards.count forwards.clients forwards.live
		flows.id flows.proto flows.direction flows.ini flows.tgt flows.peer flows.state flows.age_seconds
		flows.idle_seconds flows.bytes_to_host flows.bytes_to_guest
		counters.tcp_live counters.udp_live counters.icmp_live
		counters.tcp_flows counters.udp_flows counters.icmp_flows
		counters.tcp_refused counters.udp_refused counters.icmp_refused
		counters.expired counters.policy_closed counters.dial_errors counters.guest_refused counters.guest_unreachable counters.resets
		counters.pending_limit
		counters.tcp_bytes_to_host counters.tcp_bytes_to_guest counters.udp_bytes_to_host counters.udp_bytes_to_guest
		counters.udp_dropped counters.dns_queries counters.dns_failures counters.dns_dropped
		counters.link_frames_in counters.link_bytes_in counters.link_frames_out counters.link_bytes_out
		counters.link_dropped_in counters.link_dropped_out counters.link_waits counters.pcap_dropped
		limits.tcp_flows limits.udp_flows limits.icmp_flows limits.pending_syns limits.pending_clients
		drops`)
	if got := jsonNames(reflect.TypeFor[Inspection](), ""); !slices.Equal(got, want) {
		t.Errorf("names of Inspection =\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// jsonNames lists the paths of all fields of a struct.
func jsonNames(t reflect.Type, prefix string) []string {
	var all []string
	for f := range t.Fields() {
		name := prefix + f.Tag.Get("json")
		element := f.Type
		if element.Kind() == reflect.Slice {
			element = element.Elem()
		}
		if element.Kind() == reflect.Struct && element != reflect.TypeFor[netip.AddrPort]() {
			all = append(all, jsonNames(element, name+".")...)
			continue
		}
		all = append(all, name)
	}
	return all
}

func TestInspect(t *testing.T) {
	b, guest, host := hostToGuest(t)
	io.WriteString(host, "hello")
	expectRead(t, guest, "hello")
	io.WriteString(guest, "hi")
	expectRead(t, host, "hi")
	server := echoUDP(t, "127.0.0.1:0")
	c := guestUDP(t, b, 5353)
	if got, _ := ask(t, c, udpAddr(gateway(server.LocalAddr())), "who"); got != "echo who" {
		t.Fatal(got)
	}

	// Counted after the data was written, so it may be a moment late.
	var got Inspection
	eventually(t, "all bytes are counted", func() bool {
		got = b.Inspect()
		return got.Counters.TCPToHost == 2 && got.Counters.TCPToGuest == 5 && got.Counters.UDPToGuest == 8
	})
	if !got.Up || got.Drops != 0 || got.Limits.TCPFlows != defaultLimits.flows[TCP] || got.Age < 0 {
		t.Errorf("Inspect() = %+v, want it up, without drops, with the limits", got)
	}
	wantForwards := []ForwardInfo{{"tcp", "127.0.0.1", port(host.RemoteAddr()), 22, 1, 1, 1}}
	if !reflect.DeepEqual(got.Forwards, wantForwards) {
		t.Errorf("forwards = %+v, want %+v", got.Forwards, wantForwards)
	}
	if len(got.Flows) != 2 {
		t.Fatalf("flows = %+v, want two", got.Flows)
	}
	for i, want := range []FlowInfo{
		{
			ID: 1, Proto: "tcp", Direction: "in", State: "established", ToHost: 2, ToGuest: 5,
			Initiator: got.Flows[0].Initiator, // a port of netstack's choice
			Target:    netip.AddrPortFrom(GuestAddr, 22),
			Peer:      host.LocalAddr().(*net.TCPAddr).AddrPort(),
		},
		{
			ID: 2, Proto: "udp", Direction: "out", State: "answered", ToHost: 3, ToGuest: 8,
			Initiator: netip.AddrPortFrom(GuestAddr, 5353),
		},
	} {
		f := got.Flows[i]
		if f.Age < f.Idle || f.Idle < 0 {
			t.Errorf("flow %d: age %v, idle %v", f.ID, f.Age, f.Idle)
		}
		f.Age, f.Idle = 0, 0
		if f != want {
			t.Errorf("flow = %+v\nwant   %+v", f, want)
		}
	}

	text, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	var back Inspection
	if err := json.Unmarshal(text, &back); err != nil || !reflect.DeepEqual(back, got) {
		t.Errorf("after JSON: %+v, %v\nwant %+v", back, err, got)
	}

	host.Close()
	guest.Close()
	eventually(t, "the connection is gone", func() bool {
		got = b.Inspect()
		return len(got.Flows) == 1 && got.Forwards[0].Live == 0
	})
	if f := got.Forwards[0]; f.Clients != 1 {
		t.Errorf("%d clients, want 1", f.Clients)
	}
}

// TestInspectClient checks what is told of a client of a forwarded UDP port.
func TestInspectClient(t *testing.T) {
	o, addr := forwardOptions(t, UDP, 53)
	b := newBridge(t, o, nil)
	server := guestUDP(t, b, 53)
	client, err := net.Dial("udp4", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	within(t, "Up", func() bool { <-b.Up(); return true }) // a datagram before that is lost
	io.WriteString(client, "q")
	server.SetReadDeadline(time.Now().Add(hang))
	_, from, err := server.ReadFrom(make([]byte, 10))
	if err != nil {
		t.Fatal(err)
	}
	check := func(state string, toHost uint64) {
		t.Helper()
		eventually(t, state, func() bool {
			got := b.Inspect()
			f := got.Flows[0]
			return len(got.Flows) == 1 && f.Direction == "in" && f.State == state && f.ToGuest == 1 && f.ToHost == toHost &&
				f.Peer == client.LocalAddr().(*net.UDPAddr).AddrPort() && f.Target == netip.AddrPortFrom(GuestAddr, 53) &&
				got.Forwards[0].Clients == 1 && got.Forwards[0].Live == 1
		})
	}
	check("unanswered", 0)
	server.WriteTo([]byte("answer"), from)
	expectRead(t, client, "answer")
	check("answered", 6)
}

func TestInspectForwards(t *testing.T) {
	n := &Network{}
	any4, lo := netip.IPv4Unspecified(), loopback4
	for _, f := range []struct {
		addr        netip.Addr
		host, guest uint16
	}{
		{netip.Addr{}, 22, 22},
		{any4, 23, 23},
		{lo, 8000, 80},
		{lo, 8001, 81},
		{lo, 8002, 82},
		{lo, 8003, 90}, // another run: the guest's port jumps
		{lo, 8005, 92}, // and another: 8004 was taken
	} {
		tcp := &forward{proto: TCP, host: netip.AddrPortFrom(f.addr, f.host), guest: f.guest}
		tcp.clients.Store(uint64(f.guest))
		n.ports.all = append(n.ports.all, tcp)
	}
	udp := &forward{proto: UDP, host: netip.AddrPortFrom(lo, 8006), guest: 93}
	udp.live.Store(1)
	n.ports.all = append(n.ports.all, udp)
	want := []ForwardInfo{
		{"tcp", "*", 22, 22, 1, 22, 0},
		{"tcp", "0.0.0.0", 23, 23, 1, 23, 0},
		{"tcp", "127.0.0.1", 8000, 80, 3, 80 + 81 + 82, 0},
		{"tcp", "127.0.0.1", 8003, 90, 1, 90, 0},
		{"tcp", "127.0.0.1", 8005, 92, 1, 92, 0},
		{"udp", "127.0.0.1", 8006, 93, 1, 0, 1},
	}
	if got := n.inspectForwards(); !reflect.DeepEqual(got, want) {
		t.Errorf("forwards =\n%+v\nwant\n%+v", got, want)
	}
	if got := want[2].Host() + " " + want[2].Guest(); got != "127.0.0.1:8000-8002 80-82" {
		t.Errorf("a run = %s", got)
	}
	if got := want[0].Host() + " " + want[0].Guest(); got != "*:22 22" {
		t.Errorf("a port = %s", got)
	}
	if got := (&Network{}).inspectForwards(); got == nil || len(got) != 0 {
		t.Errorf("forwards of none = %#v, want an empty list for JSON", got)
	}
}
