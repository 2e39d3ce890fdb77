package vport

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"docker-usermode-linux/internal/vhostuser"
	"docker-usermode-linux/internal/vhostuser/vhostusertest"
	"docker-usermode-linux/internal/vport/vporttest"
)

func TestHandshake(t *testing.T) {
	p, guest := start(t)
	if got := guest.Name(); got != portsName {
		t.Errorf("name = %q, want %q", got, portsName)
	}
	if _, err := os.Stat(p.path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stat of the socket = %v, want it gone: there is one guest", err)
	}
	guest.Close()
	if err := p.end(t); err != nil {
		t.Errorf("Run() = %v when the guest is gone, want nil", err)
	}
}

func TestSocket(t *testing.T) {
	p := startPort(t)
	info, err := os.Stat(p.path)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := info.Mode(), fs.ModeSocket|0o600; got != want {
		t.Errorf("mode = %s, want %s", got, want)
	}
	p.Close()
	if err := p.end(t); err != nil {
		t.Errorf("Run() = %v, want nil", err)
	}
	if _, err := os.Stat(p.path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stat of the socket after Close() = %v, want it gone", err)
	}

	path := socketPath(t)
	for range 2 {
		p, err := New(Options{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := New(Options{Path: path}); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("New() = %v, want %v", err, syscall.EADDRINUSE)
		}
		p.Close() // never run
	}
	if _, err := New(Options{Path: "/" + strings.Repeat("x", vhostuser.MaxPath)}); err == nil || !strings.Contains(err.Error(), "at most 107") {
		t.Errorf("New() with a long path = %v", err)
	}
}

// TestEnds ends the port from either side in each state. Nothing may be left, and nobody may wait.
func TestEnds(t *testing.T) {
	states := map[string]func(t *testing.T, p *testPort) (guestLeaves func()){
		"listening": func(*testing.T, *testPort) func() { return nil },
		"connected": func(t *testing.T, p *testPort) func() {
			conn, err := net.Dial("unix", p.path)
			if err != nil {
				t.Fatal(err)
			}
			return func() { conn.Close() }
		},
		"driver without a console": func(t *testing.T, p *testPort) func() { return connectRaw(t, p).HangUp },
		"driver is up": func(t *testing.T, p *testPort) func() {
			return connectGuest(t, p).Close
		},
		"open": func(t *testing.T, p *testPort) func() {
			guest := connectGuest(t, p)
			mustOpen(t, guest)
			return guest.Close
		},
		"open, with a partly read chain": func(t *testing.T, p *testPort) func() {
			guest := connectGuest(t, p)
			write(t, mustOpen(t, guest), "some bytes")
			expect(t, p.accept(t), "some")
			return guest.Close
		},
		"closed by the host": func(t *testing.T, p *testPort) func() {
			guest := connectGuest(t, p)
			mustOpen(t, guest)
			p.accept(t).Close()
			return guest.Close
		},
		"closed again": func(t *testing.T, p *testPort) func() {
			guest := connectGuest(t, p)
			program := mustOpen(t, guest)
			write(t, program, "some bytes")
			program.Close()
			return guest.Close
		},
	}
	for name, state := range states {
		for _, who := range []string{"host", "guest"} {
			t.Run(name+"/"+who, func(t *testing.T) {
				p := startPort(t)
				leave := state(t, p)
				accepting := make(chan error, 1)
				go func() {
					for {
						conn, err := p.Accept()
						if err != nil {
							accepting <- err
							return
						}
						go conn.Read(make([]byte, 1))
						_, _ = conn.Write(make([]byte, 10<<20))
					}
				}()
				time.Sleep(moment / 10)
				if who == "guest" && leave != nil {
					leave()
				} else {
					p.Close()
				}
				if err := p.end(t); err != nil {
					t.Errorf("Run() = %v, want nil", err)
				}
				if err := wait(t, "Accept() returns", accepting); !errors.Is(err, net.ErrClosed) {
					t.Errorf("Accept() = %v, want %v", err, net.ErrClosed)
				}
				if conn, err := p.Accept(); !errors.Is(err, net.ErrClosed) {
					t.Errorf("Accept() after the end = %v, %v, want %v", conn, err, net.ErrClosed)
				}
				p.Close()
			})
		}
	}
}

func connectGuest(t testing.TB, p *testPort) *vporttest.Driver {
	t.Helper()
	guest, err := vporttest.Connect(p.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(guest.Close)
	return guest
}

// TestEndsWhileBusy ends the port from either side while data goes both ways.
func TestEndsWhileBusy(t *testing.T) {
	for i := range 40 {
		p, guest, conn, program := open(t)
		running := make(chan struct{}, 4)
		pump := func(f func([]byte) (int, error)) {
			defer func() { running <- struct{}{} }()
			b := make([]byte, 10000)
			for {
				if _, err := f(b); err != nil {
					return
				}
			}
		}
		for _, f := range []func([]byte) (int, error){conn.Read, conn.Write, program.Read, program.Write} {
			go pump(f)
		}
		time.Sleep(time.Duration(i) * 100 * time.Microsecond)
		if i%2 == 0 {
			p.Close()
		} else {
			guest.Close()
		}
		for range cap(running) {
			wait(t, "all that read and write end", running)
		}
		if err := p.end(t); err != nil {
			t.Errorf("Run() = %v, want nil", err)
		}
	}
}

func TestBusy(t *testing.T) {
	p, guest, conn, program := open(t)
	if _, err := guest.Open(); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("second Open() = %v, want %v", err, syscall.EBUSY)
	}
	write(t, program, "still there")
	expect(t, conn, "still there")
	program.Close()
	program = mustOpen(t, guest)
	write(t, p.accept(t), "again")
	expect(t, program, "again")
}

// TestManyOpens opens the port again and again, without an Accept. The last one counts.
func TestManyOpens(t *testing.T) {
	p, guest := start(t)
	for range 1000 {
		program := mustOpen(t, guest)
		write(t, program, "nobody reads this")
		program.Close()
	}
	program := mustOpen(t, guest)
	write(t, program, "last")
	conn := p.accept(t)
	expect(t, conn, "last")
	program.Close()
	expectEnd(t, conn, io.EOF)
	select {
	case <-p.conns:
		t.Error("there is one more Conn, which nobody has opened")
	default:
	}
}

// TestReopen has a host that holds a partly read chain whenever the guest's program leaves, or has not read at all. No
// byte may come to the next one, none may be lost, and all buffers have to come back.
func TestReopen(t *testing.T) {
	p, guest := start(t)
	for i := range 10000 {
		program := mustOpen(t, guest)
		conn := p.accept(t)
		write(t, program, "for the first host")
		write(t, program, "and more")
		write(t, conn, "for the first program")
		b := make([]byte, i%20)
		if _, err := io.ReadFull(conn, b); err != nil || !strings.HasPrefix("for the first hostand more", string(b)) {
			t.Fatalf("Read() = %q, %v", b, err)
		}
		program.Close()
		if _, err := conn.Write([]byte("late")); !errors.Is(err, net.ErrClosed) {
			t.Fatalf("Write() = %v after the guest's close, want %v", err, net.ErrClosed)
		}
		if i%3 == 0 { // else the next open ends it
			rest, err := io.ReadAll(conn)
			if got := string(b) + string(rest); got != "for the first hostand more" || err != nil {
				t.Fatalf("all = %q, %v", got, err)
			}
		}
	}
	program := mustOpen(t, guest)
	conn := p.accept(t)
	for range 2 * vhostusertest.Entries {
		write(t, program, "x")
		expect(t, conn, "x")
		write(t, conn, "y")
		expect(t, program, "y")
	}
}

// TestNothingStale has a host that writes all the time while programs come and go: what was written for one must not come
// to the next. A write that was under way when the guest closed went on once.
func TestNothingStale(t *testing.T) {
	p, guest := start(t)
	for i := range 2000 {
		program := mustOpen(t, guest)
		conn := p.accept(t)
		done := make(chan struct{})
		go func() {
			defer close(done)
			b := bytes.Repeat([]byte{byte(i)}, 300<<10)
			for {
				if _, err := conn.Write(b); err != nil {
					return
				}
			}
		}()
		b := make([]byte, 10000)
		n, err := program.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range b[:n] {
			if c != byte(i) {
				t.Fatalf("program %d reads what was for %d", i, c)
			}
		}
		program.Close()
		wait(t, "the host's Write() ends", done)
	}
}

// TestHostCloses checks that the guest notices, and can open the port again.
func TestHostCloses(t *testing.T) {
	p, guest, conn, program := open(t)
	write(t, conn, "farewell")
	reading := inBackground(conn.Read, make([]byte, 10))
	time.Sleep(moment)
	if err := conn.Close(); err != nil {
		t.Errorf("Close() = %v", err)
	}
	if got := wait(t, "Read() ends", reading); !errors.Is(got.err, net.ErrClosed) {
		t.Errorf("Read() = %v after Close(), want %v", got.err, net.ErrClosed)
	}
	expectEnd(t, conn, net.ErrClosed)
	if _, err := conn.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Write() = %v after Close(), want %v", err, net.ErrClosed)
	}
	if err := conn.Close(); err != nil {
		t.Errorf("second Close() = %v", err)
	}
	expect(t, program, "farewell")
	expectEnd(t, program, io.EOF)

	writing := inBackground(program.Write, []byte("to nobody"))
	time.Sleep(moment)
	program.Close()
	if got := wait(t, "the program's Write() ends", writing); !errors.Is(got.err, os.ErrClosed) {
		t.Errorf("the program's Write() = %v, want %v", got.err, os.ErrClosed)
	}
	for range 1000 {
		program := mustOpen(t, guest)
		conn := p.accept(t)
		write(t, program, "request") // waits until the host's end is open
		expect(t, conn, "request")
		write(t, conn, "answer")
		expect(t, program, "answer")
		conn.Close()
		expectEnd(t, program, io.EOF)
		program.Close()
	}
}

