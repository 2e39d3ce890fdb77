package vhostusertest

import (
	"encoding/binary"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// Entries of a ring, as Linux's driver wants them.
	Entries = 256
	// RingBytes is the room for a ring: descriptors, what is available, what is used.
	RingBytes = 16 << 10

	availStart = 16 * Entries
	usedStart  = 8 << 10
)

// Flags of a descriptor.
const (
	Next     = 1 // the chain goes on
	Write    = 2 // for the device to write
	Indirect = 4 // points to a table of descriptors
)

// Ring is the driver's side of a split virtqueue. Its methods are for one goroutine at a time, but for Kick and
// WaitForCall.
type Ring struct {
	mem      []byte
	eventIdx bool
	kick     int      // ours
	calls    *os.File // the end that we read
	avail    uint16
	shown    uint16 // avail as the device knows it
	used     uint16
}

func (r *Ring) word(off int) *uint32 { return (*uint32)(unsafe.Pointer(&r.mem[off])) }

// SetDesc describes a part of the guest's memory. The chain goes on with the descriptor next, if flags say so.
func (r *Ring) SetDesc(i uint16, addr uint64, length uint32, flags, next uint16) {
	d := r.mem[16*int(i):]
	binary.LittleEndian.PutUint64(d, addr)
	binary.LittleEndian.PutUint32(d[8:], length)
	binary.LittleEndian.PutUint16(d[12:], flags)
	binary.LittleEndian.PutUint16(d[14:], next)
}

// Offer makes a chain available to the device, after Show or Publish.
func (r *Ring) Offer(head uint16) {
	binary.LittleEndian.PutUint16(r.mem[availStart+4+2*int(r.avail%Entries):], head)
	r.avail++
}

// Show shows the device what was offered, without a kick.
func (r *Ring) Show() {
	atomic.SwapUint32(r.word(availStart), uint32(r.avail)<<16) // not Store: see vhostuser.Queue
	r.shown = r.avail
}

// Publish shows the device what was offered, and kicks it if it wants to be.
func (r *Ring) Publish() {
	old := r.shown
	r.Show()
	event := uint16(atomic.LoadUint32(r.word(usedStart + 4 + 8*Entries)))
	wanted := r.avail-event-1 < r.avail-old
	if !r.eventIdx {
		wanted = atomic.LoadUint32(r.word(usedStart))&1 == 0
	}
	if wanted {
		r.Kick()
	}
}

// Kick kicks the device.
func (r *Ring) Kick() {
	one := [8]byte{1}
	_, _ = unix.Write(r.kick, one[:])
}

// Used returns the next used chain, and how much of it was written.
func (r *Ring) Used() (head uint16, length uint32, ok bool) {
	if uint16(atomic.LoadUint32(r.word(usedStart))>>16) == r.used {
		return 0, 0, false
	}
	e := r.mem[usedStart+4+8*int(r.used%Entries):]
	r.used++
	return uint16(binary.LittleEndian.Uint32(e)), binary.LittleEndian.Uint32(e[4:]), true
}

// AskForCall asks the device for a call when it has used more than that many chains more.
func (r *Ring) AskForCall(more uint16) {
	atomic.SwapUint32(r.word(availStart+4+2*Entries), uint32(r.used+more))
}

// UsedOrCall is Used, but false only after it has asked for a call, when more than that were used, and there still was
// none.
func (r *Ring) UsedOrCall(more uint16) (head uint16, length uint32, ok bool) {
	if head, length, ok = r.Used(); ok {
		return head, length, ok
	}
	r.AskForCall(more)
	return r.Used()
}

// WaitForCall waits for calls, and takes all that there are. It fails when the front end has hung up.
func (r *Ring) WaitForCall() error {
	var calls [512]byte
	_, err := r.calls.Read(calls[:])
	return err
}
