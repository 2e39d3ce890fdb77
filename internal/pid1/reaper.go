package pid1

import (
	"sync"

	"github.com/hashicorp/go-reap"
)

// reapFunc is the type of reap.ReapChildren.
type reapFunc func(pids reap.PidCh, errs reap.ErrorCh, done chan struct{}, lock *sync.RWMutex)

// A reaper is go-reap at work. Somebody has to receive from pids all the time: go-reap stands still otherwise.
type reaper struct {
	pids reap.PidCh
	done chan struct{} // ends it
	gone chan struct{} // closed when it has ended
}

func startReaper(reapChildren reapFunc) *reaper {
	r := &reaper{pids: make(reap.PidCh), done: make(chan struct{}), gone: make(chan struct{})}
	go r.run(reapChildren)
	return r
}

// run needs no errors, as the only one of wait4(2) that go-reap would pass on is EINVAL, and no lock, as nothing else
// waits.
func (r *reaper) run(reapChildren reapFunc) {
	defer close(r.gone)
	reapChildren(r.pids, nil, r.done, nil)
}

func (r *reaper) stop() {
	close(r.done)
	for {
		select {
		case <-r.pids:
		case <-r.gone:
			return
		}
	}
}
