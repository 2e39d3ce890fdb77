// Package vhostuser is the device's end (the back end) of vhost-user: a virtio device in another process than its
// driver, with the driver's memory shared. UML has the other end built in (arch/um/drivers/virtio_uml.c).
//
// Sources: QEMU, docs/interop/vhost-user.rst; virtio 1.2, sections 2.6 and 2.7.
package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"sync"

	"golang.org/x/sys/unix"
)

// Theory of operation
//
// The driver connects to a unix socket, agrees on features, hands over descriptors of its memory and the addresses of
// its rings in it, and two descriptors per ring: kick, an eventfd by which it says that it has put something into the
// ring, and call, a socket by which we say that we have.
//
// A Device serves one connection. Serve handles the messages, and for each queue that runs there is a goroutine that
// waits for kicks and calls the handler. All else, reading and filling the rings, is the user's, in whatever goroutine
// it likes, under the queue's lock.
//
// A queue runs while it is started, from SetVringKick to GetVringBase, and enabled: by SetVringEnable, which may come
// before or after the kick, or always where the driver has not accepted FeatureProtocol. Whenever it stops, Serve waits
// for its goroutine, so there is never more than one; handlers must not wait for Serve.
//
// Kicks. The descriptor is watched with an edge-triggered epoll (that of Go's poller), which reports each write to an
// eventfd anew, read or not. So it is never read: that saves two system calls for each time that we sleep, and a front
// end that makes the descriptor, which is its own too, blocking again cannot make us hang in a read.
//
// Trust. The driver is the guest's kernel, and a guest's root owns that. Everything in its memory may be wrong, and
// change while it is looked at. A descriptor that leaves the memory, a chain without an end, a message out of order:
// each ends the connection with an error, and nothing else. A front end that truncates the file of its memory makes
// our access fault; Guard turns that into an error. And a descriptor that we share with it may become blocking at any
// time: kicks are never read (see above), and a call is a socket, as UML has it, to which we write with MSG_DONTWAIT, so that
// one which is full keeps no lock from Close. An eventfd, as QEMU has it, has no such flag, and is refused.
//
// Order of the end: stop each queue, under its lock, and its goroutine; close the descriptors; unmap.

// Options of a Device.
type Options struct {
	// Features are those of the virtio device that it offers, with the ring's. FeatureProtocol is added.
	Features uint64
	// Config is the configuration space of the device, at most 256 bytes.
	Config []byte
	// Queues is the number of queues.
	Queues int
	// OldDriver has requests by the back end offered, although there are none: a driver of UML before Linux 6.5 has an
	// interrupt only if they were agreed on. It costs the driver a read(2) for each interrupt.
	OldDriver bool
	// Started is called when the driver starts a queue, before that runs.
	Started func(q *Queue)
	// Kicked is called for each kick of a running queue, and once when it starts, by one goroutine at a time for one
	// queue, with the queue not locked. An error ends the connection.
	Kicked func(q *Queue) error
}

// Device is the back end of one virtio device.
type Device struct {
	o      Options
	queues []*Queue
	mem    *Memory // Serve's
	// requests is Serve's: the socket for requests of ours, of which there are none, or -1. Its other end is to see no end.
	requests int
	failed   chan error // why it is to end

	mu       sync.Mutex
	conn     *net.UnixConn // guarded by mu
	features uint64        // guarded by mu: what the driver has accepted
	closed   bool          // guarded by mu
}

// New makes a device.
func New(o Options) *Device {
	o.Features |= FeatureProtocol
	d := &Device{o: o, requests: -1, failed: make(chan error, 1)}
	for i := range o.Queues {
		d.queues = append(d.queues, &Queue{index: i, call: -1})
	}
	return d
}

// Queue returns a queue by its index.
func (d *Device) Queue(i int) *Queue { return d.queues[i] }

// Features are those that the driver has accepted.
func (d *Device) Features() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.features
}

// Serve handles the driver's messages until it closes the connection (io.EOF), until Close (net.ErrClosed) or until
// it breaks the rules. It takes ownership of conn, and can be called once. When it returns, no queue is in use.
func (d *Device) Serve(conn *net.UnixConn) error {
	d.mu.Lock()
	if d.closed || d.conn != nil {
		d.mu.Unlock()
		return errors.Join(net.ErrClosed, conn.Close())
	}
	d.conn = conn
	d.mu.Unlock()
	err := d.serve(conn)
	_ = conn.Close()
	d.end()
	select {
	case failed := <-d.failed:
		return failed // why the connection was closed
	default:
		return err
	}
}

// ServeOne waits for the driver on l, closes l, which removes its socket, and serves the driver as Serve does: there is one
// guest, for once.
func (d *Device) ServeOne(l *net.UnixListener) error {
	conn, err := l.AcceptUnix()
	_ = l.Close()
	if err != nil {
		return err
	}
	return d.Serve(conn)
}

