//go:build linux

package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"docker-usermode-linux/bench/figures"
)

// agentVariable makes this test binary an agent.
const agentVariable = "LOAD_TEST_AGENT"

func TestMain(m *testing.M) {
	if os.Getenv(agentVariable) != "" {
		if err := serve(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// testWorld has two agents on this host, which are each other's guest.
func testWorld(t *testing.T) *world {
	w := &world{place: place{dir: t.TempDir(), hostPort: uint16(freePort(t)), first: freePort(t)}, log: &figures.LastWords{}}
	w.peer = peer{process: "load", host: func() netip.Addr { return netip.MustParseAddr("127.0.0.1") }}
	for _, e := range []**end{&w.host, &w.guest} {
		var err error
		*e, err = w.end("agent", []string{agentEnv, agentVariable + "=1", "/proc/self/exe"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := (*e).wait(eventReady, startGuard); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, cmd := range w.commands {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	return w
}

func freePort(t *testing.T) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// TestMeasurements makes every measurement once over this host's loopback interface.
func TestMeasurements(t *testing.T) {
	w := testWorld(t)
	for _, tt := range tests {
		metrics, err := tt.run(w, 0.1)
		if err != nil {
			t.Errorf("%s: %v; %s", tt.name, err, w.log)
			continue
		}
		for _, m := range metrics {
			// In so short a time no tick of the processors' time may pass.
			if m.Unit != "lost-%" && !strings.HasSuffix(m.Unit, "-s/GiB") && !(m.Value > 0) {
				t.Errorf("%s: %g %s", tt.name, m.Value, m.Unit)
			}
		}
	}
}

// TestSilence: what waits for an end that never comes ends by itself, and is called a stall.
func TestSilence(t *testing.T) {
	j := &job{order: order{Address: netip.MustParseAddrPort("127.0.0.1:0"), Listen: true, Streams: 1}}
	j.say = func(answer) {}
	j.deadline = time.Now().Add(time.Millisecond)
	for name, run := range jobs {
		if name == "connect" || name == "accept" {
			continue // connects to somebody, and waits to be stopped
		}
		if _, err := run(j); err == nil || !stalled(err) {
			t.Errorf("%s: error %v, want a stall", name, err)
		}
	}
}

func TestParseStat(t *testing.T) {
	const fields = " S 7 1 1 0 -1 4194560 1 2 3 4 150 50 20 5 20 0 1 0 1000 1 1"
	tests := []struct {
		stat string
		want process
	}{
		{"12 (linux)" + fields, process{12, 7, "linux", 2 * time.Second, 250 * time.Millisecond}},
		{"12 (a) b (c)" + fields, process{12, 7, "a) b (c", 2 * time.Second, 250 * time.Millisecond}},
		{"12 (linux) S 7", process{}},
		{"", process{}},
		{")(", process{}},
	}
	for _, tt := range tests {
		got, err := parseStat([]byte(tt.stat))
		if got != tt.want || (err == nil) != (tt.want != process{}) {
			t.Errorf("parseStat(%q) = %+v, %v, want %+v", tt.stat, got, err, tt.want)
		}
	}
}

func TestBelow(t *testing.T) {
	all := map[int]process{
		1: {pid: 1}, 2: {pid: 2, parent: 1}, 3: {pid: 3, parent: 2}, 4: {pid: 4, parent: 3}, 5: {pid: 5, parent: 1},
	}
	got := map[int]bool{}
	for _, p := range below(all, 2) {
		got[p.pid] = true
	}
	if want := map[int]bool{2: true, 3: true, 4: true}; !reflect.DeepEqual(got, want) {
		t.Errorf("below 2: %v, want %v", got, want)
	}
}

func TestParseMemory(t *testing.T) {
	const status = "Name:\tpasst\nVmRSS:\t   16304 kB\nRssAnon:\t     232 kB\nThreads:\t1\n"
	if got, want := parseMemory(status), (memory{16304 << 10, 232 << 10}); got != want {
		t.Errorf("parseMemory = %+v, want %+v", got, want)
	}
}

func TestQuantile(t *testing.T) {
	tests := []struct {
		sorted []time.Duration
		q      float64
		want   time.Duration
	}{
		{nil, 0.5, 0},
		{[]time.Duration{7}, 0.99, 7},
		{[]time.Duration{1, 2, 3}, 0.5, 2},
		{[]time.Duration{1, 2, 3}, 1, 3},
	}
	for _, tt := range tests {
		if got := quantile(tt.sorted, tt.q); got != tt.want {
			t.Errorf("quantile(%v, %g) = %v, want %v", tt.sorted, tt.q, got, tt.want)
		}
	}
}

func TestTable(t *testing.T) {
	const raw = `# 2026-11-23, 5 s for each measurement
# Linux 6.18
BenchmarkNet/peer=ours/mtu=1500/test=tcp-up-1 1 6.3 Gbit/s 0.5 bridge-s/GiB
BenchmarkNet/peer=ours/mtu=1500/test=tcp-up-1 1 6.1 Gbit/s 0.5 bridge-s/GiB
BenchmarkNet/peer=ours/mtu=1500/test=tcp-up-1 1 6.2 Gbit/s 0.5 bridge-s/GiB
BenchmarkNet/peer=passt/mtu=1500/test=tcp-up-1 1 2 Gbit/s
# peer=passt mtu=1500 test=tcp-up-1 stalls: no end in time
# peer=slirp4netns mtu=1500 test=tcp-up-1 stalls: no end: in time
`
	const want = `| | this project | passt, vhost-user | slirp4netns, BESS | gvisor-tap-vsock, BESS | UML 6.1 and slirp |
|---|---|---|---|---|---|
| MTU 1500: TCP guest → host, Gbit/s | 6.20 (6.10–6.30) | 2.00, stalls 1 of 2 times | stalls | – | – |
`
	f, err := figures.Read(strings.NewReader(raw), benchmark)
	if err != nil {
		t.Fatal(err)
	}
	got, _, _ := strings.Cut(table(f), "| MTU 1500: TCP guest → host, first")
	if got != want {
		t.Errorf("table =\n%s\nwant\n%s", got, want)
	}
}