// TestBothClose has both ends close at the same time. Whatever the order, the next program finds an open port.
func TestBothClose(t *testing.T) {
	p, guest := start(t)
	for range 2000 {
		program := mustOpen(t, guest)
		first := p.accept(t)
		closed := make(chan struct{})
		go func() {
			first.Close()
			close(closed)
		}()
		runtime.Gosched()
		program.Close()
		program = mustOpen(t, guest)
		conn := p.accept(t)
		write(t, program, "request")
		expect(t, conn, "request")
		program.Close()
		<-closed
	}
}

// TestLoadedAgain has a driver that is unbound and bound again while a program has the port open, which it never closes
// then.
func TestLoadedAgain(t *testing.T) {
	p := startPort(t)
	g := connectRaw(t, p)
	g.tell(portID, eventPortOpen, 1)
	conn := p.accept(t)
	g.tell(1<<32-1, eventDeviceReady, 1)
	expectEnd(t, conn, io.EOF)
}

// TestRules has drivers that break the rules. Each has told that the device is ready, and opened the port.
func TestRules(t *testing.T) {
	const base = vhostusertest.Base
	loop := func(queue int, flags uint16) func(g *rawGuest) {
		return func(g *rawGuest) {
			g.Rings[queue].SetDesc(5, base, 10, vhostusertest.Next|flags, 6)
			g.Rings[queue].SetDesc(6, base, 10, vhostusertest.Next|flags, 5)
			g.Rings[queue].Offer(5)
			g.Rings[queue].Publish()
		}
	}
	outside := func(queue int, flags uint16) func(g *rawGuest) {
		return func(g *rawGuest) {
			g.Rings[queue].SetDesc(5, base+rawBytes-10, 100, flags, 0)
			g.Rings[queue].Offer(5)
			g.Rings[queue].Publish()
		}
	}
	raw := func(b []byte) func(g *rawGuest) {
		return func(g *rawGuest) { g.offer(queueControlFromGuest, 5, b, 0) }
	}
	truncated := func(queue int) func(g *rawGuest) {
		return func(g *rawGuest) {
			if err := g.Truncate(); err != nil {
				t.Error(err)
			}
			g.Rings[queue].Kick()
		}
	}
	for _, tt := range []struct {
		name string
		do   func(g *rawGuest)
		want error
	}{
		{"empty message", raw(nil), ErrDriver},
		{"short message", raw(make([]byte, controlBytes-1)), ErrDriver},
		{"message to write", func(g *rawGuest) {
			g.offer(queueControlFromGuest, 5, make([]byte, 100), vhostusertest.Write)
		}, ErrDriver},
		{"no device", raw(message(1<<32-1, eventDeviceReady, 0)), ErrDriver},
		{"no port", raw(message(0, eventPortReady, 0)), ErrDriver},
		{"another port", raw(message(1, eventPortReady, 1)), ErrDriver},
		{"another port is open", raw(message(1, eventPortOpen, 1)), ErrDriver},
		{"loop to guest", loop(queueToGuest, vhostusertest.Write), vhostuser.ErrRing},
		{"loop from guest", loop(queueFromGuest, 0), vhostuser.ErrRing},
		{"loop of control messages", loop(queueControlFromGuest, 0), vhostuser.ErrRing},
		{"loop for control messages", func(g *rawGuest) {
			loop(queueControlToGuest, vhostusertest.Write)(g)
			raw(message(0, eventPortReady, 1))(g)
		}, vhostuser.ErrRing},
		{"outside, to guest", outside(queueToGuest, vhostusertest.Write), vhostuser.ErrRing},
		{"outside, from guest", outside(queueFromGuest, 0), vhostuser.ErrRing},
		{"outside, control", outside(queueControlFromGuest, 0), vhostuser.ErrRing},
		{"truncated, found by a Read", truncated(queueFromGuest), vhostuser.ErrMemory},
		{"truncated, found by a Write", truncated(queueToGuest), vhostuser.ErrMemory},
		{"truncated, found with control messages", truncated(queueControlFromGuest), vhostuser.ErrMemory},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := startPort(t)
			g := connectRaw(t, p)
			for i, m := range [][]byte{message(1<<32-1, eventDeviceReady, 1), message(0, eventPortOpen, 1)} {
				g.offer(queueControlFromGuest, uint16(i), m, 0)
				g.await(t, queueControlFromGuest)
			}
			conn := p.accept(t)
			reading := inBackground(conn.Read, make([]byte, 10))
			writing := inBackground(conn.Write, make([]byte, 10))
			time.Sleep(moment / 10)
			tt.do(g)
			if err := p.end(t); !errors.Is(err, tt.want) {
				t.Errorf("Run() = %v, want %v", err, tt.want)
			}
			if got := wait(t, "Read() ends", reading); got.err == nil {
				t.Errorf("Read() = %d, nil, want an error", got.n)
			}
			if got := wait(t, "Write() ends", writing); got.err == nil {
				t.Errorf("Write() = %d, nil, want an error", got.n)
			}
		})
	}
}

