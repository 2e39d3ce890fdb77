package slirp

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
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
// flowing the other way for as long as it likes. A reset, or any error, on one side is a reset of the other, also
// while that one takes nothing: whoever waits for one side looks out for the end of the other as well. Keep-alives on
// both find ends that vanished in silence, also a guest that gave up a half-closed connection.
//
// There is no buffer in between: data goes from netstack's segments straight to the host's socket, and from the host's
// socket straight into the buffers that become netstack's segments. An idle connection holds none.
//
// A flow is over when the guest has acknowledged everything, and not before: what it leaves unread stays in netstack,
// which is for the table of flows to bound. A guest that takes nothing for a minute is reset.

// spliceBytes is how much is taken from the host's socket at once: some GSO segments. More would only be more in
// flight inside us.
const spliceBytes = 256 << 10

// tcpFlow is a TCP connection through the bridge.
type tcpFlow struct {
	flow
	host  *hostConn
	guest *guestConn

	toGuestEnded chan struct{} // closed after the FIN of the host's side
}

// stop implements entry: it makes both sides end with a reset. Splice then closes them.
func (f *tcpFlow) stop() {
	f.guest.abort()
	f.host.abort()
}

// discard resets both sides of a flow that is not spliced.
func (f *tcpFlow) discard() {
	f.guest.abort()
	f.guest.close()
	f.host.reset()
}

// splice moves data until both directions have ended.
func (n *Network) splice(f *tcpFlow) {
	f.toGuestEnded = make(chan struct{})
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
	close(f.toGuestEnded)
	other.Wait()
	err := errors.Join(toHost, toGuest)
	if err != nil {
		n.stats.resets.Add(1)
		f.host.reset()
	} else {
		f.host.close()
		f.guest.linger(n.limits.linger)
	}
	f.guest.close()
	n.log.Debug().Uint64("flow", f.id).Dur("dur", n.now().Sub(f.started)).AnErr("err", err).Msg("connection ended")
}

// copyToHost is the direction from the guest. It returns nil after the guest's FIN.
func (n *Network) copyToHost(f *tcpFlow) error {
	w := hostWriter{fd: f.host.fd}
	for {
		if err := f.waitReadable(); err != nil {
			return err
		}
		broken := f.host.isBroken()
		w.n, w.full, w.err = 0, false, nil
		err := f.guest.readTo(&w)
		n.stats.hostBytes[TCP].Add(uint64(w.n))
		f.hostBytes.Add(uint64(w.n))
		n.flows.touch(&f.flow, 0)
		switch {
		case w.err != nil:
			return w.err
		case errors.Is(err, io.EOF):
			return f.host.closeWrite()
		case err != nil:
			return err
		case w.full && broken:
			return f.host.failure()
		case w.full:
			// The guest's tokens for this goroutine come with its end, too.
			if err := f.waitHost(f.host.writable, f.guest.readable); err != nil {
				return err
			}
		}
	}
}

// waitReadable waits until there is something to read from the guest. As long as there may be data for the guest, the
// other direction sees to the host's end; then it fails here.
func (f *tcpFlow) waitReadable() error {
	ended, broken := f.toGuestEnded, (<-chan struct{})(nil)
	for !f.guest.ready(waiter.ReadableEvents) {
		select {
		case <-f.guest.readable:
		case <-ended:
			ended, broken = nil, f.host.broken
		case <-broken:
			return f.host.failure()
		}
	}
	return nil
}

// waitHost waits for something new on the host's side, of which news has the tokens: also that it is broken. It fails
// when the guest's side does, for which it takes that side's tokens of the caller.
func (f *tcpFlow) waitHost(news, guest <-chan struct{}) error {
	for {
		select {
		case <-news:
			return nil
		case <-f.host.broken:
			return nil
		case <-guest:
			if err := f.guest.failure(); err != nil {
				return err
			}
		}
	}
}

// hostWriter moves what the guest has sent into the host's socket.
type hostWriter struct {
	fd   int
	n    int // bytes moved
	full bool
	err  error
}

