package supervisor

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"docker-usermode-linux/internal/agent"
	"docker-usermode-linux/internal/uml"
)

const (
	// statusTimeout bounds the wait for the agent's answer. A guest that takes longer counts as hanging.
	statusTimeout = 4 * time.Second
	// portGrace is how long after its init is up a guest that does not listen on a forwarded port counts as starting.
	// Later it is taken as what the user wants: a service that is not there yet.
	portGrace = 10 * time.Second
	// memoryLow is the share of the guest's memory below which it is out of it, in percent.
	memoryLow = 2
	// oomMemory is how long the guest is unhealthy after its kernel has killed a process for its memory.
	oomMemory = time.Minute
)

// The states of a guest.
const (
	StateBooting  = "booting"  // the kernel runs, the agent does not answer yet
	StateStarting = "starting" // its init has not started everything, or nobody listens on a forwarded port yet
	StateRunning  = "running"
	StateStopping = "stopping"
)

// Status is what "entrypoint status" shows. The names in the JSON are stable.
type Status struct {
	// State is one of booting, starting, running, stopping.
	State string `json:"state"`
	// Healthy is a guest that runs and has no problem; Problems are what is wrong, or waited for.
	Healthy  bool     `json:"healthy"`
	Problems []string `json:"problems,omitempty"`
	// Uptime is the time since the kernel's start in seconds.
	Uptime float64 `json:"uptime"`
	// PID is the kernel's process in the container.
	PID int `json:"pid"`
	// Mode is how the kernel runs guest processes: seccomp, ptrace, or empty if it did not say.
	Mode string `json:"mode,omitempty"`
	// HostResident is what the kernel's process holds of the host's memory in bytes: the guest's RAM that was ever used,
	// and the kernel itself.
	HostResident uint64 `json:"host_resident"`
	// HostReturned is what the guest has given back to the host so far, in bytes; it may have taken it again.
	HostReturned uint64 `json:"host_returned"`
	// Guest is what its agent says, nil as long as it does not.
	Guest *agent.Status `json:"guest,omitempty"`
	// Forwards is the number of forwarded ports, Flows that of live flows; of a guest with a network.
	Forwards int `json:"forwards"`
	Flows    int `json:"flows"`
}

// health is what the judgement of a guest is based on beside its present state.
type health struct {
	stopping atomic.Bool

	mu       sync.Mutex
	answered bool      // guarded by mu: the agent did so once
	upSince  time.Time // guarded by mu: when its init was first seen up
	oomKills uint64    // guarded by mu
	oomSeen  time.Time // guarded by mu: when oomKills last grew
}

// status looks at the guest.
func (g *guest) status(ctx context.Context) Status {
	s := Status{Uptime: time.Since(g.started).Seconds()}
	if g.network != nil {
		i := g.network.Inspect()
		s.Forwards = len(i.Forwards)
		s.Flows = i.Counters.LiveTCP + i.Counters.LiveUDP + i.Counters.LivePing
	}
	s.PID = int(g.pid.Load())
	s.HostResident = residentBytes(s.PID)
	if g.ram != nil {
		s.HostReturned = g.ram.Returned()
	}
	s.Mode = uml.UserspaceMode(s.PID)

	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	var answer agent.Status
	err := g.link.status(ctx, agent.StatusRequest{Ports: g.ports}, &answer)
	if err == nil {
		// Its text is for the terminals of people who ask, and in the hands of whoever has root in the guest.
		for _, text := range []*string{&answer.Kernel, &answer.Init.Name, &answer.Init.Detail} {
			*text = agent.Printable(*text)
		}
		s.Guest = &answer
	}
	g.health.judge(&s, err, time.Now())
	return s
}

// judge fills in the state and what is wrong. err is why the agent did not answer.
func (h *health) judge(s *Status, err error, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	problem := func(format string, a ...any) { s.Problems = append(s.Problems, fmt.Sprintf(format, a...)) }
	switch {
	case err != nil && !h.answered:
		s.State = StateBooting
		problem("the guest's agent is not there yet")
	case err != nil:
		s.State = StateRunning
		problem("the guest's agent does not answer: %v", err)
	default:
		h.answered = true
		s.State = h.judgeGuest(s.Guest, problem, now)
	}
	if h.stopping.Load() {
		s.State = StateStopping
		problem("the guest is being stopped")
	}
	s.Healthy = len(s.Problems) == 0
}

// judgeGuest is judge for a guest whose agent answers.
//
// Preconditions: mu is held.
func (h *health) judgeGuest(g *agent.Status, problem func(string, ...any), now time.Time) (state string) {
	state = StateRunning
	switch {
	case !g.Init.Up:
		state = StateStarting
		problem("%s has not started everything yet", g.Init.Name)
		h.upSince = time.Time{}
	case h.upSince.IsZero():
		h.upSince = now
	}
	if g.Init.Up && len(g.Silent) > 0 && now.Sub(h.upSince) < portGrace {
		state = StateStarting
		problem("nobody in the guest listens on TCP port %s yet", joinPorts(g.Silent))
	}
	if g.MemTotal > 0 && g.MemAvailable*100 < g.MemTotal*memoryLow {
		problem("the guest is out of memory: %d of %d MiB are available; raise MEM", g.MemAvailable>>20, g.MemTotal>>20)
	}
	if g.OOMKills > h.oomKills {
		h.oomKills, h.oomSeen = g.OOMKills, now
	}
	if !h.oomSeen.IsZero() && now.Sub(h.oomSeen) < oomMemory {
		problem("the guest's kernel has killed a process because it was out of memory; raise MEM")
	}
	return state
}

func joinPorts(ports []uint16) string {
	var words []string
	for _, p := range ports {
		words = append(words, strconv.Itoa(int(p)))
	}
	return strings.Join(words, ", ")
}

// residentBytes is the resident size of a process (proc_pid_statm(5)), 0 if it is gone.
func residentBytes(pid int) uint64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(data))
	if len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.ParseUint(fields[1], 10, 64)
	return pages * uint64(os.Getpagesize())
}