// TestTruncatedUnnoticed takes the memory away while nobody accesses it, but for whoever closes.
func TestTruncatedUnnoticed(t *testing.T) {
	for _, end := range []string{"port", "conn"} {
		p := startPort(t)
		g := connectRaw(t, p)
		g.tell(portID, eventPortOpen, 1)
		g.await(t, queueControlFromGuest)
		conn := p.accept(t)
		g.offer(queueFromGuest, 0, []byte("some bytes"), 0)
		expect(t, conn, "some")
		time.Sleep(10 * moment) // until no queue looks for more
		if err := g.Truncate(); err != nil {
			t.Fatal(err)
		}
		want := error(nil)
		if end == "port" {
			p.Close()
		} else {
			conn.Close() // tells the guest
			want = vhostuser.ErrMemory
		}
		if err := p.end(t); !errors.Is(err, want) {
			t.Errorf("Run() after Close() of the %s = %v, want %v", end, err, want)
		}
	}
}

// TestRemapped has a guest that takes away the memory of a chain that is read in part, and goes on with another one.
func TestRemapped(t *testing.T) {
	p := startPort(t)
	g := connectRaw(t, p)
	g.tell(portID, eventPortOpen, 1)
	g.await(t, queueControlFromGuest)
	conn := p.accept(t)
	old := g.offer(queueFromGuest, 0, []byte("old memory"), 0)
	expect(t, conn, "old ")
	for i := range uint64(numQueues) {
		if err := g.Tell(vhostuser.SetVringEnable, binary.LittleEndian.AppendUint64(nil, i)); err != nil {
			t.Fatal(err)
		}
	}
	copy(old, "new")
	if err := g.Share(); err != nil {
		t.Fatal(err)
	}
	if err := g.Tell(vhostuser.SetVringEnable, binary.LittleEndian.AppendUint64(nil, 1<<32|queueFromGuest)); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Config(0); err != nil { // answered when all before has been done
		t.Fatal(err)
	}
	expect(t, conn, "memory")
	g.await(t, queueFromGuest)
}

