package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"docker-usermode-linux/internal/agent"
	"docker-usermode-linux/internal/balloon"
	"docker-usermode-linux/internal/mconsole"
	"docker-usermode-linux/internal/slirp"
	"docker-usermode-linux/internal/uml"
)

const (
	// foreignInitGrace is how long after the kernel's start an initramfs that is not ours, and so reports nothing, has
	// the console for certain.
	foreignInitGrace = 2 * time.Second
	// goneGrace is how long a guest may go on without its agent when it was run for a command.
	goneGrace = 5 * time.Second
	// lastGrace is how long after the kernel's end its notifications are waited for.
	lastGrace = 50 * time.Millisecond
)

// guest is one running kernel and what has been seen of it so far.
type guest struct {
	kernel    *uml.Kernel
	client    *mconsole.Client
	console   *console
	initramfs *os.File
	link      *agentLink
	network   *slirp.Network   // nil: none
	ram       *balloon.Balloon // nil: none
	// session is the command that the guest is run for, nil: none.
	session *session
	log     zerolog.Logger
	started time.Time
	// stopTimeout is how long the guest's init may take to shut down. With 0 it is not asked.
	stopTimeout time.Duration
	// ports are those on which somebody in the guest is expected to listen.
	ports []uint16

	// begun is Job.Started.
	begun func()
	// booted says that the kernel came far enough to announce its management console.
	booted bool
	// panicked says that the kernel announced a panic.
	panicked bool
	// restart says that the kernel announced that it restarts.
	restart bool
	// modeTold says that the log has told how the guest's programs are run.
	modeTold bool
	// stop is the way down, nil as long as nobody asked for it.
	stop *stopLadder
	// signal is the first one that came, result how the session ended: nil as long as it has not.
	signal unix.Signal
	result *sessionEnd
	// stopBy is when the power-off has to be over, if the command got a signal; before, zero.
	stopBy time.Time

	// The rest is for those who ask for the guest's status.
	pid      atomic.Int64
	messages *messageLog
	health   health
}

// watch returns when the kernel's process has ended. Every event of the guest's life is handled here.
func (g *guest) watch(
	signals <-chan os.Signal, events <-chan mconsole.Notification, network <-chan error, session <-chan sessionEnd,
) uml.Exit {
	var deadline <-chan time.Time
	for {
		select {
		case exit := <-g.kernel.Exited():
			g.lastWords(events, session)
			return exit

		case sig := <-signals:
			if !g.passOn(sig) {
				deadline = g.handleSignal(sig)
			}

		case <-deadline:
			if g.stop == nil { // the command did not end when it was told to, or the guest without its agent
				g.beginStop()
			}
			deadline = g.stop.next()

		case end := <-session:
			session = nil
			g.result = &end
			switch {
			case g.stop != nil:
			case errors.Is(end.err, agent.ErrGone): // as it is when the guest powers off
				deadline = time.After(g.goneGrace())
			default:
				g.beginStop()
				deadline = g.stop.next()
			}

		case event, ok := <-events:
			if !ok {
				events = nil
				continue
			}
			switch panicked := g.handle(event); {
			case panicked:
				g.stop = panicLadder(g)
				deadline = g.stop.next()
			case event.Kind == mconsole.Socket && g.stop != nil && g.stop.early:
				g.stop.early = false
				deadline = g.stop.next()
			}

		case err := <-network:
			network = nil
			if err != nil {
				g.log.Error().Err(err).Msg("the network failed; the guest goes on without")
			}
		}
	}
}

// lastWords takes what the kernel, or the command, had to say in its last moment and may still be on its way. A guest whose
// command has ended has said what counts.
func (g *guest) lastWords(events <-chan mconsole.Notification, session <-chan sessionEnd) {
	late := time.After(lastGrace)
	for g.result == nil && (events != nil || session != nil) {
		select {
		case event, ok := <-events:
			if !ok {
				events = nil
				continue
			}
			g.handle(event)
		case end := <-session:
			session = nil
			g.result = &end
		case <-late:
			return
		}
	}
}

// passOn gives the command a signal that is its alone, and reports whether it is. Before there is a command that could
// have a handler it is dropped, as for a process 1.
func (g *guest) passOn(sig os.Signal) bool {
	if g.session == nil || !slices.Contains(g.session.own, sig) {
		return false
	}
	if client, _ := g.link.current(); client != nil {
		g.session.signal(sig)
	}
	return true
}

// handleSignal does what a signal to the container asks for, and returns when to go on. The first one is the command's,
// if there is one: what is run in a container gets its signals. The command and the power-off then share STOP_TIMEOUT.
func (g *guest) handleSignal(sig os.Signal) <-chan time.Time {
	first := g.signal == 0
	g.signal, _ = sig.(unix.Signal)
	if g.stop == nil && first && g.session != nil && g.result == nil {
		if client, _ := g.link.current(); client != nil {
			g.session.signal(sig)
			g.stopBy = time.Now().Add(g.stopTimeout)
			return time.After(g.stopTimeout - shareOf(g.stopTimeout))
		}
	}
	if g.stop == nil {
		g.log.Info().Stringer("signal", sig).Msg("stopping the guest")
		g.beginStop()
	}
	return g.stop.next()
}

