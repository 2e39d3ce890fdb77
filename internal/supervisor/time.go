package supervisor

import (
	"context"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"docker-usermode-linux/internal/agent"
)

// The guest's clock is set at its boot, and then runs with the host's CLOCK_MONOTONIC, which stands still while the host
// is suspended and knows nothing of steps of the host's own clock. keepTime passes both on.

const (
	// clockInterval is how often the clocks are compared.
	clockInterval = 5 * time.Second
	// clockStep is a step of the host's clock that is worth passing on. NTP slews less than 0.5 ms a second, which the
	// guest follows by itself.
	clockStep = 500 * time.Millisecond
	// clockTimeout bounds a request.
	clockTimeout = 3 * time.Second
)

// keepTime sets the guest's clock whenever the host's has been set or the host has slept, until ctx ends.
func keepTime(ctx context.Context, l *agentLink, log zerolog.Logger) {
	ticker := time.NewTicker(clockInterval)
	defer ticker.Stop()
	var clocks clockWatch
	clocks.stepped(clockOffset())
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		step, ok := clocks.stepped(clockOffset())
		if !ok {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, clockTimeout)
		err := l.call(ctx, agent.RequestSetTime, agent.SetTime{Time: time.Now().UnixNano()}, nil)
		cancel()
		if err != nil {
			clocks.again()
			log.Debug().Err(err).Msg("the guest's clock could not be set; another try follows")
			continue
		}
		log.Info().Dur("step", step).Msg("the guest's clock follows the host's")
	}
}

// clockOffset is by how much the time of day is ahead of the monotonic clock.
func clockOffset() time.Duration {
	var monotonic unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &monotonic); err != nil {
		return 0 // it cannot fail
	}
	return time.Duration(time.Now().UnixNano() - monotonic.Nano())
}

// clockWatch finds steps in the offset between the clocks.
type clockWatch struct {
	last, step time.Duration
	pending    bool
	known      bool
}

// stepped takes an offset and reports by how much it has changed since the one before, if that is a step.
func (w *clockWatch) stepped(offset time.Duration) (step time.Duration, ok bool) {
	step = offset - w.last
	known := w.known
	w.last, w.known = offset, true
	if w.pending {
		step += w.step
	}
	ok = known && (step.Abs() >= clockStep || w.pending)
	w.step, w.pending = step, false
	return step, ok
}

// again has the next comparison report the step once more.
func (w *clockWatch) again() { w.pending = true }