// TestEmptyBuffers has a guest that offers empty buffers without an end. That must not keep anybody from ending it.
func TestEmptyBuffers(t *testing.T) {
	for _, queue := range []int{queueToGuest, queueFromGuest} {
		p := startPort(t)
		g := connectRaw(t, p)
		g.tell(portID, eventPortOpen, 1)
		g.await(t, queueControlFromGuest)
		conn := p.accept(t)
		reading := inBackground(conn.Read, make([]byte, 10))
		writing := inBackground(conn.Write, make([]byte, 10))
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			r := g.Rings[queue]
			for range vhostusertest.Entries {
				r.Offer(1) // of no length
			}
			for r.Publish(); ; {
				select {
				case <-stop:
					return
				default:
				}
				if _, _, ok := r.Used(); ok {
					r.Offer(1)
					r.Publish()
				}
			}
		}()
		time.Sleep(moment)
		p.Close()
		if err := p.end(t); err != nil {
			t.Errorf("Run() = %v, want nil", err)
		}
		wait(t, "Read() ends", reading)
		wait(t, "Write() ends", writing)
		close(stop)
		<-stopped
	}
}

// TestDeafToControl has a guest that never takes a control message, and makes us have more of them for it.
func TestDeafToControl(t *testing.T) {
	p := startPort(t)
	g := connectRaw(t, p)
	for i := range 1000 {
		id, event, value := uint32(portID), uint16(eventPortReady), uint16(1)
		switch i % 4 {
		case 1:
			id, event = 1<<32-1, eventDeviceReady
		case 2:
			event = eventPortOpen
		case 3:
			event, value = eventPortOpen, 0
		}
		g.used = numQueues * vhostusertest.RingBytes
		g.tell(id, event, value)
		g.await(t, queueControlFromGuest)
		if i%4 == 2 {
			p.accept(t).Close()
		}
	}
	p.mu.Lock()
	pending := len(p.pending)
	p.mu.Unlock()
	if pending > 3 {
		t.Errorf("%d messages are pending, want 3 at most", pending)
	}
	// The last of each kind comes, as soon as there are buffers.
	buffers := [4][]byte{}
	for i := range buffers {
		buffers[i] = g.offer(queueControlToGuest, uint16(i), make([]byte, 100), vhostusertest.Write)
	}
	got := map[uint16]string{}
	for i := range 3 {
		n := g.await(t, queueControlToGuest)
		got[binary.LittleEndian.Uint16(buffers[i][4:])] = string(buffers[i][6:n])
	}
	for event, want := range map[uint16]string{
		eventPortAdd: "\x01\x00", eventPortName: "\x01\x00" + portsName, eventPortOpen: "\x01\x00",
	} {
		if got[event] != want {
			t.Errorf("message %d has %q, want %q", event, got[event], want)
		}
	}
}

// TestGuestWithoutPort has a kernel that comes too late, or whose device ends before the port is there.
func TestGuestWithoutPort(t *testing.T) {
	p, guest := start(t)
	if _, err := vporttest.Connect(p.path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("second Connect() = %v, want %v", err, fs.ErrNotExist)
	}
	program := mustOpen(t, guest)
	p.Close()
	p.end(t)
	expectEnd(t, program, syscall.ENODEV)
	if _, err := program.Write([]byte("x")); !errors.Is(err, syscall.ENODEV) {
		t.Errorf("Write() = %v without a device, want %v", err, syscall.ENODEV)
	}
	if err := program.Close(); err != nil {
		t.Errorf("Close() = %v", err)
	}
	if _, err := guest.Open(); !errors.Is(err, syscall.ENXIO) {
		t.Errorf("Open() = %v without a device, want %v", err, syscall.ENXIO)
	}
	for i := range 50 {
		p := startPort(t)
		go func() {
			time.Sleep(time.Duration(i) * 10 * time.Microsecond)
			p.Close()
		}()
		if guest, err := vporttest.Connect(p.path); err == nil {
			guest.Close()
		}
		p.end(t)
	}
}
