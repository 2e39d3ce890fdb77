// Package vport is a stream of bytes between the host and one program of root's in the guest: the only port of a virtio
// console, over vhost-user. In the guest it is /dev/vport0p0.
//
// Source: virtio 1.2, section 5.3; Linux's driver, drivers/char/virtio_console.c.
package vport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"docker-usermode-linux/internal/vhostuser"
)

// Theory of operation
//
// The device has the feature MULTIPORT, not because of several ports, but because a port is then a character device for
// one program at a time, without a terminal's line discipline, whose opening and closing the driver reports. Its node
// belongs to root, with mode 0600, so that no other user of the guest comes near it.
//
// Each time that the guest opens the port there is a new Conn. Read and Write copy between the caller's buffer and the
// guest's memory; there is no goroutine and no buffer of ours in between. A reader that does not come makes the guest's
// writes wait, once the queue's 256 buffers of up to 32 KiB are full; a guest that does not read makes Write wait.
//
// The driver spins until each of its control messages is taken. It is taken when it has been acted upon: what the guest
// writes after open(2) has returned belongs to the new Conn for certain, and what lies in the queue before is what nobody
// has read from the one before, and is thrown away. Likewise nothing is written to the guest for the old Conn once
// close(2) has returned, so that the next program does not find it. What the guest wrote before it closed can be read
// until it opens the port again.
//
// When our end is closed, with a Conn's Close, the guest is told, so that a program which waits there finds the end of the
// file and can open the port anew. It is told that our end is open again when it has closed its own; a program which is
// quicker than that message reaches the driver finds the end of the file once more, and Accept shows a Conn that ends at
// once. As it is with one which opens the port while the driver still sets it up.
//
// Locks: mu before a queue's. Under neither anything waits, and the guest cannot make it last: a queue is worked on for a
// bounded number of chains. What accesses the guest's memory may panic (vhostuser.Guard), so it unlocks with defer; what
// Close calls does not access it.

// The queues, as the driver numbers them (virtio 1.2, section 5.3.2).
const (
	queueToGuest = iota
	queueFromGuest
	queueControlToGuest
	queueControlFromGuest
	numQueues
)

const (
	// featureMultiport is VIRTIO_CONSOLE_F_MULTIPORT.
	featureMultiport = 1 << 1
	// portID is the number of the only port.
	portID = 0
)

// Events of control messages (virtio 1.2, section 5.3.6.2).
const (
	eventDeviceReady = 0
	eventPortAdd     = 1
	eventPortReady   = 3
	eventPortOpen    = 6
	eventPortName    = 7
)

// controlBytes is the size of struct virtio_console_control: id, event, value.
const controlBytes = 8

// control is a message for the driver.
type control struct {
	event, value uint16
	text         string
}

func (c control) encode() []byte {
	b := binary.LittleEndian.AppendUint32(nil, portID)
	b = binary.LittleEndian.AppendUint16(b, c.event)
	b = binary.LittleEndian.AppendUint16(b, c.value)
	return append(b, c.text...)
}

// ErrDriver says that the guest's driver does not keep to the protocol.
var ErrDriver = errors.New("the guest's console driver broke the rules")

// Options of a Port.
type Options struct {
	// Path of the unix socket that the guest's kernel connects to. New makes it, Run or Close removes it.
	Path string
	// Name is what the guest finds in /sys/class/virtio-ports/vport0p0/name.
	Name string
	// OldDriver is that of vhostuser.Options.
	OldDriver bool
}

// Port is the device. Its methods can be called concurrently.
type Port struct {
	name     string
	listener *net.UnixListener
	device   *vhostuser.Device
	conns    chan *Conn
	done     chan struct{}

	mu      sync.Mutex
	pending []control // guarded by mu: for the guest, one of each event at most
	conn    *Conn     // guarded by mu: the last that the guest has opened, nil when it can no longer be read
	shut    bool      // guarded by mu: the guest was told that our end is closed
	closed  bool      // guarded by mu
}

// New makes a port and its socket. Nobody is served before Run.
func New(o Options) (*Port, error) {
	listener, err := vhostuser.Listen(o.Path)
	if err != nil {
		return nil, fmt.Errorf("guest port: %w", err)
	}
	p := &Port{name: o.Name, listener: listener, conns: make(chan *Conn, 1), done: make(chan struct{})}
	p.device = vhostuser.New(vhostuser.Options{
		Features:  featureMultiport | vhostuser.FeatureIndirect | vhostuser.FeatureEventIdx | vhostuser.FeatureVersion1,
		Config:    config(),
		Queues:    numQueues,
		OldDriver: o.OldDriver,
		Kicked:    p.kicked,
	})
	return p, nil
}

// config is struct virtio_console_config (virtio 1.2, section 5.3.4): size of a console, number of ports, emergency
// write.
func config() []byte {
	b := make([]byte, 12)
	binary.LittleEndian.PutUint32(b[4:], 1)
	return b
}

// Run waits for the guest's driver and serves it until Close, or until the guest's kernel is gone, which are no errors,
// or until it breaks the rules of virtio. It must be called at most once.
func (p *Port) Run() error {
	err := p.device.ServeOne(p.listener)
	p.Close()
	if errors.Is(err, net.ErrClosed) || vhostuser.IsGone(err) {
		return nil
	}
	return fmt.Errorf("guest port: %w", err)
}

// Close ends Run and the Conn that there may be.
func (p *Port) Close() {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return
	}
	p.closed = true
	p.endConn()
	close(p.done)
	p.mu.Unlock()
	_ = p.listener.Close()
	p.device.Close()
}

