package supervisor

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/rs/zerolog"

	"docker-usermode-linux/internal/control"
	"docker-usermode-linux/internal/slirp"
)

// fixed is a network that does not change.
type fixed struct{ i slirp.Inspection }

func (f fixed) Inspect() slirp.Inspection { return f.i }

// number gives every number in v a value of its own, from 1001 on, and returns the next.
func number(v reflect.Value, next int) int {
	for i := range v.NumField() {
		switch f := v.Field(i); f.Kind() {
		case reflect.Int:
			f.SetInt(int64(next))
			next++
		case reflect.Uint64:
			f.SetUint(uint64(next))
			next++
		case reflect.Struct:
			next = number(f, next)
		}
	}
	return next
}

// TestMetricsComplete checks that Prometheus gets all counters, gauges and limits, under good names.
func TestMetricsComplete(t *testing.T) {
	i := slirp.Inspection{Up: true, Forwards: []slirp.ForwardInfo{
		{Proto: "tcp", HostAddr: "*", HostPort: 22, GuestPort: 22, Count: 1, Clients: 7, Live: 3},
		{Proto: "udp", HostAddr: "*", HostPort: 22, GuestPort: 22, Count: 1},
	}}
	end := number(reflect.ValueOf(&i).Elem(), 1001)
	c := netCollector{fixed{i}}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if problems, err := promlint.NewWithMetricFamilies(families).Lint(); err != nil || len(problems) > 0 {
		t.Errorf("lint: %v, %v", problems, err)
	}
	seen := make(map[int]string)
	for _, f := range families {
		if !regexp.MustCompile(`^uml_net_[a-z_]+$`).MatchString(f.GetName()) {
			t.Errorf("name %s", f.GetName())
		}
		for _, m := range f.GetMetric() {
			v := m.GetGauge().GetValue() + m.GetCounter().GetValue()
			if v > 1000 && seen[int(v)] != "" {
				t.Errorf("%s and %s tell the same number", f.GetName(), seen[int(v)])
			}
			seen[int(v)] = f.GetName()
		}
	}
	// The limits of what is pending are no gauges that anybody would plot.
	for n := 1001; n < end; n++ {
		if n != i.Limits.PendingSYNs && n != i.Limits.PendingClients && seen[n] == "" {
			t.Errorf("no metric has number %d of %+v", n, i)
		}
	}
	if seen[7] != "uml_net_forward_clients_total" || seen[3] != "uml_net_forward_live_clients" || seen[1] != "uml_net_up" {
		t.Errorf("of a forward and the NIC: %v", seen)
	}
}

func newNetwork(t *testing.T) *slirp.Network {
	t.Helper()
	n, err := slirp.New(slirp.Options{Socket: filepath.Join(t.TempDir(), "nic"), Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

func TestServeControl(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().(*net.TCPAddr).AddrPort()
	n := newNetwork(t)
	_, err = listenMetrics(t.Context(), address, nil)
	if want := fmt.Sprintf("NET_METRICS=%q: ", address); err == nil || !strings.HasPrefix(err.Error(), want) ||
		!strings.Contains(err.Error(), "in use") {
		t.Errorf("with a port that is taken: %v, want %s…", err, want)
	}
	l.Close()

	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	metrics, err := listenMetrics(ctx, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := serveControl(ctx, &running, dir, metrics, &guest{network: n, link: noAgent(t, dir), log: zerolog.Nop()}); err != nil {
		t.Fatal(err)
	}
	client, err := control.Find(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	var got slirp.Inspection
	if err := client.Get(ctx, "/net", &got); err != nil || got.Limits.TCPFlows == 0 || got.Up {
		t.Errorf("/net = %+v, %v", got, err)
	}
	resp, err := http.Get("http://" + address.String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || !strings.Contains(string(text), "\numl_net_up 0\n") || strings.Contains(string(text), "go_") {
		t.Errorf("metrics: %v\n%s", err, text)
	}
}

// TestServeControlWithoutNetwork checks what a guest with NET=off has to tell.
func TestServeControlWithoutNetwork(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	if err := serveControl(ctx, &running, dir, nil, &guest{link: noAgent(t, dir), log: zerolog.Nop()}); err != nil {
		t.Fatal(err)
	}
	client, err := control.Find(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	var i slirp.Inspection
	if err := client.Get(t.Context(), "/net", &i); err == nil || !strings.Contains(err.Error(), "NET=off") {
		t.Errorf("Get(/net) = %v, want the reason", err)
	}
}

// TestServeMetricsAnywhere checks that an address is not needed.
func TestServeMetricsAnywhere(t *testing.T) {
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).AddrPort().Port()
	_, err = listenMetrics(t.Context(), netip.AddrPortFrom(netip.Addr{}, port), nil)
	if want := fmt.Sprintf("NET_METRICS=\":%d\": ", port); err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("with a port that is taken: %v, want %s…", err, want)
	}
}

// TestServeMetricsFamily checks that an address of one family leaves the other alone.
func TestServeMetricsFamily(t *testing.T) {
	v4, err := listenMetrics(t.Context(), freePort(t, "tcp4", "0.0.0.0"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer v4.Close()
	port := v4.Addr().(*net.TCPAddr).AddrPort().Port()
	if conn, err := net.Dial("tcp6", fmt.Sprintf("[::1]:%d", port)); err == nil {
		conn.Close()
		t.Error("NET_METRICS=0.0.0.0:… listens on IPv6")
	}
	v6, err := listenMetrics(t.Context(), netip.AddrPortFrom(netip.IPv6Unspecified(), port), nil)
	if err != nil {
		t.Skipf("no IPv6, or somebody else has the port: %v", err)
	}
	v6.Close()
}

// noAgent is the way to an agent that never comes.
func noAgent(t *testing.T, dir string) *agentLink {
	t.Helper()
	l, err := openAgentLink(dir, false, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.close)
	return l
}

// freePort is a port of an address that nobody has at the moment.
func freePort(t *testing.T, network, addr string) netip.AddrPort {
	t.Helper()
	l, err := net.Listen(network, net.JoinHostPort(addr, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return netip.AddrPortFrom(netip.MustParseAddr(addr), l.Addr().(*net.TCPAddr).AddrPort().Port())
}
