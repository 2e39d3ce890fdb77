//go:build linux

package main

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"docker-usermode-linux/bench/figures"
)

// The run. Rounds are the outer loop, peers the middle one, so that whatever changes on the machine meanwhile meets all
// peers alike. Each guest is booted afresh, and once more after a test that stalled.
//
// The raw figures are as package figures has them, by the names peer=…/mtu=…/test=….

const benchmark = "BenchmarkNet"

const (
	// hostPort is where the host's end listens, forwardPort what leads to the same port of the guest.
	hostPort    = 5201
	forwardPort = 7000
	// manyPorts is a whole block of them, from firstOfMany on.
	firstOfMany, manyPorts = 10000, 10000
	// maxLoss is the share of datagrams that may be missing.
	maxLoss = 0.001
	// stallLimit, in bytes per second, is what a network that works always does.
	stallLimit = 100_000
	// parallel is the number of streams or threads where it is not one.
	parallel = 8
)

// test is one kind of measurement.
type test struct {
	name string
	run  func(w *world, seconds float64) ([]figures.Metric, error)
}

// up is from the guest to the host, down the other way round. The guest dials, but for conn-in,
// which is through a forwarded port.
var tests = []test{
	{"tcp-up-1", streams(true, 1)},
	{"tcp-up-8", streams(true, parallel)},
	{"tcp-down-1", streams(false, 1)},
	{"tcp-down-8", streams(false, parallel)},
	{"rr", roundTrips},
	{"conn-1", connects(1)},
	{"conn-8", connects(parallel)},
	{"conn-in-1", connectsIn(1)},
	{"conn-in-8", connectsIn(parallel)},
	{"udp-up-1", datagrams(true, 1)},
	{"udp-up-1400", datagrams(true, 1400)},
	{"udp-down-1", datagrams(false, 1)},
	{"udp-down-1400", datagrams(false, 1400)},
}

func streams(up bool, n int) func(*world, float64) ([]figures.Metric, error) {
	return func(w *world, seconds float64) ([]figures.Metric, error) {
		o := order{Job: "stream", Streams: n, Seconds: seconds}
		host, guest := o, o
		host.Address, host.Send = w.hostListens(), !up
		guest.Address, guest.Send = w.hostAddress(), up
		var before, after usage
		fromHost, fromGuest, err := w.exchange(w.host, host, w.guest, guest, func() (err error) {
			time.Sleep(warmUp)
			if before, err = w.usage(); err != nil {
				return err
			}
			time.Sleep(o.duration())
			after, err = w.usage()
			return err
		})
		if err != nil {
			return nil, err
		}
		received := fromGuest
		if up {
			received = fromHost
		}
		if received.Rate < stallLimit {
			return nil, fmt.Errorf("%w: %.0f bytes/s after %s", errDeadline, received.Rate, warmUp)
		}
		bridge, all := before.load(after)
		return []figures.Metric{
			{Value: received.Rate * 8 / 1e9, Unit: "Gbit/s"},
			{Value: received.FirstRate * 8 / 1e9, Unit: "first-Gbit/s"},
			{Value: bridge * (1 << 30) / received.Rate, Unit: "bridge-s/GiB"},
			{Value: all * (1 << 30) / received.Rate, Unit: "all-s/GiB"},
		}, nil
	}
}

func roundTrips(w *world, seconds float64) ([]figures.Metric, error) {
	a, _, err := w.exchange(
		w.host, order{Job: "ping", Address: w.hostListens(), Seconds: seconds},
		w.guest, order{Job: "echo", Address: w.hostAddress(), Seconds: seconds}, nil)
	return []figures.Metric{{Value: a.Median * 1e6, Unit: "median-us"}, {Value: a.P99 * 1e6, Unit: "p99-us"}}, err
}

