package vhostuser

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Feature bits of the ring (virtio 1.2, section 6).
const (
	FeatureIndirect = 1 << 28 // VIRTIO_F_INDIRECT_DESC
	FeatureEventIdx = 1 << 29 // VIRTIO_F_EVENT_IDX
	FeatureVersion1 = 1 << 32 // VIRTIO_F_VERSION_1
)

// Flags of a descriptor.
const (
	descNext     = 1 // the chain goes on
	descWrite    = 2 // for the device to write; otherwise to read
	descIndirect = 4 // points to a table of descriptors
)

const (
	// maxRing is what QEMU's devices take at most. It bounds the memory that a chain can cost.
	maxRing = 1024
	// availNoInterrupt and usedNoNotify are the flags with which both sides suppress notifications without event
	// indexes.
	availNoInterrupt = 1
	usedNoNotify     = 1
)

// desc is struct virtq_desc (virtio 1.2, section 2.7.5). All of a ring is little-endian, as are the machines that UML
// runs on.
type desc struct {
	addr   uint64
	length uint32
	flags  uint16
	next   uint16
}

// usedElem is struct virtq_used_elem.
type usedElem struct{ id, length uint32 }

// ErrRing is what a ring that breaks the rules of virtio gives. The device is of no more use then.
var ErrRing = errors.New("the guest's virtqueue is corrupt")

// Queue is the device's side of a split virtqueue (virtio 1.2, section 2.7). Its methods are for whoever holds its
// lock, while it runs.
//
// The indexes of both rings are 16 bits next to 16 bits of flags; they are loaded and stored together, as 32 bits,
// which package sync/atomic can do, and which gives the order that virtio asks for: sync/atomic is sequentially
// consistent. Each side stores what it did and then loads what the other one asked for, or the other way round; if a
// store could be delayed beyond the load, a wake-up would be lost. Where that counts we swap instead: under the race
// detector, only a swap is a full barrier, and it costs no more.
type Queue struct {
	index int

	// Serve's, set up by messages.
	num       uint32
	base      uint16
	descAddr  uint64
	availAddr uint64
	usedAddr  uint64
	enabled   bool
	kick      *os.File       // nil: not started
	waiting   sync.WaitGroup // for the goroutine that waits for kicks

	mu        sync.Mutex
	running   bool // guarded by mu; only Serve changes it
	call      int  // guarded by mu; -1: none
	mem       *Memory
	eventIdx  bool
	desc      []desc
	avail     *uint32 // flags, index << 16
	availRing []uint16
	usedEvent *uint32 // its low half: notify us, the driver says, when used reaches this
	used      *uint32
	usedRing  []usedElem
	kickEvent *uint32 // its low half: kick me, we say, when avail passes this

	nextAvail uint16 // the next head to take
	nextUsed  uint16 // the next slot to fill
	published uint16 // nextUsed as the driver knows it
	signalled uint16 // nextUsed at the last decision about a notification
}

// Index is the number of the queue in its device.
func (q *Queue) Index() int { return q.index }

