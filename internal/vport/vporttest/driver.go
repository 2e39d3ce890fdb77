// Package vporttest plays the guest's kernel for package vport in tests: a virtio console with a driver as Linux's, and
// its only port as programs see it.
package vporttest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"docker-usermode-linux/internal/vhostuser"
	"docker-usermode-linux/internal/vhostuser/vhostusertest"
)

// Theory of operation
//
// Driver does what drivers/char/virtio_console.c does, wherever the device or a program could tell. Rings have 256
// entries. Input goes into buffers of a page, all of which the device has, but for the one that is being read. Output is
// copied into buffers of up to 32 KiB, one per write(2). Control messages to the device are spun for. The port can be
// opened before the device has said that its own end is open; until then, and when the device has closed it, a read
// finds the end of the file and a write waits. What comes while no program has the port open is thrown away, as is what
// a program leaves behind.
//
// An interrupt is a call of a ring's; there is a goroutine for each ring that has some. As in Linux, each buffer that is
// taken asks for a call for the next one.
//
// Of the kernel's locks outvq_lock, inbuf_lock and ports_lock are one here, mu; c_ovq_lock is controlMu. Neither is taken
// with the other one held, but by Close.

// The queues (virtio 1.2, section 5.3.2).
const (
	queueIn = iota
	queueOut
	queueControlIn
	queueControlOut
	numQueues
)

const (
	pageBytes    = 4096
	writeBytes   = 32 << 10 // port_fops_write
	controlBytes = 8

	// Offsets in the memory, behind the rings.
	inBuffers        = numQueues * vhostusertest.RingBytes
	controlInBuffers = inBuffers + vhostusertest.Entries*pageBytes
	controlOutBuffer = controlInBuffers + vhostusertest.Entries*pageBytes
	outBuffers       = controlOutBuffer + pageBytes
	memBytes         = outBuffers + vhostusertest.Entries*writeBytes
)

const (
	featureMultiport = 1 << 1
	features         = featureMultiport | vhostuser.FeatureIndirect | vhostuser.FeatureEventIdx
)

// Events of control messages (include/uapi/linux/virtio_console.h).
const (
	deviceReady = 0
	portAdd     = 1
	portReady   = 3
	portOpen    = 6
	portName    = 7

	badID = 1<<32 - 1
)

// The kernel spins without an end for its control messages. So do we for the time that a device needs which runs on
// another processor, some 50 us, and then let it run on ours. Not with runtime.Gosched: while there is a goroutine to run,
// Go looks for kicks only now and then.
const (
	spins = 20000
	pause = 20 * time.Microsecond
)

// queue is a ring that knows which of its buffers the device has.
type queue struct {
	*vhostusertest.Ring
	name string
	lent [vhostusertest.Entries]bool
}

// add gives the device a buffer, without a kick (virtqueue_add).
func (q *queue) add(id uint16, at, length int, flags uint16) {
	q.SetDesc(id, vhostusertest.Base+uint64(at), uint32(length), flags, 0)
	q.lent[id] = true
	q.Offer(id)
}

// get takes a buffer back, and asks for a call for the next one (virtqueue_get_buf).
func (q *queue) get() (id uint16, length int, ok bool) {
	id, n, ok := q.Used()
	if !ok {
		return 0, 0, false
	}
	if int(id) >= len(q.lent) || !q.lent[id] {
		panic(fmt.Sprintf("the device gave back buffer %d of the %s queue, which it did not have", id, q.name))
	}
	q.lent[id] = false
	q.AskForCall(0)
	return id, int(n), true
}

