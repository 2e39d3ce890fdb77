package image

import (
	"sync"
	"time"
)

// Progress is told how far a long piece of work has come: done of total bytes, total -1 where nobody knows. what is
// "pulling", "reading" or "unpacking". It is never called twice at the same time.
type Progress func(done, total int64, what string)

// progressInterval is short enough for a bar that moves, and long enough that no terminal is busy with it.
const progressInterval = 100 * time.Millisecond

// meter counts for a Progress. A nil hook is allowed.
type meter struct {
	hook  Progress
	total int64
	what  string

	mu   sync.Mutex
	done int64     // guarded by mu
	last time.Time // guarded by mu; of the last call
}

func newMeter(hook Progress, total int64, what string) *meter {
	m := &meter{hook: hook, total: total, what: what}
	m.add(0)
	return m
}

// add counts n bytes more, or less: a download that starts again.
func (m *meter) add(n int64) {
	if m.hook == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done += n
	if now := time.Now(); now.Sub(m.last) >= progressInterval {
		m.last = now
		m.hook(m.done, m.total, m.what)
	}
}

// finish makes the last call, so that the end is always seen.
func (m *meter) finish() {
	if m.hook == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hook(m.done, m.total, m.what)
}

// Write counts what an io.TeeReader has read.
func (m *meter) Write(p []byte) (int, error) {
	m.add(int64(len(p)))
	return len(p), nil
}
