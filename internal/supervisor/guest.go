package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/rs/zerolog"

	"docker-usermode-linux/internal/mconsole"
	"docker-usermode-linux/internal/uml"
)

const (
	// foreignInitGrace is how long after the kernel's start an initramfs that is not ours, and so reports nothing, has
	// the console for certain.
	foreignInitGrace = 2 * time.Second
	// lastWords is how long after the kernel's end its notifications are waited for.
	lastWords = 50 * time.Millisecond
)

// guest is one running kernel and what has been seen of it so far.
type guest struct {
	kernel    *uml.Kernel
	client    *mconsole.Client
	console   *console
	initramfs *os.File
	log       zerolog.Logger
	started   time.Time

	// booted says that the kernel came far enough to announce its management console.
	booted bool
	// panicked says that the kernel announced a panic.
	panicked bool
	// stop is the way down, nil as long as nobody asked for it.
	stop *stopLadder
}

// watch returns when the kernel's process has ended. Every event of the guest's life is handled here.
func (g *guest) watch(signals <-chan os.Signal, events <-chan mconsole.Notification, network <-chan error) uml.Exit {
	var deadline <-chan time.Time
	for {
		select {
		case exit := <-g.kernel.Exited():
			// What the kernel had to say in its last moment may still be on its way.
			for events != nil {
				select {
				case event, ok := <-events:
					if !ok {
						return exit
					}
					g.handle(event)
				case <-time.After(lastWords):
					return exit
				}
			}
			return exit

		case sig := <-signals:
			if g.stop == nil {
				g.log.Info().Stringer("signal", sig).Msg("stopping the guest")
				g.stop = newStopLadder(g)
			}
			deadline = g.stop.next()

		case <-deadline:
			deadline = g.stop.next()

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
	case mconsole.Panic, mconsole.Hang:
		g.panicked = true
		g.log.Error().Str("reason", event.Data).Msg("kernel panic")
		return true
	case mconsole.UserNotify:
		g.log.Debug().Dur("dur", g.age()).Str("event", event.Data).Msg("guest reports")
		g.console.startInput()
	}
	return false
}

// report turns the end of the kernel's process into the container's exit code, and says why if it is not 0.
func (g *guest) report(exit uml.Exit, messages *messageLog) (int, error) {
	if !g.booted && exit.Code != 0 {
		messages.replay()
	}
	switch {
	case g.panicked:
		return exitPanic, errors.New("the guest's kernel panicked: see the console's last lines above")
	case g.stop != nil && g.stop.killed:
		return exit.Code, errors.New("the guest did not power off in time and was killed; unwritten data in it is lost")
	case exit.Signal != 0:
		return exit.Code, fmt.Errorf("the kernel process %d %s", g.kernel.PID(), exit)
	case exit.Code != 0 && !g.booted:
		return exit.Code, fmt.Errorf("the kernel gave up early: it %s", exit)
	}
	g.log.Info().Int("code", exit.Code).Dur("dur", g.age()).Msg("guest has ended")
	return exit.Code, nil
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