// Driver is the console of the fake guest.
type Driver struct {
	device  *vhostusertest.FrontEnd
	running sync.WaitGroup
	once    sync.Once
	gone    atomic.Bool // the device, or we

	controlIn queue // controlWork's

	controlMu  sync.Mutex
	controlOut queue // guarded by controlMu

	mu       sync.Mutex
	changed  sync.Cond // guarded by mu: for anything below, or gone
	in       queue     // guarded by mu
	inBuffer []byte    // guarded by mu: what a program has not read of buffer inID
	inID     uint16    // guarded by mu
	inTaken  bool      // guarded by mu: there is a buffer inID
	out      queue     // guarded by mu
	free     []uint16  // guarded by mu: buffers of the output queue
	added    bool      // guarded by mu: the port exists
	name     string    // guarded by mu
	named    bool      // guarded by mu
	hostOpen bool      // guarded by mu: host_connected
	program  *file     // guarded by mu: who has the port open
}

// Connect makes a console, connects it to the device's socket, and returns when the port has a name and the device's end
// of it is open.
func Connect(path string) (*Driver, error) {
	device, err := vhostusertest.Connect(path, features, numQueues, memBytes)
	if err != nil {
		return nil, fmt.Errorf("connect the fake guest's console: %w", err)
	}
	d := &Driver{device: device}
	d.changed.L = &d.mu
	for i, q := range []*queue{&d.in, &d.out, &d.controlIn, &d.controlOut} {
		q.Ring, q.name = device.Rings[i], []string{"input", "output", "control-i", "control-o"}[i]
	}
	for i := range uint16(vhostusertest.Entries) {
		d.free = append(d.free, i)
	}
	if err := d.probe(); err != nil {
		d.Close()
		return nil, fmt.Errorf("connect the fake guest's console: %w", err)
	}
	return d, nil
}

// probe is virtcons_probe, and what follows from it.
func (d *Driver) probe() error {
	if d.device.Features&featureMultiport == 0 {
		return errors.New("the device has no control queues")
	}
	config, err := d.device.Config(8) // with max_nr_ports
	if err != nil {
		return err
	}
	if n := binary.LittleEndian.Uint32(config[4:]); n != 1 {
		return fmt.Errorf("the device has %d ports, want 1", n)
	}
	if err := d.device.Start(); err != nil {
		return err
	}
	d.running.Go(d.watch)
	d.running.Go(d.controlWork)
	d.running.Go(d.inCalls)
	d.running.Go(d.outCalls)
	d.send(badID, deviceReady, 1)
	d.mu.Lock()
	defer d.mu.Unlock()
	for !d.added || !d.named || !d.hostOpen {
		if d.gone.Load() {
			return io.ErrUnexpectedEOF
		}
		d.changed.Wait()
	}
	return nil
}

// watch waits for the end of the device.
func (d *Driver) watch() {
	_, _ = io.Copy(io.Discard, d.device.Conn)
	d.end()
}

func (d *Driver) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.gone.Store(true)
	d.changed.Broadcast()
}

// Close ends the driver: for its host it looks as if the kernel were gone. For the program in the guest, too.
func (d *Driver) Close() {
	d.once.Do(func() {
		d.end()
		d.device.HangUp()
		d.running.Wait()
		d.controlMu.Lock()
		defer d.controlMu.Unlock()
		d.mu.Lock()
		defer d.mu.Unlock()
		d.device.Free()
	})
}

// Name is what a program finds in /sys/class/virtio-ports/vport0p0/name.
func (d *Driver) Name() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.name
}

// send sends a control message and spins until the device has taken it (__send_control_msg).
func (d *Driver) send(id uint32, event, value uint16) {
	d.controlMu.Lock()
	defer d.controlMu.Unlock()
	if d.gone.Load() {
		return
	}
	message := d.device.Mem[controlOutBuffer:][:controlBytes]
	binary.LittleEndian.PutUint32(message, id)
	binary.LittleEndian.PutUint16(message[4:], event)
	binary.LittleEndian.PutUint16(message[6:], value)
	d.controlOut.add(0, controlOutBuffer, controlBytes, 0)
	d.controlOut.Publish()
	for i := 0; !d.gone.Load(); i++ {
		if _, _, ok := d.controlOut.get(); ok {
			return
		}
		if i > spins {
			time.Sleep(pause)
		}
	}
}