func connects(n int) func(*world, float64) ([]figures.Metric, error) {
	return func(w *world, seconds float64) ([]figures.Metric, error) {
		_, a, err := w.exchange(
			w.host, order{Job: "accept", Address: w.hostListens(), Streams: parallel, Seconds: seconds},
			w.guest, order{Job: "connect", Address: w.hostAddress(), Streams: n, Seconds: seconds}, nil)
		return []figures.Metric{{Value: float64(a.Count) / a.Seconds, Unit: "conn/s"}}, err
	}
}

func connectsIn(n int) func(*world, float64) ([]figures.Metric, error) {
	return func(w *world, seconds float64) ([]figures.Metric, error) {
		return connectTo(w, w.place.first, n, seconds)
	}
}

// connectTo connects to a forwarded port of the same number as the guest's.
func connectTo(w *world, port, n int, seconds float64) ([]figures.Metric, error) {
	guest := netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(port))
	host := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(port))
	_, a, err := w.exchange(
		w.guest, order{Job: "accept", Address: guest, Streams: parallel, Seconds: seconds},
		w.host, order{Job: "connect", Address: host, Streams: n, Seconds: seconds}, nil)
	return []figures.Metric{{Value: float64(a.Count) / a.Seconds, Unit: "conn/s"}}, err
}

// datagrams halves the window until next to nothing is lost.
func datagrams(up bool, size int) func(*world, float64) ([]figures.Metric, error) {
	return func(w *world, seconds float64) ([]figures.Metric, error) {
		for window := maxWindow; ; window /= 2 {
			o := order{Job: "udp", Size: size, Window: window, Seconds: seconds}
			host, guest := o, o
			host.Address, host.Send = w.hostListens(), !up
			guest.Address, guest.Send = w.hostAddress(), up
			fromHost, fromGuest, err := w.exchange(w.host, host, w.guest, guest, nil)
			if err != nil {
				return nil, err
			}
			a := fromGuest
			if up {
				a = fromHost
			}
			loss := 1 - float64(a.Count)/float64(max(1, a.Sent))
			if loss < maxLoss {
				return []figures.Metric{
					{Value: float64(a.Count) / a.Seconds, Unit: "datagrams/s"},
					{Value: float64(window), Unit: "window"},
					{Value: loss * 100, Unit: "lost-%"},
				}, nil
			}
			if window == 1 {
				return nil, fmt.Errorf("loses %.1f %% of the datagrams even one by one", loss*100)
			}
		}
	}
}

// settings are the flags of a run.
type settings struct {
	seconds     float64
	rounds      int
	peers, mtus string
	tests       string
	dir         string
	force       bool
}

func runMain(args []string) error {
	var s settings
	f := flag.NewFlagSet("run", flag.ContinueOnError)
	f.Float64Var(&s.seconds, "seconds", 5, "how long each measurement takes")
	f.IntVar(&s.rounds, "rounds", 3, "how often each is made")
	f.StringVar(&s.peers, "peers", "", "only these, separated by commas")
	f.StringVar(&s.mtus, "mtus", "", "only these")
	f.StringVar(&s.tests, "tests", "", "only these; ports is one of them")
	f.StringVar(&s.dir, "dir", "/uml", "a tmpfs for the guests' RAM, without noexec")
	f.BoolVar(&s.force, "force", false, "on a busy machine, too")
	if err := f.Parse(args); err != nil {
		return err
	}
	machine, err := figures.Machine(s.force)
	if err != nil {
		return err
	}
	s.head(machine)
	for round := range s.rounds {
		for _, p := range peers {
			if !selected(s.peers, p.name) {
				continue
			}
			for _, mtu := range p.mtus {
				if selected(s.mtus, fmt.Sprint(mtu)) {
					fmt.Fprintf(os.Stderr, "round %d of %d: %s, MTU %d\n", round+1, s.rounds, p.name, mtu)
					s.measure(p, mtu)
				}
			}
			if selected(s.tests, "ports") {
				s.measurePorts(p)
			}
		}
	}
	return nil
}

func selected(list, name string) bool {
	return list == "" || slices.Contains(strings.Split(list, ","), name)
}

