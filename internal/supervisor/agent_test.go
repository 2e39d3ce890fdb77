package supervisor

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"docker-usermode-linux/internal/agent"
	"docker-usermode-linux/internal/uml"
)

// TestRunWaitsForHooks has start hooks that take longer than a command of exec would wait: that of run is not given up, but
// for the end of the kernel.
func TestRunWaitsForHooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &agentLink{changed: make(chan struct{})}
		ctx, kernelEnded := context.WithCancel(t.Context())
		s := newSession(Command{}, Streams{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr})
		go s.run(ctx, l)
		if _, err := l.waitBriefly(ctx); !errors.Is(err, errBooting) {
			t.Errorf("a command of exec: %v, want %v", err, errBooting)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		select {
		case end := <-s.ended:
			t.Errorf("the command of run was given up: %v", end.err)
		default:
		}
		kernelEnded()
		if end := <-s.ended; !errors.Is(end.err, context.Canceled) {
			t.Errorf("after the kernel's end: %v", end.err)
		}
	})
}

// TestRunWithoutLink has the way to the agent fail: the command does not wait for ever.
func TestRunWithoutLink(t *testing.T) {
	l, err := openAgentLink(t.TempDir(), false, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	l.close()
	l.run(t.Context())
	if _, err := l.wait(t.Context()); !errors.Is(err, agent.ErrGone) {
		t.Errorf("wait() = %v when no agent can come any more, want %v", err, agent.ErrGone)
	}
}

// TestPowerOffBesideHealthChecks has health checks wait for a guest that is slow to say how it is: the power-off comes after
// one of them, not after all.
func TestPowerOffBesideHealthChecks(t *testing.T) {
	ours, theirs := net.Pipe()
	asked := make(chan string, 100)
	answer := make(chan struct{})
	server := agent.NewServer(agent.ServerOptions{Handle: func(name string, _ []byte) ([]byte, error) {
		asked <- name
		if name == agent.RequestStatus {
			<-answer
		}
		return []byte("{}"), nil
	}})
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(context.Background(), theirs) // ends with the client
	}()
	client, err := agent.Dial(t.Context(), ours)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		client.Close()
		<-served
	}()
	l := noAgent(t, t.TempDir())
	l.set(client)
	var checks sync.WaitGroup
	defer checks.Wait()
	for range 20 {
		checks.Go(func() {
			var s agent.Status
			if err := l.status(t.Context(), agent.StatusRequest{}, &s); err != nil {
				t.Errorf("status() = %v", err)
			}
		})
	}
	if got := <-asked; got != agent.RequestStatus {
		t.Fatalf("asked for %s", got)
	}
	off := make(chan error, 1)
	go func() { off <- l.call(t.Context(), agent.RequestPowerOff, struct{}{}, nil) }()
	time.Sleep(50 * time.Millisecond) // so that it waits for its turn, which is the next
	close(answer)
	if err := <-off; err != nil {
		t.Errorf("the power-off: %v", err)
	}
	if got := <-asked; got != agent.RequestPowerOff {
		t.Errorf("asked for %s before %s", got, agent.RequestPowerOff)
	}
}

// TestPoweredOff has a guest that powers itself off: before its command was run, nothing has succeeded.
func TestPoweredOff(t *testing.T) {
	messages, err := newMessageLog(zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	defer messages.close()
	g := &guest{session: newSession(Command{}, Streams{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}), messages: messages}
	if got, err := g.reportSession(uml.Exit{}); got.code != exitSupervisor || err == nil {
		t.Errorf("without an agent: code %d, %v, want %d and why", got.code, err, exitSupervisor)
	}
	g.session.begun.Store(true)
	if got, err := g.reportSession(uml.Exit{}); got.code != 0 || err != nil {
		t.Errorf("with one: code %d, %v, want 0", got.code, err)
	}
}
