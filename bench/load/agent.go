//go:build linux

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"time"
)

// marker begins every line of an agent's answer: on a console other things are said, too.
const marker = "@load "

// order is one line that an agent is told.
type order struct {
	// Job is a key of jobs, "network" or "off" (for a guest), or "stop": end the one that runs.
	Job string `json:"job"`
	// Address is where to connect to or, with Listen, where to wait for the other end.
	Address netip.AddrPort `json:"address,omitzero"`
	Listen  bool           `json:"listen,omitempty"`
	// Send says that the data comes from this end.
	Send    bool    `json:"send,omitempty"`
	Streams int     `json:"streams,omitempty"`
	Size    int     `json:"size,omitempty"`   // of a datagram, bytes
	Window  int     `json:"window,omitempty"` // datagrams without acknowledgement
	Seconds float64 `json:"seconds,omitempty"`
	// Network is what a guest has to set up.
	Network *nic `json:"network,omitempty"`
}

func (o order) duration() time.Duration { return time.Duration(o.Seconds * float64(time.Second)) }

// answer is one line that an agent says. There is an answer with Event "listening" as soon as the other end can be
// told to connect, and one with "done" or "failed" at last.
type answer struct {
	Event string `json:"event"`
	Error string `json:"error,omitempty"`
	// Rate is that of a stream after its warm-up and FirstRate that in it, in bytes per second.
	Rate      float64 `json:"rate,omitempty"`
	FirstRate float64 `json:"first_rate,omitempty"`
	// Count of datagrams, connections or round trips in Seconds.
	Count   int64   `json:"count,omitempty"`
	Seconds float64 `json:"seconds,omitempty"`
	// Sent is how many datagrams the other end has sent.
	Sent int64 `json:"sent,omitempty"`
	// Median and P99 of round trips, in seconds.
	Median float64 `json:"median,omitempty"`
	P99    float64 `json:"p99,omitempty"`
}

// The events.
const (
	eventReady     = "ready" // a guest takes orders
	eventListening = "listening"
	eventDone      = "done"
	eventFailed    = "failed"
)

// errStopped is how a job that waits learns of an order to stop.
var errStopped = errors.New("stopped")

// grace is how much longer than it was told a job goes on: what is in the bridge's buffers has to come through.
const grace = 5 * time.Second

// job is one end of a measurement.
type job struct {
	order
	say      func(answer)
	stopped  atomic.Bool
	deadline time.Time
}

var jobs = map[string]func(*job) (answer, error){
	"stream":  (*job).stream,
	"ping":    (*job).ping,
	"echo":    (*job).echo,
	"connect": (*job).connect,
	"accept":  (*job).acceptAll,
	"udp":     (*job).udp,
}

// serve does what in says until it ends, and answers to out.
func serve(in io.Reader, out io.Writer) error {
	// See socket.go. What a job allocates is gone with the agent.
	runtime.GOMAXPROCS(32)
	debug.SetGCPercent(-1)

	say := func(a answer) {
		line, err := json.Marshal(a)
		if err != nil {
			panic(err) // numbers and strings only
		}
		fmt.Fprintf(out, "%s%s\n", marker, line)
	}
	say(answer{Event: eventReady})

	var running *job
	done := make(chan struct{}, 1)
	done <- struct{}{}
	for lines := bufio.NewScanner(in); lines.Scan(); {
		var o order
		if err := json.Unmarshal(lines.Bytes(), &o); err != nil {
			say(answer{Event: eventFailed, Error: fmt.Sprintf("order %q: %v", lines.Text(), err)})
			continue
		}
		if o.Job == "stop" {
			if running != nil {
				running.stopped.Store(true)
			}
			continue
		}
		<-done
		running = &job{order: o, say: say, deadline: time.Now().Add(o.duration() + grace)}
		go func() {
			defer func() { done <- struct{}{} }()
			a, err := running.run()
			a.Event = eventDone
			if err != nil {
				a.Event, a.Error = eventFailed, err.Error()
			}
			say(a)
		}()
	}
	return nil
}

func (j *job) run() (answer, error) {
	switch j.Job {
	case "network":
		return answer{}, setUpNetwork(*j.Network)
	case "off":
		return answer{}, powerOff()
	}
	run, ok := jobs[j.Job]
	if !ok {
		return answer{}, fmt.Errorf("no such job: %q", j.Job)
	}
	return run(j)
}
