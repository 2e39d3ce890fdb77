package supervisor

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"docker-usermode-linux/internal/agent"
)

// TestJudge follows a guest from its boot to its end; each line is one look at it.
func TestJudge(t *testing.T) {
	start := time.Now()
	up := agent.Status{MemTotal: 256 << 20, MemAvailable: 100 << 20, Init: agent.InitStatus{Name: "systemd", Up: true}}
	with := func(change func(*agent.Status)) *agent.Status {
		s := up
		change(&s)
		return &s
	}
	var h health
	for _, look := range []struct {
		after   time.Duration
		guest   *agent.Status // nil: no answer
		state   string
		problem string // "": healthy
	}{
		{0, nil, StateBooting, "agent is not there yet"},
		{time.Second, with(func(s *agent.Status) { s.Init.Up = false }), StateStarting, "systemd has not started everything"},
		{2 * time.Second, with(func(s *agent.Status) { s.Silent = []uint16{22, 80} }), StateStarting, "TCP port 22, 80"},
		{3 * time.Second, &up, StateRunning, ""},
		{4 * time.Second, with(func(s *agent.Status) { s.Silent = []uint16{80} }), StateStarting, "TCP port 80"},
		{2*time.Second + portGrace, with(func(s *agent.Status) { s.Silent = []uint16{80} }), StateRunning, ""},
		{time.Minute, with(func(s *agent.Status) { s.MemAvailable = 1 << 20 }), StateRunning, "out of memory: 1 of 256 MiB"},
		{time.Minute, with(func(s *agent.Status) { s.OOMKills = 1 }), StateRunning, "killed a process"},
		{time.Minute + oomMemory/2, with(func(s *agent.Status) { s.OOMKills = 1 }), StateRunning, "killed a process"},
		{time.Minute + oomMemory, with(func(s *agent.Status) { s.OOMKills = 1 }), StateRunning, ""},
		{2 * time.Hour, nil, StateRunning, "does not answer: in time"},
		{2 * time.Hour, with(func(s *agent.Status) { s.OOMKills = 1 }), StateRunning, ""},
	} {
		var err error
		if look.guest == nil {
			err = errors.New("in time")
		}
		s := Status{Guest: look.guest}
		h.judge(&s, err, start.Add(look.after))
		got := strings.Join(s.Problems, "; ")
		if s.State != look.state || s.Healthy != (look.problem == "") || !strings.Contains(got, look.problem) {
			t.Errorf("after %v: %s, healthy %v, %q; want %s, %q", look.after, s.State, s.Healthy, got, look.state, look.problem)
		}
	}
	h.stopping.Store(true)
	s := Status{Guest: &up}
	if h.judge(&s, nil, start); s.State != StateStopping || s.Healthy {
		t.Errorf("a guest that is stopped: %+v", s)
	}
}

func TestResidentBytes(t *testing.T) {
	if got := residentBytes(os.Getpid()); got < 1<<20 || got > 1<<40 {
		t.Errorf("residentBytes(this process) = %d", got)
	}
	if got := residentBytes(-1); got != 0 {
		t.Errorf("residentBytes(no process) = %d", got)
	}
}

// TestClockWatch has a clock that drifts, steps, and steps again while the guest does not answer.
func TestClockWatch(t *testing.T) {
	var w clockWatch
	for i, look := range []struct {
		offset, step time.Duration
		fails        bool
	}{
		{1000 * time.Second, 0, false}, // the first is no step
		{1000*time.Second + 5*time.Millisecond, 0, false},
		{1060*time.Second + 5*time.Millisecond, 60 * time.Second, false},
		{1060*time.Second + 6*time.Millisecond, 0, false},
		{1000*time.Second + 6*time.Millisecond, -60 * time.Second, true},
		{1000*time.Second + 6*time.Millisecond, -60 * time.Second, true},
		{1030*time.Second + 6*time.Millisecond, -30 * time.Second, false},
		{1030*time.Second + 6*time.Millisecond, 0, false},
	} {
		step, ok := w.stepped(look.offset)
		if ok != (look.step != 0) || ok && step != look.step {
			t.Errorf("look %d: step %v, %v, want %v", i, step, ok, look.step)
		}
		if ok && look.fails {
			w.again()
		}
	}
}