// controlWork acts upon the device's messages (control_work_handler).
func (d *Driver) controlWork() {
	for i := range vhostusertest.Entries {
		d.controlIn.add(uint16(i), controlInBuffers+i*pageBytes, pageBytes, vhostusertest.Write)
	}
	d.controlIn.Publish()
	for {
		for {
			id, length, ok := d.controlIn.get()
			if !ok {
				break
			}
			at := controlInBuffers + int(id)*pageBytes
			d.handle(d.device.Mem[at : at+min(length, pageBytes)])
			d.controlIn.add(id, at, pageBytes, vhostusertest.Write)
			d.controlIn.Publish()
		}
		if d.controlIn.WaitForCall() != nil {
			return
		}
	}
}

// handle is handle_control_message.
func (d *Driver) handle(message []byte) {
	if len(message) < controlBytes {
		panic(fmt.Sprintf("the device sent a control message of %d bytes", len(message)))
	}
	id := binary.LittleEndian.Uint32(message)
	event, value := binary.LittleEndian.Uint16(message[4:]), binary.LittleEndian.Uint16(message[6:])
	d.mu.Lock()
	defer d.mu.Unlock()
	if id != 0 || !d.added && event != portAdd {
		panic(fmt.Sprintf("the device sent event %d about port %d, which there is not", event, id))
	}
	switch event {
	case portAdd:
		if !d.added {
			d.added = true
			for i := range vhostusertest.Entries {
				d.in.add(uint16(i), inBuffers+i*pageBytes, pageBytes, vhostusertest.Write)
			}
			d.in.Publish()
		}
		d.mu.Unlock()
		d.send(0, portReady, 1)
		d.mu.Lock()
	case portOpen:
		d.hostOpen = value != 0
		d.reclaim()
	case portName:
		if !d.named {
			d.name, d.named = string(message[controlBytes:]), true
		}
	default:
		panic(fmt.Sprintf("the device sent event %d", event))
	}
	d.changed.Broadcast()
}

// inCalls is in_intr.
func (d *Driver) inCalls() {
	for d.in.WaitForCall() == nil {
		d.mu.Lock()
		d.takeInput()
		if d.program == nil {
			d.discard()
		}
		d.changed.Broadcast()
		d.mu.Unlock()
	}
}

// outCalls is out_intr.
func (d *Driver) outCalls() {
	for d.out.WaitForCall() == nil {
		d.mu.Lock()
		d.changed.Broadcast()
		d.mu.Unlock()
	}
}

// takeInput reports whether there is a buffer to read (get_inbuf).
//
// Preconditions: mu is held.
func (d *Driver) takeInput() bool {
	if d.inTaken {
		return true
	}
	id, length, ok := d.in.get()
	if ok {
		at := inBuffers + int(id)*pageBytes
		d.inTaken, d.inID, d.inBuffer = true, id, d.device.Mem[at:at+min(length, pageBytes)]
	}
	return ok
}

// giveInput gives the buffer that was read back to the device (add_inbuf).
//
// Preconditions: mu is held.
func (d *Driver) giveInput() {
	d.inTaken, d.inBuffer = false, nil
	d.in.add(d.inID, inBuffers+int(d.inID)*pageBytes, pageBytes, vhostusertest.Write)
	d.in.Publish()
}

// discard throws input away (discard_port_data).
//
// Preconditions: mu is held.
func (d *Driver) discard() {
	for d.takeInput() {
		d.giveInput()
	}
}

// reclaim takes back the buffers of output that the device has read (reclaim_consumed_buffers).
//
// Preconditions: mu is held.
func (d *Driver) reclaim() {
	for {
		id, _, ok := d.out.get()
		if !ok {
			return
		}
		d.free = append(d.free, id)
	}
}
