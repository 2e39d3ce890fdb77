package vport

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"docker-usermode-linux/internal/vhostuser"
	"docker-usermode-linux/internal/vhostuser/vhostusertest"
	"docker-usermode-linux/internal/vport/vporttest"
)

// hang is far longer than anything takes: it turns a hang into a failure. moment is long enough for what must not
// happen to happen, mostly.
const (
	hang   = 60 * time.Second
	moment = 30 * time.Millisecond
)

const portsName = "a port's name"

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testPort is a port that runs.
type testPort struct {
	*Port
	path string
	done chan error // result of Run
}

// startPort runs a port that no guest has connected to.
func startPort(t testing.TB) *testPort {
	t.Helper()
	path := socketPath(t)
	port, err := New(Options{Path: path, Name: portsName})
	if err != nil {
		t.Fatal(err)
	}
	p := &testPort{port, path, make(chan error, 1)}
	go func() { p.done <- p.Run() }()
	t.Cleanup(p.Close)
	return p
}

// start runs a port with a guest's kernel.
func start(t testing.TB) (*testPort, *vporttest.Driver) {
	t.Helper()
	p := startPort(t)
	guest, err := vporttest.Connect(p.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(guest.Close)
	return p, guest
}

// open opens the port in the guest, and accepts that.
func open(t testing.TB) (*testPort, *vporttest.Driver, net.Conn, io.ReadWriteCloser) {
	t.Helper()
	p, guest := start(t)
	program := mustOpen(t, guest)
	return p, guest, p.accept(t), program
}

func mustOpen(t testing.TB, guest *vporttest.Driver) io.ReadWriteCloser {
	t.Helper()
	program, err := guest.Open()
	if err != nil {
		t.Fatal(err)
	}
	return program
}

func (p *testPort) accept(t testing.TB) *Conn {
	t.Helper()
	conn, err := p.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// end is what Run returns.
func (p *testPort) end(t testing.TB) error {
	t.Helper()
	return wait(t, "Run() returns", p.done)
}

func wait[T any](t testing.TB, what string, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(hang):
		t.Fatalf("never: %s", what)
	}
	return v
}

// socketPath is a path for the port's socket. That of t.TempDir may be too long for one.
func socketPath(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vport")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "port")
}

// result is that of a Read or a Write.
type result struct {
	n   int
	err error
}

// inBackground runs a Read or a Write.
func inBackground(f func([]byte) (int, error), b []byte) <-chan result {
	done := make(chan result, 1)
	go func() {
		n, err := f(b)
		done <- result{n, err}
	}()
	return done
}

// expect reads exactly that.
func expect(t testing.TB, r io.Reader, want string) {
	t.Helper()
	b := make([]byte, len(want))
	done := inBackground(func(b []byte) (int, error) { return io.ReadFull(r, b) }, b)
	if got := wait(t, "it reads "+want, done); got.err != nil || string(b) != want {
		t.Fatalf("Read() = %q, %v, want %q", b[:got.n], got.err, want)
	}
}

// expectEnd reads an error.
func expectEnd(t testing.TB, r io.Reader, want error) {
	t.Helper()
	got := wait(t, "Read() fails", inBackground(r.Read, make([]byte, 100)))
	if got.n != 0 || !errors.Is(got.err, want) {
		t.Fatalf("Read() = %d, %v, want 0, %v", got.n, got.err, want)
	}
}

func write(t testing.TB, w io.Writer, s string) {
	t.Helper()
	got := wait(t, "it writes "+s, inBackground(w.Write, []byte(s)))
	if got.n != len(s) || got.err != nil {
		t.Fatalf("Write(%q) = %d, %v", s, got.n, got.err)
	}
}

// rawGuest is a guest whose driver does as the test says.
type rawGuest struct {
	*vhostusertest.FrontEnd
	used int // of the memory behind the rings
}

const rawBytes = 1 << 20

// connectRaw connects a guest that has offered nothing yet.
func connectRaw(t testing.TB, p *testPort) *rawGuest {
	t.Helper()
	f, err := vhostusertest.Connect(p.path, featureMultiport|vhostuser.FeatureIndirect|vhostuser.FeatureEventIdx, numQueues, rawBytes)
	if err == nil {
		err = f.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		f.HangUp()
		f.Free()
	})
	return &rawGuest{f, numQueues * vhostusertest.RingBytes}
}

// part makes room for some bytes, and describes it with descriptor i of a ring.
func (g *rawGuest) part(queue int, i uint16, content []byte, flags, next uint16) []byte {
	at := g.used
	g.used += len(content)
	g.Rings[queue].SetDesc(i, vhostusertest.Base+uint64(at), uint32(len(content)), flags, next)
	copy(g.Mem[at:], content)
	return g.Mem[at:g.used]
}

// offer offers a chain of one part.
func (g *rawGuest) offer(queue int, i uint16, content []byte, flags uint16) []byte {
	b := g.part(queue, i, content, flags, 0)
	g.Rings[queue].Offer(i)
	g.Rings[queue].Publish()
	return b
}

func message(id uint32, event, value uint16) []byte {
	b := binary.LittleEndian.AppendUint32(nil, id)
	return binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16(b, event), value)
}

// tell sends a control message. It returns at once.
func (g *rawGuest) tell(id uint32, event, value uint16) {
	g.offer(queueControlFromGuest, 0, message(id, event, value), 0)
}

// await waits until the device has used the next chain of a queue.
func (g *rawGuest) await(t testing.TB, queue int) (length uint32) {
	t.Helper()
	for end := time.Now().Add(hang); ; time.Sleep(100 * time.Microsecond) {
		if _, length, ok := g.Rings[queue].Used(); ok {
			return length
		}
		if time.Now().After(end) {
			t.Fatalf("queue %d: the device uses nothing", queue)
		}
	}
}