// head says where and what this is.
func (s settings) head(machine string) {
	fmt.Printf("# %s, %g s for each measurement, %d rounds\n", time.Now().UTC().Format(time.DateOnly), s.seconds, s.rounds)
	fmt.Print(machine)
	fmt.Printf("# guest kernel: %s, one CPU, %s; classic: its own\n", figures.ProgramVersion(ourKernel), guestMem)
	for _, p := range peers {
		if selected(s.peers, p.name) {
			fmt.Printf("# %s: %s\n", p.name, p.version())
		}
	}
}

// measure makes all measurements of one peer with one MTU, once each.
func (s settings) measure(p peer, mtu int) {
	var w *world
	defer func() {
		if w != nil {
			w.stop()
		}
	}()
	for _, t := range tests {
		if !selected(s.tests, t.name) {
			continue
		}
		if w == nil {
			var err error
			if w, err = s.boot(p, mtu, "idle", forwardPort, 1); err != nil {
				missing(p, mtu, t.name, err)
				continue
			}
		}
		metrics, err := t.run(w, s.seconds)
		if err != nil {
			missing(p, mtu, t.name, w.explain(err))
			w.stop()
			w = nil
			continue
		}
		emit(p, mtu, t.name, metrics)
	}
	if w == nil {
		return
	}
	if m, err := w.memory(); err != nil {
		missing(p, mtu, "after", err)
	} else {
		emit(p, mtu, "after", m.metrics())
	}
}

// measurePorts tells what many forwarded ports cost: time to start, and memory.
func (s settings) measurePorts(p peer) {
	w, err := s.boot(p, smallMTU, "ports", firstOfMany, manyPorts)
	if err != nil {
		missing(p, smallMTU, "ports", err)
		return
	}
	defer w.stop()
	if _, err := connectTo(w, firstOfMany+manyPorts-1, 1, 0.1); err != nil {
		missing(p, smallMTU, "ports", fmt.Errorf("the last of them: %w", w.explain(err)))
	}
}

// boot starts a guest, makes sure that it reaches the host, and writes down, as those of test, the time that it took
// to start and the bridge's memory.
func (s settings) boot(p peer, mtu int, test string, first, count int) (*world, error) {
	w, err := p.start(filepath.Join(s.dir, fmt.Sprint(time.Now().UnixNano())), mtu, first, count)
	if err != nil {
		return nil, err
	}
	_, err = connects(1)(w, 0.1)
	if err == nil {
		var m memory
		if m, err = w.memory(); err == nil {
			emit(p, mtu, test, append(m.metrics(), figures.Metric{Value: w.started.Seconds(), Unit: "s/start"}))
			return w, nil
		}
	}
	err = w.explain(err)
	w.stop()
	return nil, err
}

func (m memory) metrics() []figures.Metric {
	return []figures.Metric{
		{Value: float64(m.rss) / (1 << 20), Unit: "rss-MiB"}, {Value: float64(m.anon) / (1 << 20), Unit: "anon-MiB"},
	}
}

// measurement is its name in the raw output.
func (p peer) measurement(mtu int, test string) string {
	return fmt.Sprintf("peer=%s/mtu=%d/test=%s", p.name, mtu, test)
}

// emit writes a line of raw output.
func emit(p peer, mtu int, test string, metrics []figures.Metric) {
	fmt.Println(figures.Line(benchmark, p.measurement(mtu, test), metrics...))
}

// missing takes note of why there is no figure.
func missing(p peer, mtu int, test string, err error) {
	verdict := verdictFails
	if stalled(err) {
		verdict = verdictStalls
	}
	fmt.Println(figures.MissingLine(p.measurement(mtu, test), verdict, err))
}

// stalled tells a network in which nothing moves from one that says no or is gone. An agent's errors arrive as text.
func stalled(err error) bool {
	return !errors.Is(err, errGone) && strings.Contains(err.Error(), errDeadline.Error())
}
