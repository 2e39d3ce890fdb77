package agent

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
)

// TestCallGivesUpItsTurn has an agent that is slow to answer: calls that are given up meanwhile neither reach it later nor
// leave anything behind, and the next one is answered.
func TestCallGivesUpItsTurn(t *testing.T) {
	var mu sync.Mutex
	var asked []string
	asks, answer := make(chan struct{}, 1), make(chan struct{})
	a, b := socketPair(t)
	c := newGuest(t, ServerOptions{Handle: func(name string, _ []byte) ([]byte, error) {
		mu.Lock()
		asked = append(asked, name)
		mu.Unlock()
		if name == "slow" {
			asks <- struct{}{}
			<-answer
		}
		return []byte("{}"), nil
	}}, a, b)
	slow := make(chan error, 1)
	go func() { slow <- c.Call(t.Context(), "slow", nil, nil) }()
	<-asks
	before := runtime.NumGoroutine()
	for range 50 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		if err := c.Call(ctx, "given up", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Call() behind a slow one = %v, want %v", err, context.DeadlineExceeded)
		}
		cancel()
	}
	if after := runtime.NumGoroutine(); after > before+5 {
		t.Errorf("%d goroutines before 50 calls that were given up, %d after them", before, after)
	}
	close(answer)
	if err := <-slow; err != nil {
		t.Errorf("the slow call: %v", err)
	}
	if err := c.Call(t.Context(), "next", nil, nil); err != nil {
		t.Errorf("the next call: %v", err)
	}
	mu.Lock()
	defer mu.Unlock()
	if want := []string{"slow", "next"}; !slices.Equal(asked, want) {
		t.Errorf("the agent was asked %q, want %q", asked, want)
	}
}
