package supervisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"docker-usermode-linux/internal/agent"
	"docker-usermode-linux/internal/vport"
)

// agentGrace is how long a command of exec waits for the agent of a guest that boots.
const agentGrace = 30 * time.Second

// errBooting says that agentGrace was not enough.
var errBooting = fmt.Errorf("the guest's agent is not there after %v: the guest still boots, its hooks (HOOKS) take longer, "+
	"or the agent was ended; try again later", agentGrace)

// errNoAgent says that there is nobody in the guest to ask.
var errNoAgent = errors.New("the guest's agent is not there: the guest has not booted so far, or it was ended")

// agentLink is the way to the guest's agent: a port of the guest, and the connection over it whenever the agent has it
// open.
type agentLink struct {
	port *vport.Port
	path string
	log  zerolog.Logger
	// looks holds a token while somebody waits for the guest's status: the power-off is to wait for one at most.
	looks chan struct{}

	mu sync.Mutex
	// client is nil while there is no agent.
	client *agent.Client // guarded by mu
	// changed is closed when client changes.
	changed chan struct{} // guarded by mu
	// ended is closed when there will be no agent any more.
	ended chan struct{}
}

// openAgentLink makes the port, whose socket is in dir. run serves it.
func openAgentLink(dir string, oldDriver bool, log zerolog.Logger) (*agentLink, error) {
	l := &agentLink{path: filepath.Join(dir, "agent"), log: log, looks: make(chan struct{}, 1), changed: make(chan struct{}), ended: make(chan struct{})}
	var err error
	if l.port, err = vport.New(vport.Options{Path: l.path, Name: agent.PortName, OldDriver: oldDriver}); err != nil {
		return nil, err
	}
	return l, nil
}

// run serves the port until ctx ends or the guest is gone.
func (l *agentLink) run(ctx context.Context) {
	defer context.AfterFunc(ctx, l.port.Close)()
	var serving sync.WaitGroup
	defer serving.Wait()
	defer close(l.ended)
	serving.Go(func() {
		if err := l.port.Run(); err != nil {
			l.log.Error().Err(err).Msg("the way to the guest's agent failed; the guest goes on without")
		}
	})
	for {
		conn, err := l.port.Accept()
		if err != nil {
			return
		}
		l.serve(ctx, conn)
	}
}

// serve uses one connection of the agent's until it ends.
func (l *agentLink) serve(ctx context.Context, conn net.Conn) {
	client, err := agent.Dial(ctx, conn)
	if err != nil {
		l.log.Debug().Err(err).Msg("no agreement with the guest's agent")
		return
	}
	l.set(client)
	_ = client.Wait() // it ends with the port
	l.set(nil)
}

func (l *agentLink) set(client *agent.Client) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.client = client
	close(l.changed)
	l.changed = make(chan struct{})
}

// current returns the client, or nil, and what is closed when that changes.
func (l *agentLink) current() (*agent.Client, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.client, l.changed
}

// wait returns the client as soon as there is one, or the cause of ctx, or ErrGone when there will be none. Hooks may take
// any time before.
func (l *agentLink) wait(ctx context.Context) (*agent.Client, error) {
	for {
		client, changed := l.current()
		if client != nil {
			return client, nil
		}
		select {
		case <-changed:
		case <-l.ended:
			return nil, agent.ErrGone
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// waitBriefly is wait for somebody who does not know how far the guest is: no longer than agentGrace.
func (l *agentLink) waitBriefly(ctx context.Context) (*agent.Client, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, agentGrace, errBooting)
	defer cancel()
	return l.wait(ctx)
}

// call asks the agent that is there now.
func (l *agentLink) call(ctx context.Context, name string, request, answer any) error {
	client, _ := l.current()
	if client == nil {
		return errNoAgent
	}
	return client.Call(ctx, name, request, answer)
}

// status asks the agent how the guest is, for one after the other of those who want to know.
func (l *agentLink) status(ctx context.Context, request agent.StatusRequest, answer *agent.Status) error {
	select {
	case l.looks <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-l.looks }()
	return l.call(ctx, agent.RequestStatus, request, answer)
}

// close ends run.
func (l *agentLink) close() { l.port.Close() }

// serveExec passes clients of the socket on to the agent, until ctx ends. What it starts counts as running.
func (l *agentLink) serveExec(ctx context.Context, running *sync.WaitGroup, socket net.Listener) {
	defer context.AfterFunc(ctx, func() { _ = socket.Close() })()
	for {
		conn, err := socket.Accept()
		if err != nil {
			if ctx.Err() == nil {
				l.log.Error().Err(err).Msg("commands cannot be run in the guest any more")
			}
			return
		}
		running.Go(func() {
			upstream := func() (*agent.Client, error) { return l.waitBriefly(ctx) }
			if err := agent.Proxy(ctx, conn, upstream); err != nil {
				l.log.Debug().Err(err).Msg("a client of the guest's agent ended")
			}
		})
	}
}