func (d *Device) serve(conn *net.UnixConn) error {
	for {
		m, err := Receive(conn)
		if err != nil {
			return err
		}
		reply, err := d.handle(&m)
		m.closeFDs()
		if err != nil {
			return fmt.Errorf("vhost-user message %d: %w", m.Request, err)
		}
		if reply == nil {
			continue
		}
		if err := Send(conn, Message{Request: m.Request, Reply: true, Payload: reply}); err != nil {
			return err
		}
	}
}

// Close ends Serve.
func (d *Device) Close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	if d.conn != nil {
		_ = d.conn.Close()
	}
}

// Fail ends Serve with an error. The first one counts.
func (d *Device) Fail(err error) {
	select {
	case d.failed <- err:
	default:
	}
	d.Close()
}

// end stops everything and gives it back.
func (d *Device) end() {
	for _, q := range d.queues {
		q.stop()
		q.setKick(nil)
		q.setCall(-1)
	}
	d.setRequests(-1)
	if d.mem != nil {
		_ = d.mem.close()
		d.mem = nil
	}
}

func (d *Device) setRequests(fd int) {
	if d.requests >= 0 {
		_ = unix.Close(d.requests)
	}
	d.requests = fd
}

// protocol is the features of the protocol that are offered.
func (d *Device) protocol() uint64 {
	if d.o.OldDriver {
		return ProtocolConfig | ProtocolBackendRequest
	}
	return ProtocolConfig
}

// handle does what a message says and returns the payload of the reply, if one is due.
func (d *Device) handle(m *Message) ([]byte, error) {
	switch m.Request {
	case GetFeatures:
		return u64Payload(d.o.Features), nil
	case SetFeatures:
		return nil, d.setFeatures(m)
	case GetProtocolFeatures:
		return u64Payload(d.protocol()), nil
	case SetProtocolFeatures:
		return nil, checkOffer(m, d.protocol())
	case SetOwner, ResetOwner, SetConfig, SetVringErr:
		return nil, nil // nothing to note, or nothing that can be set
	case GetConfig:
		return d.config(m)
	case SetMemTable:
		return nil, d.setMemory(m)
	case SetBackendRequestFD:
		if !d.o.OldDriver {
			break
		}
		fd, err := m.takeFD()
		if err == nil {
			d.setRequests(fd)
		}
		return nil, err
	case SetVringNum, SetVringBase, GetVringBase, SetVringEnable:
		return d.vringState(m)
	case SetVringAddr:
		return nil, d.setVringAddr(m)
	case SetVringKick, SetVringCall:
		return nil, d.setVringFD(m)
	}
	return nil, errors.New("unknown, or not offered")
}

// checkOffer checks that the driver has accepted no other features than those.
func checkOffer(m *Message, offered uint64) error {
	features, err := m.u64()
	if err != nil {
		return err
	}
	if extra := features &^ offered; extra != 0 {
		return fmt.Errorf("features %#x were not offered", extra)
	}
	return nil
}

func (d *Device) setFeatures(m *Message) error {
	if err := checkOffer(m, d.o.Features); err != nil {
		return err
	}
	features, _ := m.u64()
	if features&FeatureVersion1 == 0 {
		return errors.New("the driver is older than virtio 1.0")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.features = features
	return nil
}

// config returns a part of the configuration space. What is behind its end reads as zero.
func (d *Device) config(m *Message) ([]byte, error) {
	if len(m.Payload) < configHeaderBytes {
		return nil, errShort
	}
	offset, size := binary.LittleEndian.Uint32(m.Payload), binary.LittleEndian.Uint32(m.Payload[4:])
	if offset > maxConfig || size > maxConfig || int(size) != len(m.Payload)-configHeaderBytes {
		return nil, fmt.Errorf("%d bytes at %d of the configuration space", size, offset)
	}
	reply := make([]byte, len(m.Payload))
	copy(reply, m.Payload[:configHeaderBytes])
	copy(reply[configHeaderBytes:], d.o.Config[min(int(offset), len(d.o.Config)):])
	return reply, nil
}

// setMemory maps the guest's memory. A driver may do that again while no queue runs.
func (d *Device) setMemory(m *Message) error {
	for _, q := range d.queues {
		if q.running {
			return errors.New("memory cannot change while queues run")
		}
	}
	mem, err := mapMemory(m.Payload, m.FDs)
	if err != nil {
		return err
	}
	old := d.mem
	d.mem = mem
	if old != nil {
		return old.close()
	}
	return nil
}

func (d *Device) queue(index uint32) (*Queue, error) {
	if int(index) >= len(d.queues) {
		return nil, fmt.Errorf("there is no queue %d", index)
	}
	return d.queues[index], nil
}

func (d *Device) vringState(m *Message) ([]byte, error) {
	index, num, err := m.vring()
	if err != nil {
		return nil, err
	}
	q, err := d.queue(index)
	if err != nil {
		return nil, err
	}
	switch m.Request {
	case SetVringNum:
		q.num = num
	case SetVringBase:
		q.base = uint16(num)
	case SetVringEnable:
		if q.enabled = num != 0; q.enabled {
			return nil, d.startQueue(q)
		}
		q.stop()
	case GetVringBase:
		q.stop()
		q.setKick(nil)
		reply := make([]byte, 8)
		binary.LittleEndian.PutUint32(reply, index)
		binary.LittleEndian.PutUint32(reply[4:], uint32(q.base))
		return reply, nil
	}
	return nil, nil
}

func (d *Device) setVringAddr(m *Message) error {
	if len(m.Payload) < 40 {
		return errShort
	}
	q, err := d.queue(binary.LittleEndian.Uint32(m.Payload))
	if err != nil {
		return err
	}
	q.descAddr = binary.LittleEndian.Uint64(m.Payload[8:])
	q.usedAddr = binary.LittleEndian.Uint64(m.Payload[16:])
	q.availAddr = binary.LittleEndian.Uint64(m.Payload[24:])
	return nil
}

// setVringFD takes over the descriptor of a kick or a call. Both may change while the queue runs.
func (d *Device) setVringFD(m *Message) error {
	v, err := m.u64()
	if err != nil {
		return err
	}
	q, err := d.queue(uint32(v & vringIndexMask))
	if err != nil {
		return err
	}
	if v&vringNoFD != 0 {
		if m.Request == SetVringKick {
			return errors.New("polling instead of kicks is not offered")
		}
		q.setCall(-1)
		return nil
	}
	fd, err := m.takeFD()
	if err != nil {
		return err
	}
	if m.Request == SetVringCall {
		if err := checkCall(fd); err != nil {
			_ = unix.Close(fd)
			return err
		}
		q.setCall(fd)
		return nil
	}
	// Go's poller takes a kick only so. UML's eventfd is blocking; its driver does not mind.
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return os.NewSyscallError("fcntl", err)
	}
	q.stop()
	q.setKick(os.NewFile(uintptr(fd), fmt.Sprintf("kicks of queue %d", q.index)))
	return d.startQueue(q)
}

// checkCall checks that a call can be written without ever blocking: a socket, whatever its flags, which the front end
// shares and could change at any time.
func checkCall(fd int) error {
	if _, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil {
		return errors.New("a call has to be a socket: nothing else can be kept from blocking us")
	}
	return nil
}

// startQueue starts a queue, and the goroutine that waits for its kicks, if it is due and does not run yet.
func (d *Device) startQueue(q *Queue) error {
	features := d.Features()
	if q.running || q.kick == nil || !q.enabled && features&FeatureProtocol != 0 {
		return nil
	}
	if d.o.Started != nil {
		d.o.Started(q)
	}
	if err := q.start(d.mem, features); err != nil {
		return err
	}
	q.waiting.Go(func() { d.waitForKicks(q) })
	return nil
}

// waitForKicks runs until the queue is stopped.
func (d *Device) waitForKicks(q *Queue) {
	var failed error
	kicked := func() error { return d.o.Kicked(q) }
	conn, err := q.kick.SyscallConn()
	if err == nil {
		err = conn.Read(func(uintptr) (done bool) { // calls this at once, and then for each kick
			failed = Guard(kicked)
			return failed != nil
		})
	}
	switch {
	case failed != nil:
		d.Fail(failed)
	case !errors.Is(err, os.ErrDeadlineExceeded): // of stop
		d.Fail(fmt.Errorf("wait for the guest: %w", err))
	}
}

// ErrMemory says that the front end took away memory that it had shared.
var ErrMemory = errors.New("the guest's memory is gone")

// Guard runs f, which accesses the guest's memory, and returns ErrMemory if that faults.
func Guard(f func() error) (err error) {
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if r := recover(); r != nil {
			if fault, ok := r.(interface{ Addr() uintptr }); ok {
				err = fmt.Errorf("%w: fault at %#x", ErrMemory, fault.Addr())
				return
			}
			panic(r)
		}
	}()
	return f()
}

// MaxPath is the length in bytes of the longest path for Listen: what fits into struct sockaddr_un, with the NUL that UML's driver wants.
const MaxPath = 107

// Listen makes the unix socket that the driver connects to, for our user alone: whoever connects is believed to be the
// guest. Closing it removes it.
func Listen(path string) (*net.UnixListener, error) {
	if len(path) > MaxPath {
		return nil, fmt.Errorf("the path of its socket is %d bytes long, at most %d are possible: %s; set TMPDIR or "+
			"XDG_RUNTIME_DIR, whichever it begins with, to a shorter directory", len(path), MaxPath, path)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// IsGone says whether an error of Serve means that the other end is gone.
func IsGone(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET)
}

func u64Payload(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }
