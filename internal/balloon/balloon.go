// Package balloon gives memory back to the host that the guest no longer uses: a virtio balloon, over vhost-user, that is
// never inflated, and takes the guest's reports of free pages.
//
// Sources: virtio 1.2, section 5.5; Linux's driver, drivers/virtio/virtio_balloon.c and mm/page_reporting.c.
package balloon

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"docker-usermode-linux/internal/vhostuser"
)

// Theory of operation
//
// The guest's RAM is a file in memory. A page of it that the guest has once touched stays with the guest, free or not. Two
// seconds after pages became free in blocks of the size that its kernel reports (page_reporting_order), the guest takes
// them out of its allocator, offers us their addresses, and waits. We punch holes into the file there and give the
// addresses back; the pages go back to the allocator, and read as zeros when they are used again.
//
// Only what the guest offers is touched, so that a guest which lies loses its own data alone.

// Queues, as the driver numbers them: it leaves out those of features that were not agreed on.
const (
	queueInflate = iota
	queueDeflate
	queueReporting
	numQueues
)

// featureReporting is VIRTIO_BALLOON_F_REPORTING.
const featureReporting = 1 << 5

// configBytes is the size of struct virtio_balloon_config (include/uapi/linux/virtio_balloon.h). All of it is 0: the
// balloon is to have no pages.
const configBytes = 16

// maxChains bounds how long a queue is locked.
const maxChains = 64

// Balloon is the device. Its methods can be called concurrently.
type Balloon struct {
	listener *net.UnixListener
	device   *vhostuser.Device
	returned atomic.Uint64
}

// New makes the device and the unix socket at path, which the guest's kernel connects to. Nobody is served before Run;
// Run or Close removes the socket. oldDriver is that of vhostuser.Options.
func New(path string, oldDriver bool) (*Balloon, error) {
	listener, err := vhostuser.Listen(path)
	if err != nil {
		return nil, fmt.Errorf("guest balloon: %w", err)
	}
	b := &Balloon{listener: listener}
	b.device = vhostuser.New(vhostuser.Options{
		Features:  featureReporting | vhostuser.FeatureEventIdx | vhostuser.FeatureVersion1,
		Config:    make([]byte, configBytes),
		Queues:    numQueues,
		OldDriver: oldDriver,
		Kicked:    b.kicked,
	})
	return b, nil
}

// Run waits for the guest's driver and serves it until Close, or until the guest's kernel is gone, which are no errors,
// or until it breaks the rules of virtio. It must be called at most once.
func (b *Balloon) Run() error {
	err := b.device.ServeOne(b.listener)
	if errors.Is(err, net.ErrClosed) || vhostuser.IsGone(err) {
		return nil
	}
	return fmt.Errorf("guest balloon: %w", err)
}

// Close ends Run.
func (b *Balloon) Close() {
	_ = b.listener.Close()
	b.device.Close()
}

// Returned is how many bytes were given back to the host, in all.
func (b *Balloon) Returned() uint64 { return b.returned.Load() }

// kicked is called when the guest has put something into a queue. With a balloon of no pages that is a report.
func (b *Balloon) kicked(q *vhostuser.Queue) error {
	var chain vhostuser.Chain
	for {
		more, err := b.take(q, &chain)
		if err != nil || !more {
			return err
		}
	}
}

// take handles what there is, and says whether there may be more.
func (b *Balloon) take(q *vhostuser.Queue, chain *vhostuser.Chain) (more bool, err error) {
	running := q.Lock()
	defer q.Unlock()
	if !running {
		return false, nil
	}
	for range maxChains {
		ok, err := q.Take(chain)
		if err != nil {
			return false, err
		}
		if !ok {
			if err := q.Publish(); err != nil {
				return false, err
			}
			return q.AskForKick(), nil
		}
		if q.Index() == queueReporting {
			if err := b.giveBack(chain.Write); err != nil {
				return false, err
			}
		}
		q.Use(chain, 0)
	}
	return true, q.Publish()
}

// giveBack punches holes where the guest has free pages.
func (b *Balloon) giveBack(parts [][]byte) error {
	for _, part := range parts {
		// A part that is no whole number of pages, or a file that has no holes, such as one on a disk of old: it stays.
		switch err := unix.Madvise(part, unix.MADV_REMOVE); {
		case err == nil:
			b.returned.Add(uint64(len(part)))
		case !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP):
			return fmt.Errorf("give %d bytes back to the host: %w", len(part), os.NewSyscallError("madvise", err))
		}
	}
	return nil
}
