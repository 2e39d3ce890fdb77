package supervisor

import (
	"context"
	"errors"
	"os"
	"testing"
	"testing/synctest"
	"time"
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