// Write implements io.Writer for netstack, which calls it for each segment and goes on until it fails.
func (w *hostWriter) Write(b []byte) (int, error) {
	for {
		n, errno := rawWrite(w.fd, b)
		w.n += n
		switch {
		case errno == unix.EINTR:
			continue
		case errno == 0 && n == len(b):
			return n, nil
		case errno == 0 || errno == unix.EAGAIN:
			w.full = true
			return n, io.ErrShortWrite
		}
		w.err = os.NewSyscallError("write", errno)
		return n, w.err
	}
}

// copyToGuest is the direction from the host. It returns nil after the peer's FIN.
func (n *Network) copyToGuest(f *tcpFlow) error {
	r := hostReader{fd: f.host.fd}
	for first := true; ; first = false {
		broken := f.host.isBroken() // before looking: what came earlier is there
		switch err := r.look(); {
		case err == nil:
		case errors.Is(err, unix.EAGAIN) && !broken:
			if first {
				n.link.Flush() // nothing that the end of the handshake could go along with
			}
			if err := f.waitHost(f.host.readable, f.guest.writable); err != nil {
				return err
			}
			continue
		case errors.Is(err, io.EOF) && !broken:
			return f.guest.closeWrite()
		case broken:
			return f.host.failure()
		default:
			return err
		}
		moved, full, err := f.guest.writeFrom(&r)
		n.stats.guestBytes[TCP].Add(uint64(moved))
		f.guestBytes.Add(uint64(moved))
		n.flows.touch(&f.flow, 0)
		if err != nil {
			return err
		}
		for full && !f.guest.ready(waiter.WritableEvents) {
			select {
			case <-f.guest.writable:
			case <-f.host.broken:
				return f.host.failure()
			}
		}
	}
}

// hostReader moves what has arrived on the host's socket to the guest. It implements tcpip.Payloader: netstack asks
// for the length, makes buffers for it, and reads into them.
type hostReader struct {
	fd   int
	left int   // bytes to move
	err  error // of reading from the socket
}

// look looks for something to move. It returns EAGAIN when there is nothing yet, and io.EOF after the peer's FIN.
// Netstack has to know the length first. What the socket has now is there to stay: nobody else reads it.
func (r *hostReader) look() error {
	for {
		queued, errno := rawQueued(r.fd)
		if errno != 0 {
			return os.NewSyscallError("ioctl", errno)
		}
		if queued > 0 {
			r.left = min(queued, spliceBytes)
			return nil
		}
		var b [1]byte
		switch n, errno := rawPeek(r.fd, b[:]); {
		case errno == unix.EAGAIN:
			return unix.EAGAIN
		case errno == unix.EINTR, n > 0: // it has come meanwhile
		case errno != 0:
			return os.NewSyscallError("recv", errno)
		default:
			return io.EOF
		}
	}
}

// Len implements tcpip.Payloader.
func (r *hostReader) Len() int { return r.left }

// Read implements tcpip.Payloader.
func (r *hostReader) Read(to []byte) (int, error) {
	if len(to) == 0 {
		return 0, nil
	}
	for {
		n, errno := rawRead(r.fd, to[:min(len(to), r.left)])
		switch {
		case errno == unix.EINTR:
			continue
		case errno != 0:
			r.err = os.NewSyscallError("read", errno)
			return 0, r.err
		case n == 0:
			r.err = io.ErrUnexpectedEOF // not EOF, which netstack would try again
			return 0, r.err
		}
		r.left -= n
		return n, nil
	}
}

// guestConn is netstack's side of a TCP flow. At most one goroutine may read and one write.
type guestConn struct {
	ep                 tcpip.Endpoint
	wq                 *waiter.Queue
	readable, writable chan struct{}
	readEntry          waiter.Entry
	writeEntry         waiter.Entry

	mu     sync.Mutex
	failed error // guarded by mu: what failure has learned
}

