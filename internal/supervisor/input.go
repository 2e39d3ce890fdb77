package supervisor

import (
	"io"
	"sync"
)

// input reads the container's stdin for as long as this process lives, as a read of it cannot be interrupted, and writes
// to the console of the guest that runs. What it has read while there is none, between two boots, is for the next one.
type input struct {
	from io.Reader
	once sync.Once

	mu sync.Mutex
	// to is the present guest's console; nil: there is none.
	to io.Writer // guarded by mu
	// changed is closed when to changes.
	changed chan struct{} // guarded by mu
}

func newInput(from io.Reader) *input { return &input{from: from, changed: make(chan struct{})} }

// connect gives what comes from now on to w. Before the first time nothing is read: it stays where it is, unseen.
func (i *input) connect(w io.Writer) {
	i.set(w)
	i.once.Do(func() { go i.copy() })
}

// disconnect ends that. Closing what w writes to ends a write that is under way.
func (i *input) disconnect() { i.set(nil) }

func (i *input) set(w io.Writer) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.to = w
	close(i.changed)
	i.changed = make(chan struct{})
}

// copy ends with stdin. An end of that is not the guest's business: a terminal has none that could be passed on.
func (i *input) copy() {
	buf := make([]byte, 32<<10)
	for {
		n, err := i.from.Read(buf)
		i.deliver(buf[:n])
		if err != nil {
			return
		}
	}
}

// deliver writes p, to the next console as far as the present one does not take it.
func (i *input) deliver(p []byte) {
	for len(p) > 0 {
		i.mu.Lock()
		to, changed := i.to, i.changed
		i.mu.Unlock()
		if to != nil {
			n, err := to.Write(p)
			p = p[n:]
			if err == nil {
				continue
			}
		}
		if len(p) > 0 {
			<-changed
		}
	}
}