// Accept waits until the guest opens the port. When the port has ended it returns net.ErrClosed.
func (p *Port) Accept() (*Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

// kicked is called when the guest has put something into a queue.
func (p *Port) kicked(q *vhostuser.Queue) error {
	if q.Index() == queueControlFromGuest {
		return p.readControl(q)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if q.Index() == queueControlToGuest {
		return p.sendControl()
	}
	if c := p.conn; c != nil {
		c.wake(q.Index())
	}
	return nil
}

// readControl acts upon the driver's messages.
func (p *Port) readControl(q *vhostuser.Queue) error {
	var chain vhostuser.Chain
	for {
		message, idle, err := takeControl(q, &chain)
		if err != nil || idle {
			return err
		}
		if err := p.handle(message); err != nil {
			return err
		}
		if err := useControl(q, &chain); err != nil {
			return err
		}
	}
}

// takeControl takes the next message. It is idle when there is none, and the guest will kick.
func takeControl(q *vhostuser.Queue, chain *vhostuser.Chain) (message []byte, idle bool, err error) {
	running := q.Lock()
	defer q.Unlock()
	for running {
		ok, err := q.Take(chain)
		if err != nil {
			return nil, false, err
		}
		if ok {
			message = make([]byte, controlBytes)
			n, _ := gather(message, chain.Read, 0)
			return message[:n], false, nil
		}
		if !q.AskForKick() {
			break
		}
	}
	return nil, true, nil
}

// useControl gives the guest the buffer of a message back.
func useControl(q *vhostuser.Queue, chain *vhostuser.Chain) error {
	running := q.Lock()
	defer q.Unlock()
	if !running {
		return nil
	}
	q.Use(chain, 0)
	return q.Publish()
}

// handle acts upon one message of the driver's.
func (p *Port) handle(message []byte) error {
	if len(message) < controlBytes {
		return fmt.Errorf("%w: a control message of %d bytes", ErrDriver, len(message))
	}
	id := binary.LittleEndian.Uint32(message)
	event, value := binary.LittleEndian.Uint16(message[4:]), binary.LittleEndian.Uint16(message[6:])
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case event == eventDeviceReady && value == 1:
		p.endConn() // the driver was loaded again
		p.tell(control{eventPortAdd, 1, ""})
	case event == eventDeviceReady, event == eventPortReady && value != 1:
		return fmt.Errorf("%w: it could not set up the port", ErrDriver)
	case id != portID:
		return fmt.Errorf("%w: event %d of port %d", ErrDriver, event, id)
	case event == eventPortReady:
		p.tell(control{eventPortName, 1, p.name})
		p.openOurs() // always: the guest's writes need not wait
	case event == eventPortOpen:
		if err := p.guestOpened(value != 0); err != nil {
			return err
		}
	}
	return p.sendControl()
}

// guestOpened is called when a program in the guest has opened or closed the port.
//
// Preconditions: mu is held.
func (p *Port) guestOpened(open bool) error {
	if p.shut {
		p.openOurs()
	}
	if !open {
		if p.conn != nil {
			p.conn.guestLeft()
		}
		return nil
	}
	p.endConn()
	if p.closed {
		return nil
	}
	if err := p.discard(); err != nil {
		return err
	}
	p.conn = newConn(p)
	p.conns <- p.conn
	return nil
}

// endConn ends the Conn that there may be, which nobody has to accept any more.
//
// Preconditions: mu is held.
func (p *Port) endConn() {
	if p.conn == nil {
		return
	}
	p.conn.end(io.EOF)
	p.conn = nil
	select {
	case <-p.conns:
	default:
	}
}

// hostClosed tells the guest that a Conn was closed by us, if it has it open.
func (p *Port) hostClosed(c *Conn) {
	err := vhostuser.Guard(func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.conn != c || p.shut || isClosed(c.left) {
			return nil
		}
		p.shut = true
		p.tell(control{eventPortOpen, 0, ""})
		return p.sendControl()
	})
	if err != nil {
		p.device.Fail(err)
	}
}

// openOurs tells the guest that our end is open.
//
// Preconditions: mu is held.
func (p *Port) openOurs() {
	p.shut = false
	p.tell(control{eventPortOpen, 1, ""})
}

// discard throws away what the guest wrote and nobody read. What it puts there meanwhile, which Linux does not, stays.
func (p *Port) discard() error {
	q := p.device.Queue(queueFromGuest)
	running := q.Lock()
	defer q.Unlock()
	if !running {
		return nil
	}
	var chain vhostuser.Chain
	for range q.Available() {
		ok, err := q.Take(&chain)
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		q.Use(&chain, 0)
	}
	return q.Publish()
}

// tell queues a message for the driver, instead of one of the same event that still waits.
//
// Preconditions: mu is held.
func (p *Port) tell(c control) {
	for i := range p.pending {
		if p.pending[i].event == c.event {
			p.pending[i] = c
			return
		}
	}
	p.pending = append(p.pending, c)
}

// sendControl gives the driver what is queued for it, as far as it has buffers.
//
// Preconditions: mu is held.
func (p *Port) sendControl() error {
	q := p.device.Queue(queueControlToGuest)
	running := q.Lock()
	defer q.Unlock()
	if !running {
		return nil
	}
	var chain vhostuser.Chain
	for len(p.pending) > 0 {
		ok, err := q.Take(&chain)
		if err != nil {
			return err
		}
		if !ok {
			if q.AskForKick() {
				continue
			}
			break
		}
		q.Use(&chain, uint32(scatter(chain.Write, p.pending[0].encode())))
		p.pending = p.pending[1:]
	}
	return q.Publish()
}
