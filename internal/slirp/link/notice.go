package link

import (
	"math"
	"sync/atomic"
	"time"

	"docker-usermode-linux/internal/vhostuser"
)

// lateNotice is how long a guest may go without knowing what there is no hurry about. It is the shortest time that Go's
// timers keep when nothing else happens.
const lateNotice = time.Millisecond

// notice notifies the guest of what was shown in a queue (vhostuser.Queue.Show), now or a little later. An interrupt of
// the guest costs it tens of microseconds, and us the wake-up of its thread.
type notice struct {
	device *vhostuser.Device
	queue  *vhostuser.Queue
	timer  *time.Timer
	due    atomic.Bool
}

func newNotice(d *vhostuser.Device, queue int) *notice {
	n := &notice{device: d, queue: d.Queue(queue)}
	n.timer = time.AfterFunc(math.MaxInt64, n.now)
	return n
}

// now notifies the guest, unless it knows already or does not want to.
func (n *notice) now() {
	n.due.Store(false)
	withQueue(n.device, n.queue, (*vhostuser.Queue).Notify)
}

// withQueue runs f with a queue of the device's, locked, if it runs. An error ends the device.
func withQueue(d *vhostuser.Device, q *vhostuser.Queue, f func(*vhostuser.Queue) error) {
	err := vhostuser.Guard(func() error {
		defer q.Unlock()
		if q.Lock() {
			return f(q)
		}
		return nil
	})
	if err != nil {
		d.Fail(err)
	}
}

// later does the same within lateNotice.
func (n *notice) later() {
	if !n.due.Swap(true) {
		n.timer.Reset(lateNotice)
	}
}

// stop ends what later has begun.
func (n *notice) stop() { n.timer.Stop() }