// goneGrace is how long the guest may go on without its agent, within the time that the first signal left it.
func (g *guest) goneGrace() time.Duration {
	if g.stopBy.IsZero() {
		return goneGrace
	}
	return min(goneGrace, time.Until(g.stopBy)-shareOf(g.stopTimeout))
}

// beginStop chooses the way down.
func (g *guest) beginStop() {
	g.stop = newStopLadder(g)
	g.health.stopping.Store(true)
}

// handle takes note of an event and reports whether it was a panic.
func (g *guest) handle(event mconsole.Notification) bool {
	switch event.Kind {
	case mconsole.Socket:
		g.booted = true
		// The user may have moved it, by umid= or uml_dir=.
		g.client = mconsole.NewClient(event.Data)
		// The kernel has unpacked it; it held secrets and 5 MB.
		if err := g.initramfs.Truncate(0); err != nil {
			g.log.Warn().Err(err).Msg("initramfs stays in memory")
		}
		g.log.Debug().Dur("dur", g.age()).Msg("kernel's management console is up")
		g.begun()
	case mconsole.Panic, mconsole.Hang:
		g.panicked = true
		g.log.Error().Str("reason", event.Data).Msg("kernel panic")
		return true
	case mconsole.UserNotify:
		if event.Data == uml.RestartMessage {
			g.restart = true
			return false
		}
		g.log.Debug().Dur("dur", g.age()).Str("event", event.Data).Msg("guest reports")
		g.tellMode()
		g.console.startInput()
	}
	return false
}

// tellMode says once how the guest's programs are run, and what that means.
func (g *guest) tellMode() {
	if g.modeTold || g.log.GetLevel() > zerolog.InfoLevel {
		return
	}
	mode := uml.UserspaceMode(g.kernel.PID())
	switch mode {
	case uml.ModeSeccomp:
		g.log.Info().Str("userspace", mode).Msg("fast, and several CPUs are possible; a program in the guest that means harm can reach " +
			"the guest kernel's memory: USERSPACE=ptrace keeps it out")
	case uml.ModePtrace:
		g.log.Info().Str("userspace", mode).Msg("programs in the guest cannot reach the guest kernel's memory; " +
			"slower than USERSPACE=seccomp, and one CPU")
	}
	g.modeTold = mode != ""
}

// report turns the end of the kernel's process into the container's exit code, and says why if it is not 0.
func (g *guest) report(exit uml.Exit) (end, error) {
	if !g.booted && exit.Code != 0 {
		g.messages.replay()
	}
	switch {
	case g.panicked:
		return end{code: exitPanic}, errors.New("the guest's kernel panicked: see the console's last lines above")
	case g.session != nil:
		return g.reportSession(exit)
	case g.stop != nil && g.stop.killed:
		return end{code: exit.Code},
			errors.New("the guest did not power off in time and was killed; unwritten data in it is lost")
	case exit.Signal != 0:
		return end{code: exit.Code}, fmt.Errorf("the kernel process %d %s", g.kernel.PID(), exit)
	case exit.Code != 0 && !g.booted:
		return end{code: exit.Code}, fmt.Errorf("the kernel gave up early: it %s", exit)
	}
	g.log.Info().Int("code", exit.Code).Dur("dur", g.age()).Msg("guest has ended")
	return end{code: exit.Code, restart: g.restart && g.stop == nil}, nil
}

// reportSession is report for a guest that was run for one command: its code is the container's. Where there is none,
// the guest has ended under it.
func (g *guest) reportSession(exit uml.Exit) (end, error) {
	switch {
	case g.result != nil && g.result.err == nil:
		return end{code: g.result.code}, nil
	case exit.Signal != 0 && !(g.stop != nil && g.stop.killed):
		return end{code: exit.Code}, fmt.Errorf("the kernel process %d %s", g.kernel.PID(), exit)
	case exit.Code != 0:
		if g.booted {
			g.messages.replay() // the console's lines are there too
		}
		return end{code: exit.Code}, errors.New("the guest ended before its command did")
	case g.signal != 0:
		return end{code: 128 + int(g.signal)}, nil
	case g.result != nil && g.stop != nil:
		return end{code: exitSupervisor}, fmt.Errorf("run the command in the guest: %w", g.result.err)
	}
	if !g.session.begun.Load() {
		g.messages.replay()
		return end{code: exitSupervisor}, errors.New("the guest ended before its command was run")
	}
	return end{}, nil // it powered itself off
}

// age is the time since the kernel's start, as it stands in the log.
func (g *guest) age() time.Duration { return time.Since(g.started).Round(time.Millisecond) }

// command sends one command to the management console.
func (g *guest) command(cmd string) error {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	_, err := g.client.Command(ctx, cmd)
	return err
}
