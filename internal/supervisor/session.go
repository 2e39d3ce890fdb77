package supervisor

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"docker-usermode-linux/internal/agent"
	"docker-usermode-linux/internal/attach"
)

const (
	// initPoll is how often the guest's init is asked whether it is up, and initGrace how long it is waited for.
	initPoll  = 50 * time.Millisecond
	initGrace = 2 * time.Minute
)

// session is the one command that a guest is run for (docker run IMAGE run COMMAND).
type session struct {
	command agent.Command
	init    bool // wait for the guest's init
	tty     attach.TTY
	streams attach.Streams
	signals chan os.Signal
	own     []os.Signal // Command.Signals
	ended   chan sessionEnd
	// begun says that there was an agent to run it.
	begun atomic.Bool
}

// sessionEnd is how it ended.
type sessionEnd struct {
	code int
	err  error // it could not be run, or nobody knows its code
}

func newSession(c Command, s Streams) *session {
	return &session{
		command: c.Command, init: c.Init, tty: c.TTY, streams: attach.Streams(s),
		signals: make(chan os.Signal, 8), own: c.Signals, ended: make(chan sessionEnd, 1),
	}
}

// run runs the command as soon as the agent is there, which is after the start hooks: ctx, which ends with the kernel, is
// the only limit.
func (s *session) run(ctx context.Context, l *agentLink) {
	client, err := l.wait(ctx)
	if err != nil {
		s.ended <- sessionEnd{err: err}
		return
	}
	s.begun.Store(true)
	if s.init {
		if err := waitForInit(ctx, client); err != nil {
			s.ended <- sessionEnd{err: err}
			return
		}
	}
	code, err := attach.Run(ctx, client, s.command, s.tty, s.streams, s.signals)
	s.ended <- sessionEnd{code, err}
}

// waitForInit waits until the guest's init has started what it starts at boot.
func waitForInit(ctx context.Context, client *agent.Client) error {
	ctx, cancel := context.WithTimeoutCause(ctx, initGrace, fmt.Errorf("the guest's init is not up after %v", initGrace))
	defer cancel()
	for {
		var s agent.Status
		if err := client.Call(ctx, agent.RequestStatus, agent.StatusRequest{}, &s); err != nil || s.Init.Up {
			return err
		}
		select {
		case <-time.After(initPoll):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// signal passes a signal on to the command.
func (s *session) signal(sig os.Signal) {
	select {
	case s.signals <- sig:
	default: // it is long being asked
	}
}
