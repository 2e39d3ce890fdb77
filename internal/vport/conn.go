package vport

import (
	"io"
	"net"
	"os"
	"sync"
	"time"

	"docker-usermode-linux/internal/vhostuser"
)

// Conn is the port while one program in the guest has it open. One goroutine may read while another one writes; both may
// be interrupted by Close. It has no deadlines.
type Conn struct {
	port *Port
	// readable and writable hold a token when the guest may have done something since it was last looked.
	readable, writable chan struct{}

	left  chan struct{} // closed when the guest has closed the port
	leave sync.Once

	ended chan struct{} // closed when no byte goes either way any more
	once  sync.Once
	why   error // what Read returns then; set before ended

	reading, writing sync.Mutex

	in   vhostuser.Chain // guarded by the lock of the queue from the guest
	skip int             // guarded by that too: how much of the queue's next chain was read already
	out  vhostuser.Chain // guarded by the lock of the queue to the guest
}

var _ net.Conn = (*Conn)(nil)

// maxChains bounds how long a queue is locked, for a guest that offers empty buffers without an end.
const maxChains = 256

func newConn(p *Port) *Conn {
	return &Conn{
		port: p, readable: make(chan struct{}, 1), writable: make(chan struct{}, 1),
		left: make(chan struct{}), ended: make(chan struct{}),
	}
}

// wake tells whoever waits for a queue to look again.
func (c *Conn) wake(queue int) {
	token := c.readable
	if queue == queueToGuest {
		token = c.writable
	}
	select {
	case token <- struct{}{}:
	default:
	}
}

// guestLeft is what the guest's close does. When it returns, nothing more is written to the guest.
func (c *Conn) guestLeft() {
	c.leave.Do(func() { close(c.left) })
	c.wait(queueToGuest)
}

// end is what the guest's next open does, and the end of the port. When it returns, nothing more is read or written.
func (c *Conn) end(why error) {
	c.once.Do(func() {
		c.why = why
		close(c.ended)
	})
	c.wait(queueToGuest)
	c.wait(queueFromGuest)
}

// wait waits for whoever is at work with a queue, and has not seen a change that was made before.
func (c *Conn) wait(queue int) {
	q := c.port.device.Queue(queue)
	q.Lock()
	q.Unlock()
}

// Close makes Read and Write fail with net.ErrClosed. The guest reads what was written, and then the end of the file; it
// has the port open until it closes it itself.
func (c *Conn) Close() error {
	c.end(net.ErrClosed)
	c.port.hostClosed(c)
	return nil
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// Read returns io.EOF when the guest has closed the port and all that it wrote before was read, or when it has opened it
// again, or is gone.
func (c *Conn) Read(b []byte) (n int, err error) {
	if len(b) == 0 {
		return 0, nil
	}
	c.reading.Lock()
	defer c.reading.Unlock()
	for {
		if isClosed(c.ended) {
			return 0, c.why
		}
		last := isClosed(c.left)
		idle := false
		err := vhostuser.Guard(func() (err error) {
			n, idle, err = c.take(b)
			return err
		})
		switch {
		case err != nil:
			c.port.device.Fail(err)
			return 0, err
		case n > 0:
			return n, nil
		case !idle:
			continue
		case last:
			return 0, io.EOF
		}
		select {
		case <-c.readable:
		case <-c.left:
		case <-c.ended:
		}
	}
}

// take reads what there is. It is idle when there was nothing, and the guest will kick.
//
// A chain that is read in part stays in the queue, so that nothing has to be done about it when the queue stops, or the
// Conn ends.
func (c *Conn) take(b []byte) (n int, idle bool, err error) {
	q := c.port.device.Queue(queueFromGuest)
	running := q.Lock()
	defer q.Unlock()
	if !running || isClosed(c.ended) {
		return 0, true, nil
	}
	for i := 0; i < maxChains && n < len(b); i++ {
		ok, err := q.Take(&c.in)
		if err != nil {
			return n, false, err
		}
		if !ok {
			idle = n == 0 && !q.AskForKick()
			break
		}
		k, all := gather(b[n:], c.in.Read, c.skip)
		n += k
		if !all {
			c.skip += k
			q.Untake(1)
			break
		}
		c.skip = 0
		q.Use(&c.in, 0)
	}
	return n, idle, q.Publish()
}

// gather copies out of the guest's memory, from an offset on, and says whether that was all.
func gather(b []byte, parts [][]byte, skip int) (n int, all bool) {
	for _, part := range parts {
		if skip >= len(part) {
			skip -= len(part)
			continue
		}
		part, skip = part[skip:], 0
		k := copy(b[n:], part)
		n += k
		if k < len(part) {
			return n, false
		}
	}
	return n, true
}

// Write returns when the guest's driver has all of b, or with net.ErrClosed.
func (c *Conn) Write(b []byte) (n int, err error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	for n < len(b) {
		if isClosed(c.ended) || isClosed(c.left) {
			return n, net.ErrClosed
		}
		idle := false
		err := vhostuser.Guard(func() (err error) {
			var k int
			k, idle, err = c.give(b[n:])
			n += k
			return err
		})
		if err != nil {
			c.port.device.Fail(err)
			return n, err
		}
		if !idle {
			continue
		}
		select {
		case <-c.writable:
		case <-c.left:
		case <-c.ended:
		}
	}
	return n, nil
}

// give writes as much as the guest has buffers for. It is idle when there were none, and the guest will kick.
func (c *Conn) give(b []byte) (n int, idle bool, err error) {
	q := c.port.device.Queue(queueToGuest)
	running := q.Lock()
	defer q.Unlock()
	if !running || isClosed(c.ended) || isClosed(c.left) {
		return 0, true, nil
	}
	for i := 0; i < maxChains && n < len(b); i++ {
		ok, err := q.Take(&c.out)
		if err != nil {
			return n, false, err
		}
		if !ok {
			idle = n == 0 && !q.AskForKick()
			break
		}
		k := scatter(c.out.Write, b[n:])
		q.Use(&c.out, uint32(k))
		n += k
	}
	return n, idle, q.Publish()
}

// scatter copies b into parts of the guest's memory and returns how much of it went in.
func scatter(parts [][]byte, b []byte) int {
	n := 0
	for _, part := range parts {
		n += copy(part, b[n:])
	}
	return n
}

type addr struct{}

func (addr) Network() string { return "vport" }
func (addr) String() string  { return "vport0p0" }

// LocalAddr implements net.Conn.
func (*Conn) LocalAddr() net.Addr { return addr{} }

// RemoteAddr implements net.Conn.
func (*Conn) RemoteAddr() net.Addr { return addr{} }

// SetDeadline implements net.Conn, to say that there are none.
func (*Conn) SetDeadline(time.Time) error { return os.ErrNoDeadline }

// SetReadDeadline implements net.Conn.
func (*Conn) SetReadDeadline(time.Time) error { return os.ErrNoDeadline }

// SetWriteDeadline implements net.Conn.
func (*Conn) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }
