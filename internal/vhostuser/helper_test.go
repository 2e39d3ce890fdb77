package vhostuser

import (
	"encoding/binary"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// hang is far longer than anything takes: it turns a hang into a failure.
const hang = 60 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(hang); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// The memory of the test's guest: two rings, then buffers.
const (
	entries   = 8
	guestBase = 1 << 20 // guest's address of the first byte
	userBase  = 1 << 30 // the front end's
	memBytes  = 1 << 16
	memName   = "vhostuser test"

	ringBytes  = 0x1000
	availStart = 0x400
	usedStart  = 0x800
	buffers    = 2 * ringBytes
)

// driver is the driver's side of a ring: it does as the test says.
type driver struct {
	mem      []byte // of the ring
	calls    int    // the end of the calls that is read
	avail    uint16
	used     uint16
	eventIdx bool
}

func (d *driver) word(off int) *uint32 { return (*uint32)(unsafe.Pointer(&d.mem[off])) }

func (d *driver) desc(i int, v desc) { putDesc(d.mem[16*i:], v) }

func putDesc(b []byte, v desc) {
	binary.LittleEndian.PutUint64(b, v.addr)
	binary.LittleEndian.PutUint32(b[8:], v.length)
	binary.LittleEndian.PutUint16(b[12:], v.flags)
	binary.LittleEndian.PutUint16(b[14:], v.next)
}

func (d *driver) offer(heads ...uint16) {
	for _, head := range heads {
		binary.LittleEndian.PutUint16(d.mem[availStart+4+2*int(d.avail%entries):], head)
		d.avail++
	}
}

// publish shows the device what was offered since old, and reports whether it wants a kick.
func (d *driver) publish(old uint16) (kick bool) {
	flags := atomic.LoadUint32(d.word(availStart)) & 0xffff
	atomic.SwapUint32(d.word(availStart), uint32(d.avail)<<16|flags) // not Store: see Queue
	if !d.eventIdx {
		return atomic.LoadUint32(d.word(usedStart))&usedNoNotify == 0
	}
	return d.avail-uint16(atomic.LoadUint32(d.word(usedStart+4+8*entries)))-1 < d.avail-old
}

// askForCall asks the device for a call when it has used more than that.
func (d *driver) askForCall(used uint16) {
	atomic.SwapUint32(d.word(availStart+4+2*entries), uint32(used))
}

// usedIndex is the device's index.
func (d *driver) usedIndex() uint16 { return uint16(atomic.LoadUint32(d.word(usedStart)) >> 16) }

// takeUsed is the next used element.
func (d *driver) takeUsed() (e usedElem, ok bool) {
	if d.usedIndex() == d.used {
		return e, false
	}
	b := d.mem[usedStart+4+8*int(d.used%entries):]
	d.used++
	return usedElem{binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])}, true
}

// eventfd is a kick or a call.
func eventfd(t testing.TB) int {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// pair is a call as UML's: what is written to its second end can be read from the first.
func pair(t testing.TB) [2]int {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.Close(fds[0])
		unix.Close(fds[1])
	})
	return fds
}

func ring(fd int) { unix.Write(fd, binary.LittleEndian.AppendUint64(nil, 1)) }

// rung is how often an eventfd was written to.
func rung(fd int) uint64 {
	var b [8]byte
	if _, err := unix.Read(fd, b[:]); err != nil {
		return 0
	}
	return binary.LittleEndian.Uint64(b[:])
}

// frontEnd is a scripted front end.
type frontEnd struct {
	t      testing.TB
	conn   *net.UnixConn
	device *Device
	done   chan error // result of Serve
	file   *os.File
	mem    []byte
	rings  [2]driver
	kicks  [2]int
	calls  [2][2]int // pairs
}

// allFeatures are those of a test's device.
const allFeatures = FeatureProtocol | FeatureIndirect | FeatureEventIdx | FeatureVersion1

// connect serves a device, and returns the other end.
func connect(t testing.TB, o Options) *frontEnd {
	t.Helper()
	o.Features, o.Queues = allFeatures, 2
	if o.Kicked == nil {
		o.Kicked = func(*Queue) error { return nil }
	}
	f := &frontEnd{t: t, device: New(o), done: make(chan error, 1)}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.conn = unixConn(t, fds[0])
	go func() { f.done <- f.device.Serve(unixConn(t, fds[1])) }()
	f.memory()
	for i := range f.kicks {
		f.kicks[i], f.calls[i] = eventfd(t), pair(t)
		f.rings[i] = driver{mem: f.mem[i*ringBytes : (i+1)*ringBytes], eventIdx: true}
	}
	t.Cleanup(func() {
		f.conn.Close()
		f.device.Close()
		f.file.Close()
		unix.Munmap(f.mem)
	})
	return f
}

func unixConn(t testing.TB, fd int) *net.UnixConn {
	file := os.NewFile(uintptr(fd), "vhost-user")
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		t.Fatal(err)
	}
	return conn.(*net.UnixConn)
}

func (f *frontEnd) memory() {
	f.t.Helper()
	fd, err := unix.MemfdCreate(memName, unix.MFD_CLOEXEC)
	if err != nil {
		f.t.Fatal(err)
	}
	f.file = os.NewFile(uintptr(fd), memName)
	if err = f.file.Truncate(memBytes); err == nil {
		f.mem, err = unix.Mmap(fd, 0, memBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

// end is what Serve returns.
func (f *frontEnd) end() error {
	f.t.Helper()
	select {
	case err := <-f.done:
		return err
	case <-time.After(hang):
		f.t.Fatal("Serve() does not return")
		return nil
	}
}

func (f *frontEnd) tell(r Request, payload []byte, fds ...int) {
	_ = Send(f.conn, Message{Request: r, Payload: payload, FDs: fds}) // the device may be gone already
}

func (f *frontEnd) ask(r Request, payload []byte) []byte {
	f.t.Helper()
	f.tell(r, payload)
	m, err := Receive(f.conn)
	if err != nil || !m.Reply || m.Request != r {
		f.t.Fatalf("answer to message %d = %+v, %v", r, m, err)
	}
	return m.Payload
}

// sync returns when the device has handled all messages so far.
func (f *frontEnd) sync() {
	f.t.Helper()
	f.ask(GetFeatures, nil)
}

// words is a payload of 64-bit numbers, state one of two 32-bit numbers.
func words(v ...uint64) (b []byte) {
	for _, v := range v {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

func state(index, num uint32) []byte { return words(uint64(num)<<32 | uint64(index)) }

// memTable describes regions by {guest address, size, user address, offset}.
func memTable(regions ...[4]uint64) []byte {
	b := words(uint64(len(regions)))
	for _, r := range regions {
		b = append(b, words(r[:]...)...)
	}
	return b
}

var wholeMemory = [4]uint64{guestBase, memBytes, userBase, 0}

// ringAddr describes where queue i is.
func ringAddr(i uint32) []byte {
	at := userBase + uint64(i)*ringBytes
	return append(state(i, 0), words(at, at+usedStart, at+availStart, 0)...)
}

// steps of a whole handshake in UML's order.
var steps = []func(f *frontEnd){
	func(f *frontEnd) { f.tell(SetOwner, nil) },
	func(f *frontEnd) { f.ask(GetFeatures, nil) },
	func(f *frontEnd) { f.ask(GetProtocolFeatures, nil) },
	func(f *frontEnd) { f.tell(SetProtocolFeatures, words(ProtocolConfig)) },
	func(f *frontEnd) { f.tell(SetFeatures, words(allFeatures)) },
	func(f *frontEnd) { f.tell(SetMemTable, memTable(wholeMemory), int(f.file.Fd())) },
	func(f *frontEnd) { f.tell(SetVringCall, words(0), f.calls[0][1]) },
	func(f *frontEnd) { f.tell(SetVringNum, state(0, entries)) },
	func(f *frontEnd) { f.tell(SetVringBase, state(0, 0)) },
	func(f *frontEnd) { f.tell(SetVringAddr, ringAddr(0)) },
	func(f *frontEnd) { f.tell(SetVringCall, words(1), f.calls[1][1]) },
	func(f *frontEnd) { f.tell(SetVringNum, state(1, entries)) },
	func(f *frontEnd) { f.tell(SetVringBase, state(1, 0)) },
	func(f *frontEnd) { f.tell(SetVringAddr, ringAddr(1)) },
	func(f *frontEnd) { f.tell(SetVringKick, words(0), f.kicks[0]) },
	func(f *frontEnd) { f.tell(SetVringEnable, state(0, 1)) },
	func(f *frontEnd) { f.tell(SetVringKick, words(1), f.kicks[1]) },
	func(f *frontEnd) { f.tell(SetVringEnable, state(1, 1)) },
}

// setUp does the first n steps.
func (f *frontEnd) setUp(n int) {
	f.t.Helper()
	for _, step := range steps[:n] {
		step(f)
	}
	f.sync()
}

// offer puts one buffer for queue i into its ring and kicks if the device wants that.
func (f *frontEnd) offer(i int) {
	r := &f.rings[i]
	head := r.avail % entries
	r.desc(int(head), desc{addr: guestBase + buffers, length: 16})
	r.offer(head)
	if r.publish(r.avail - 1) {
		ring(f.kicks[i])
	}
}

// echo is a handler of kicks that uses all that there is.
func echo(q *Queue) error {
	var c Chain
	for {
		again, err := func() (bool, error) {
			defer q.Unlock()
			if !q.Lock() {
				return false, nil
			}
			ok, err := q.Take(&c)
			if err != nil {
				return false, err
			}
			if ok {
				q.Use(&c, 0)
				return true, nil
			}
			if err := q.Publish(); err != nil {
				return false, err
			}
			if q.AskForKick() {
				q.RefuseKicks()
				return true, nil
			}
			return false, nil
		}()
		if err != nil || !again {
			return err
		}
	}
}

// resources counts the process's descriptors, and mappings of the test's memory.
func resources(t testing.TB) (fds, mappings int) {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	defer maps.Close()
	b, err := io.ReadAll(maps)
	if err != nil {
		t.Fatal(err)
	}
	return len(list), strings.Count(string(b), memName)
}
