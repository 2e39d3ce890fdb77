package slirp

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"
)

// Theory of operation
//
// A TCP flow is two connections: one of netstack with the guest, one of the host's kernel with the peer. Each
// direction has a goroutine that reads from the one and writes to the other. It reads no more than it can write, so a
// slow reader fills first the buffers of its own connection, then those of the other, whose window closes:
// back-pressure from end to end.
//
// End of data passes through alone: after a FIN of one side the other's sending direction is shut, and data goes on
// flowing the other way for as long as it likes. A reset, or any error, on one side is a reset of the other.
// Keep-alives on both find ends that vanished in silence, also a guest that gave up a half-closed connection.
//
// Buffers come from a pool and are held only while there is data to move: an idle connection holds none.

// spliceBytes is the size of a buffer: a full GSO segment. Larger ones do not fit a CPU's cache.
const spliceBytes = 64 << 10

var splicePool = sync.Pool{New: func() any { return new([spliceBytes]byte) }}

// The keep-alive of both sides: a dead peer is noticed 5 minutes later.
const (
	keepAliveIdle     = 3 * time.Minute
	keepAliveInterval = 15 * time.Second
	keepAliveCount    = 8
)

var keepAlive = net.KeepAliveConfig{
	Enable: true, Idle: keepAliveIdle, Interval: keepAliveInterval, Count: keepAliveCount,
}

// tcpFlow is a TCP connection through the bridge.
type tcpFlow struct {
	flow
	host  *net.TCPConn
	guest *guestConn
}

// stop implements entry: it resets both sides.
func (f *tcpFlow) stop() {
	reset(f.host)
	f.guest.abort()
}

// splice moves data until both directions have ended.
func (n *Network) splice(f *tcpFlow) {
	var toHost error
	var other sync.WaitGroup
	other.Go(func() {
		if toHost = n.copyToHost(f); toHost != nil {
			f.stop()
		}
	})
	toGuest := n.copyToGuest(f)
	if toGuest != nil {
		f.stop()
	}
	other.Wait()
	err := errors.Join(toHost, toGuest)
	if err != nil {
		n.stats.resets.Add(1)
	}
	_ = f.host.Close()
	f.guest.close()
	n.log.Debug().Uint64("flow", f.id).Dur("dur", n.now().Sub(f.started)).AnErr("err", err).Msg("connection ended")
}

// copyToHost is the direction from the guest. It returns nil after the guest's FIN.
func (n *Network) copyToHost(f *tcpFlow) error {
	for {
		if err := f.guest.waitReadable(); err != nil {
			return err
		}
		buf := splicePool.Get().(*[spliceBytes]byte)
		got, err := f.guest.read(buf[:])
		if got > 0 {
			if _, werr := f.host.Write(buf[:got]); werr != nil {
				err = werr
			}
			n.stats.hostBytes[TCP].Add(uint64(got))
		}
		splicePool.Put(buf)
		if errors.Is(err, io.EOF) {
			return ignoreNotConnected(f.host.CloseWrite())
		}
		if err != nil {
			return err
		}
	}
}

// copyToGuest is the direction from the host. It returns nil after the peer's FIN.
func (n *Network) copyToGuest(f *tcpFlow) error {
	conn, err := f.host.SyscallConn()
	if err != nil {
		return err
	}
	r := hostReader{}
	read := r.read
	for {
		if err := conn.Read(read); err != nil {
			return err
		}
		if r.n > 0 {
			err = f.guest.write(r.buf[:r.n])
			n.stats.guestBytes[TCP].Add(uint64(r.n))
			splicePool.Put(r.buf)
			r.buf = nil
			if err != nil {
				return err
			}
		}
		switch {
		case r.err != nil:
			return r.err
		case r.n == 0:
			return f.guest.closeWrite()
		}
	}
}

// hostReader reads from a socket into a buffer that it takes only when there is something to read.
type hostReader struct {
	buf *[spliceBytes]byte
	n   int
	err error
}

func (r *hostReader) read(fd uintptr) bool {
	r.buf = splicePool.Get().(*[spliceBytes]byte)
	for {
		r.n, r.err = unix.Read(int(fd), r.buf[:])
		if r.err != unix.EINTR {
			break
		}
	}
	r.n = max(r.n, 0)
	if r.n == 0 {
		splicePool.Put(r.buf)
		r.buf = nil
	}
	return r.err != unix.EAGAIN
}

// reset closes a connection of the host with a RST.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}

// ignoreNotConnected drops the error of shutting a connection that the peer has closed altogether in the meantime.
func ignoreNotConnected(err error) error {
	if errors.Is(err, unix.ENOTCONN) {
		return nil
	}
	return err
}

// guestConn is netstack's side of a TCP flow. At most one goroutine may read and one write.
type guestConn struct {
	ep                 tcpip.Endpoint
	wq                 *waiter.Queue
	readable, writable chan struct{}
	readEntry          waiter.Entry
	writeEntry         waiter.Entry
	payload            payload
}

func newGuestConn(ep tcpip.Endpoint, wq *waiter.Queue) *guestConn {
	g := &guestConn{ep: ep, wq: wq}
	g.readEntry, g.readable = waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventHUp | waiter.EventErr)
	g.writeEntry, g.writable = waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	wq.EventRegister(&g.readEntry)
	wq.EventRegister(&g.writeEntry)
	ops := ep.SocketOptions()
	ops.SetDelayOption(false)
	ops.SetKeepAlive(true)
	for _, o := range []tcpip.SettableSocketOption{
		ptr(tcpip.KeepaliveIdleOption(keepAliveIdle)),
		ptr(tcpip.KeepaliveIntervalOption(keepAliveInterval)),
	} {
		_ = ep.SetSockOpt(o) // these cannot fail on a TCP endpoint
	}
	_ = ep.SetSockOptInt(tcpip.KeepaliveCountOption, keepAliveCount)
	return g
}

// waitReadable returns when read will not wait.
func (g *guestConn) waitReadable() error {
	for g.ep.Readiness(waiter.ReadableEvents|waiter.EventHUp|waiter.EventErr) == 0 {
		<-g.readable
	}
	return nil
}

// read returns io.EOF after the guest's FIN and 0, nil when there is nothing to read.
func (g *guestConn) read(b []byte) (int, error) {
	w := tcpip.SliceWriter(b)
	res, err := g.ep.Read(&w, tcpip.ReadOptions{})
	switch err.(type) {
	case nil:
		return res.Count, nil
	case *tcpip.ErrWouldBlock:
		return 0, nil
	case *tcpip.ErrClosedForReceive:
		return 0, io.EOF
	}
	return 0, stackError{err}
}

// write writes all of b, waiting for the guest as often as needed.
func (g *guestConn) write(b []byte) error {
	for len(b) > 0 {
		g.payload.b = b
		n, err := g.ep.Write(&g.payload, tcpip.WriteOptions{})
		b = b[n:] // netstack may have read more than it took
		switch err.(type) {
		case nil:
		case *tcpip.ErrWouldBlock:
			<-g.writable
		default:
			return stackError{err}
		}
	}
	return nil
}

// closeWrite sends a FIN after what was written.
func (g *guestConn) closeWrite() error {
	switch err := g.ep.Shutdown(tcpip.ShutdownWrite); err.(type) {
	case nil, *tcpip.ErrNotConnected:
		return nil
	default:
		return stackError{err}
	}
}

// abort resets the connection.
func (g *guestConn) abort() { g.ep.Abort() }

// close gives the connection back to netstack, which sends what is left and sees to its end.
func (g *guestConn) close() {
	g.wq.EventUnregister(&g.readEntry)
	g.wq.EventUnregister(&g.writeEntry)
	g.ep.Close()
}

// payload implements tcpip.Payloader.
type payload struct{ b []byte }

func (p *payload) Len() int { return len(p.b) }

func (p *payload) Read(to []byte) (int, error) {
	if len(p.b) == 0 {
		return 0, io.EOF
	}
	n := copy(to, p.b)
	p.b = p.b[n:]
	return n, nil
}