const (
	// maxBufferBytes is the size that each of a connection's two buffers with the guest may grow to.
	maxBufferBytes = 4 << 20
	// minBufferBytes holds a full segment.
	minBufferBytes = 64 << 10
	// bufferBudget is what a new connection's buffer is a share of. 8,192 connections of which nothing moves come to
	// 1 GiB in each direction: the first ones keep what they have (128 MiB x (1 + ln 64) + 6,144 x 64 KiB).
	bufferBudget = 128 << 20
)

// bufferSize is how large each buffer of a new connection may be when there are that many.
func bufferSize(flows int) int {
	return max(minBufferBytes, min(maxBufferBytes, bufferBudget/max(1, flows)))
}

// newGuestConn makes the guest's side of a flow, one of that many.
func newGuestConn(ep tcpip.Endpoint, wq *waiter.Queue, flows int) *guestConn {
	g := &guestConn{ep: ep, wq: wq}
	g.readEntry, g.readable = waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventHUp | waiter.EventErr)
	g.writeEntry, g.writable = waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	wq.EventRegister(&g.readEntry)
	wq.EventRegister(&g.writeEntry)
	ops := ep.SocketOptions()
	ops.SetDelayOption(false)
	if size := bufferSize(flows); size < maxBufferBytes { // a size that is set does not grow
		ops.SetReceiveBufferSize(int64(size), true)
		ops.SetSendBufferSize(int64(size), true)
	}
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

// ready says whether there is something to do for events, or the connection has ended.
func (g *guestConn) ready(events waiter.EventMask) bool {
	return g.ep.Readiness(events|waiter.EventHUp|waiter.EventErr) != 0
}

// failure is why the connection has failed, nil if it has not. Netstack tells it once.
func (g *guestConn) failure() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.failed == nil {
		if err := g.ep.LastError(); err != nil {
			g.failed = stackError{err}
		}
	}
	return g.failed
}

// linger returns when the guest has acknowledged all that was sent, after the FINs of both sides, or has taken nothing
// for as long as patience lasts.
func (g *guestConn) linger(patience time.Duration) {
	_ = g.ep.SetSockOpt(ptr(tcpip.TCPUserTimeoutOption(patience))) // this cannot fail on a TCP endpoint
	for {
		switch tcp.EndpointState(g.ep.State()) {
		case tcp.StateClose, tcp.StateError, tcp.StateTimeWait:
			return
		}
		select {
		case <-g.readable:
		case <-g.writable:
		}
	}
}

// readTo writes what the guest has sent to w, as far as w takes it. It returns io.EOF after the guest's FIN.
func (g *guestConn) readTo(w io.Writer) error {
	_, err := g.ep.Read(w, tcpip.ReadOptions{})
	switch err.(type) {
	case nil, *tcpip.ErrWouldBlock, *tcpip.ErrBadBuffer: // the last is w's error
		return nil
	case *tcpip.ErrClosedForReceive:
		if failed := g.failure(); failed != nil {
			return failed
		}
		return io.EOF
	}
	return stackError{err}
}

// writeFrom sends what r has, or the beginning of it. It says full where the guest has to take something first.
func (g *guestConn) writeFrom(r *hostReader) (n int, full bool, err error) {
	had := r.left
	written, terr := g.ep.Write(r, tcpip.WriteOptions{})
	n = int(written)
	switch terr.(type) {
	case nil:
		if n != had-r.left {
			return n, false, fmt.Errorf("netstack took %d bytes of %d", n, had-r.left)
		}
		return n, false, nil
	case *tcpip.ErrWouldBlock:
		return n, true, nil
	case *tcpip.ErrBadBuffer:
		return n, false, r.err
	}
	return n, false, stackError{terr}
}

// writeFirst sends a few bytes on a connection that nothing was sent on yet, so there is room.
func (g *guestConn) writeFirst(b []byte) error {
	n, err := g.ep.Write(bytes.NewReader(b), tcpip.WriteOptions{})
	if err != nil {
		return stackError{err}
	}
	if int(n) != len(b) {
		return io.ErrShortWrite
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