// start makes the ring usable. Like stop, setKick and setCall it is Serve's.
func (q *Queue) start(mem *Memory, features uint64) error {
	n := q.num
	switch {
	case mem == nil:
		return fmt.Errorf("queue %d was started before it was set up", q.index)
	case n < 2 || n > maxRing || n&(n-1) != 0:
		return fmt.Errorf("queue %d has %d entries, want a power of two up to %d", q.index, n, maxRing)
	}
	descs := mem.userSlice(q.descAddr, n*uint32(unsafe.Sizeof(desc{})))
	// Both rings end with an event index of 16 bits, which is accessed as 32; they lie in whole pages.
	avail := mem.userSlice(q.availAddr, 4+2*n+4)
	used := mem.userSlice(q.usedAddr, 4+8*n+4)
	if descs == nil || avail == nil || used == nil {
		return fmt.Errorf("queue %d is outside of the guest's memory", q.index)
	}
	// Where it lies here counts: an atomic access across cache lines is slow for the whole machine, or a fault.
	if !aligned(descs, 16) || !aligned(avail, 4) || !aligned(used, 4) {
		return fmt.Errorf("queue %d is not aligned", q.index)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.mem = mem
	q.eventIdx = features&FeatureEventIdx != 0
	q.desc = unsafe.Slice((*desc)(unsafe.Pointer(&descs[0])), n)
	q.avail = (*uint32)(unsafe.Pointer(&avail[0]))
	q.availRing = unsafe.Slice((*uint16)(unsafe.Pointer(&avail[4])), n)
	q.usedEvent = (*uint32)(unsafe.Pointer(&avail[4+2*n]))
	q.used = (*uint32)(unsafe.Pointer(&used[0]))
	q.usedRing = unsafe.Slice((*usedElem)(unsafe.Pointer(&used[4])), n)
	q.kickEvent = (*uint32)(unsafe.Pointer(&used[4+8*n]))
	q.nextAvail, q.nextUsed, q.published, q.signalled = q.base, q.base, q.base, q.base
	q.running = true
	return nil
}

func aligned(b []byte, to uintptr) bool { return uintptr(unsafe.Pointer(&b[0]))%to == 0 }

// stop ends the use of the ring, and its goroutine. A later start goes on where it stood.
func (q *Queue) stop() {
	if !q.running {
		return
	}
	q.mu.Lock()
	_ = Guard(q.Publish) // what is used already; if the memory is gone, nobody misses it
	q.base = q.nextAvail
	q.running = false
	q.mu.Unlock()
	_ = q.kick.SetReadDeadline(time.Unix(1, 0))
	q.waiting.Wait()
	_ = q.kick.SetReadDeadline(time.Time{})
}

// setKick replaces the descriptor of the kicks while the queue does not run.
func (q *Queue) setKick(f *os.File) {
	_ = q.kick.Close() // nil is fine
	q.kick = f
}

// setCall replaces the descriptor of the calls.
func (q *Queue) setCall(fd int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.call >= 0 {
		_ = unix.Close(q.call)
	}
	q.call = fd
}

// Lock locks the queue for its other methods and reports whether it runs. Unlock has to follow in either case.
func (q *Queue) Lock() bool {
	q.mu.Lock()
	return q.running
}

// Unlock is the counterpart of Lock.
func (q *Queue) Unlock() { q.mu.Unlock() }

// Available is the number of chains that the driver has offered and that were not taken yet.
func (q *Queue) Available() int {
	return int(uint16(atomic.LoadUint32(q.avail)>>16) - q.nextAvail)
}

// A Chain is one buffer of the driver's: parts for the device to read, then parts to write.
type Chain struct {
	head uint16
	// Read and Write are in the guest's memory, which the guest can change at any time.
	Read, Write [][]byte
}

func (c *Chain) reset() {
	c.Read, c.Write = c.Read[:0], c.Write[:0]
}

// Take takes the next chain, reusing c's slices. It reports false when there is none.
func (q *Queue) Take(c *Chain) (bool, error) {
	avail := q.Available()
	if avail == 0 {
		return false, nil
	}
	if avail > len(q.desc) {
		return false, fmt.Errorf("%w: %d chains in %d descriptors", ErrRing, avail, len(q.desc))
	}
	head := q.availRing[int(q.nextAvail)&(len(q.desc)-1)]
	c.reset()
	c.head = head
	if err := q.walk(c, q.desc, head, false); err != nil {
		return false, err
	}
	q.nextAvail++
	return true, nil
}

// walk collects the parts of a chain. Each descriptor is copied before it is looked at.
func (q *Queue) walk(c *Chain, table []desc, i uint16, indirect bool) error {
	for range len(table) {
		if int(i) >= len(table) {
			return fmt.Errorf("%w: descriptor %d of %d", ErrRing, i, len(table))
		}
		d := table[i]
		if d.flags&descIndirect != 0 {
			const size = uint32(unsafe.Sizeof(desc{}))
			mem := q.mem.slice(d.addr, d.length)
			// virtio 1.2, section 2.7.5.3.1: no nesting, no continuation, no more than the queue has.
			if indirect || mem == nil || d.flags&descNext != 0 ||
				d.length%size != 0 || d.length == 0 || d.length/size > uint32(len(q.desc)) {
				return fmt.Errorf("%w: indirect table of %d bytes at %#x", ErrRing, d.length, d.addr)
			}
			return q.walk(c, unsafe.Slice((*desc)(unsafe.Pointer(&mem[0])), d.length/size), 0, true)
		}
		if d.length > 0 {
			mem := q.mem.slice(d.addr, d.length)
			switch {
			case mem == nil:
				return fmt.Errorf("%w: %d bytes at %#x are not in the guest's memory", ErrRing, d.length, d.addr)
			case d.flags&descWrite != 0:
				c.Write = append(c.Write, mem)
			case len(c.Write) > 0:
				return fmt.Errorf("%w: a part to read behind one to write", ErrRing)
			default:
				c.Read = append(c.Read, mem)
			}
		}
		if d.flags&descNext == 0 {
			return nil
		}
		i = d.next
	}
	return fmt.Errorf("%w: a chain is a loop", ErrRing)
}

// Untake gives back the last n chains that were taken and not used.
func (q *Queue) Untake(n int) { q.nextAvail -= uint16(n) }

// Use gives a chain back to the driver with the number of bytes that were written to it. The driver sees it after
// Publish.
func (q *Queue) Use(c *Chain, written uint32) {
	q.usedRing[int(q.nextUsed)&(len(q.usedRing)-1)] = usedElem{uint32(c.head), written}
	q.nextUsed++
}

// Publish shows the driver what was used, and notifies it if it wants to be.
func (q *Queue) Publish() error {
	q.Show()
	return q.Notify()
}

// Show shows the driver what was used, without a notification.
func (q *Queue) Show() {
	if q.nextUsed == q.published {
		return
	}
	q.published = q.nextUsed
	flags := atomic.LoadUint32(q.used) & 0xffff // ours alone
	atomic.SwapUint32(q.used, uint32(q.nextUsed)<<16|flags)
}

// Notify notifies the driver of what was shown, if it wants to be and has not been.
func (q *Queue) Notify() error {
	old := q.signalled
	if q.published == old {
		return nil
	}
	q.signalled = q.published
	if q.eventIdx {
		event := uint16(atomic.LoadUint32(q.usedEvent))
		if q.published-event-1 >= q.published-old { // virtio 1.2, section 2.7.10 (vring_need_event)
			return nil
		}
	} else if atomic.LoadUint32(q.avail)&availNoInterrupt != 0 {
		return nil
	}
	return q.signal()
}

// one is what is written for a call. It is not signal's own, as it would be allocated each time.
var one = [8]byte{1}

// signal writes to the driver's socket. A full one is signal enough.
func (q *Queue) signal() error {
	if q.call < 0 {
		return nil // the driver polls
	}
	for {
		switch err := unix.Send(q.call, one[:], unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL); err {
		case nil, unix.EAGAIN:
			return nil
		case unix.EINTR:
		default:
			return fmt.Errorf("notify the guest: %w", os.NewSyscallError("write", err))
		}
	}
}

// AskForKick asks the driver for a kick when it offers more, and reports whether it has done so meanwhile: then no
// kick may come.
func (q *Queue) AskForKick() bool {
	if q.eventIdx {
		atomic.SwapUint32(q.kickEvent, uint32(q.nextAvail))
	} else {
		atomic.SwapUint32(q.used, uint32(q.published)<<16)
	}
	return q.Available() > 0
}

// RefuseKicks asks the driver not to kick. It is a hint: some may still come. With event indexes there is nothing to
// do, since the driver does not pass the index again for a long time.
func (q *Queue) RefuseKicks() {
	if !q.eventIdx {
		atomic.StoreUint32(q.used, uint32(q.published)<<16|usedNoNotify)
	}
}
