package supervisor

import (
	"context"
	"errors"
	"time"

	"docker-usermode-linux/internal/agent"
)

// The way down. Docker gives a container 10 seconds between SIGTERM and SIGKILL; with the default of STOP_TIMEOUT, 6.5 s,
// the rungs before the last one take 9 s at most, so that the guest's file systems are in order even when its init does
// not answer.
// SIGTERM never goes to the kernel's own process: UML's handler for it exits on the spot, without a sync.
const (
	// commandTimeout bounds the wait for the management console's answer. A busy guest takes milliseconds.
	commandTimeout = 500 * time.Millisecond
	// agentTimeout bounds the wait for the agent's answer, which comes after those to at most two questions for its status,
	// a health check's and that of a run that waits for the init: 0.55 s each (cmd/guest, initQuery). It itself takes
	// milliseconds.
	agentTimeout = 1500 * time.Millisecond
	// bootGrace is for a kernel that has only just been started to come far enough to take a command: 0.1 s as a rule.
	bootGrace = time.Second
	// syncGrace lets the guest's sync get going before anything else happens.
	syncGrace = 100 * time.Millisecond
	// remountGrace is what the emergency remount gets, and haltGrace the kernel's exit.
	remountGrace = 700 * time.Millisecond
	haltGrace    = 700 * time.Millisecond
	// powerOffShare is the part of STOP_TIMEOUT that a command leaves for the power-off: our own init gives processes 2 s
	// between SIGTERM and SIGKILL, and a sync follows.
	powerOffShare = 2500 * time.Millisecond
)

// shareOf is powerOffShare of a STOP_TIMEOUT, half of one that is short.
func shareOf(timeout time.Duration) time.Duration { return min(powerOffShare, timeout/2) }

// powerOffGrace is how long the guest may take to power off: STOP_TIMEOUT, or what the command has left of it.
func (g *guest) powerOffGrace() time.Duration {
	if g.stopBy.IsZero() {
		return g.stopTimeout
	}
	return max(time.Until(g.stopBy), shareOf(g.stopTimeout))
}

// rung is one step of the way down: an action, and the time until the next one is tried.
type rung struct {
	name  string
	act   func() error
	grace time.Duration
}

type stopLadder struct {
	guest *guest
	rungs []rung
	// early says that the first rung, the wait for the kernel, has not been left.
	early  bool
	killed bool
}

// newStopLadder asks the guest's init first, then the kernel, then nobody.
func newStopLadder(g *guest) *stopLadder {
	l := &stopLadder{guest: g}
	l.rungs = []rung{
		{"power off", g.askForPowerOff, g.powerOffGrace()},
		{"remount read-only", func() error { return g.command("sysrq u") }, remountGrace},
		{"halt", func() error { return g.command("halt") }, haltGrace},
		l.kill(),
	}
	if g.stopTimeout == 0 { // the user does not want it asked
		l.rungs[0] = rung{"sync", func() error { return g.command("sysrq s") }, syncGrace}
	}
	if !g.booted {
		l.early = true
		l.rungs = append([]rung{{"wait for the kernel", func() error { return nil }, bootGrace}}, l.rungs...)
	}
	return l
}

// askForPowerOff asks the guest's init for the end: through the agent, which knows what each init understands, or by
// Ctrl-Alt-Del.
func (g *guest) askForPowerOff() error {
	ctx, cancel := context.WithTimeout(context.Background(), agentTimeout)
	defer cancel()
	var how agent.PowerOff
	err := g.link.call(ctx, agent.RequestPowerOff, struct{}{}, &how)
	if err == nil || errors.Is(err, agent.ErrGone) { // it may have been quicker than its answer
		g.log.Debug().Str("by", agent.Printable(how.By)).Msg("the guest's agent asks for the end")
		return nil
	}
	g.log.Debug().Err(err).Msg("the guest's agent was not asked; Ctrl-Alt-Del instead")
	// An init that never took over Ctrl-Alt-Del (a shell, say) is not asked: the kernel restarts on the spot.
	// Its answer is late where the guest is busy, which makes Ctrl-Alt-Del no less due.
	if err := g.command("sysrq s"); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	time.Sleep(syncGrace)
	return g.command("cad")
}

// panicLadder waits for a kernel that is dying of itself, and then helps.
func panicLadder(g *guest) *stopLadder {
	l := &stopLadder{guest: g}
	l.rungs = []rung{
		{"wait for the kernel's own exit", func() error { return nil }, panicGrace},
		l.kill(),
	}
	return l
}

func (l *stopLadder) kill() rung {
	return rung{"kill", func() error {
		l.killed = true
		return l.guest.kernel.Kill()
	}, time.Minute}
}

// next goes one rung down and tells when to go on. A rung whose action fails is left at once; a command whose answer is
// late counts as given, for a busy guest acts on it all the same.
func (l *stopLadder) next() <-chan time.Time {
	for len(l.rungs) > 0 {
		r := l.rungs[0]
		// The last rung stays: there is nothing below it.
		if len(l.rungs) > 1 {
			l.rungs = l.rungs[1:]
		}
		start := time.Now()
		err := r.act()
		log := l.guest.log.Info()
		if err != nil {
			log = l.guest.log.Warn().Err(err)
		}
		log.Str("rung", r.name).Dur("dur", time.Since(start).Round(time.Microsecond)).Msg("stop")
		if err == nil || errors.Is(err, context.DeadlineExceeded) || l.killed {
			return time.After(r.grace - time.Since(start))
		}
	}
	return nil
}
