package vhostuser

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"docker-usermode-linux/internal/vhostuser/truncate"
)

func TestHandshake(t *testing.T) {
	f := connect(t, Options{Kicked: echo, Config: []byte("configuration")})
	if got := binary.LittleEndian.Uint64(f.ask(GetFeatures, nil)); got != allFeatures {
		t.Errorf("features = %#x, want %#x", got, uint64(allFeatures))
	}
	if got := binary.LittleEndian.Uint64(f.ask(GetProtocolFeatures, nil)); got != ProtocolConfig {
		t.Errorf("protocol features = %#x, want %#x", got, ProtocolConfig)
	}
	for _, tt := range []struct {
		offset, size uint32
		want         string
	}{
		{0, 13, "configuration"},
		{6, 3, "ura"},
		{9, 6, "tion\x00\x00"},
		{256, 2, "\x00\x00"},
		{0, 0, ""},
	} {
		ask := append(append(state(tt.offset, tt.size), 0, 0, 0, 0), make([]byte, tt.size)...)
		if got := f.ask(GetConfig, ask)[configHeaderBytes:]; string(got) != tt.want {
			t.Errorf("configuration[%d:+%d] = %q, want %q", tt.offset, tt.size, got, tt.want)
		}
	}
	f.setUp(len(steps))
	if got := f.device.Features(); got != allFeatures {
		t.Errorf("Features() = %#x, want %#x", got, uint64(allFeatures))
	}
	for i := range f.rings {
		f.offer(i)
		eventually(t, "the buffer is used", func() bool { return f.rings[i].usedIndex() == 1 })
		eventually(t, "a call", func() bool { return rung(f.calls[i][0]) == 1 })
	}
	f.conn.Close()
	if err := f.end(); !errors.Is(err, io.EOF) {
		t.Errorf("Serve() = %v, want %v", err, io.EOF)
	}
}

// TestRefused has front ends that break the rules, each after a whole handshake or before it.
func TestRefused(t *testing.T) {
	raw := func(request Request, flags, size uint32, payload ...byte) func(f *frontEnd) {
		return func(f *frontEnd) {
			b := binary.LittleEndian.AppendUint32(nil, uint32(request))
			b = binary.LittleEndian.AppendUint32(b, flags)
			f.conn.Write(append(binary.LittleEndian.AppendUint32(b, size), payload...))
		}
	}
	tell := func(r Request, payload []byte, fds ...func(f *frontEnd) int) func(f *frontEnd) {
		return func(f *frontEnd) {
			var n []int
			for _, fd := range fds {
				n = append(n, fd(f))
			}
			f.tell(r, payload, n...)
		}
	}
	mem := func(f *frontEnd) int { return int(f.file.Fd()) }
	kick := func(f *frontEnd) int { return f.kicks[0] }
	// start starts queue 0 where everything but what change says is right.
	start := func(change func(f *frontEnd)) func(f *frontEnd) {
		return func(f *frontEnd) {
			for _, step := range steps[:14] {
				step(f)
			}
			change(f)
			f.tell(SetVringKick, words(0), f.kicks[0])
			f.tell(SetVringEnable, state(0, 1))
		}
	}
	addr := func(descs, used, avail uint64) func(f *frontEnd) {
		return start(func(f *frontEnd) {
			f.tell(SetVringAddr, append(state(0, 0), words(userBase+descs, userBase+used, userBase+avail, 0)...))
		})
	}
	num := func(n uint32) func(f *frontEnd) {
		return start(func(f *frontEnd) { f.tell(SetVringNum, state(0, n)) })
	}
	region := func(guest, size, user, offset uint64) func(f *frontEnd) {
		return tell(SetMemTable, memTable([4]uint64{guest, size, user, offset}), mem)
	}
	const max = 1<<64 - 1
	for _, tt := range []struct {
		name string
		do   func(f *frontEnd)
		want string
	}{
		{"version", raw(GetFeatures, 2, 0), "version 2 is unknown"},
		{"too long", raw(SetMemTable, 1, maxPayload+1), "4097 bytes are too long"},
		{"much too long", raw(SetMemTable, 1, max&0xffffffff), "bytes are too long"},
		{"too short", raw(SetFeatures, 1, 7, make([]byte, 7)...), "too short"},
		{"no payload", raw(SetVringNum, 1, 0), "too short"},
		{"short address", tell(SetVringAddr, make([]byte, 39)), "too short"},
		{"short configuration", tell(GetConfig, make([]byte, 11)), "too short"},
		{"unknown message", tell(99, nil), "message 99: unknown"},
		{"message not offered", tell(17, nil), "message 17: unknown"},
		{"features", tell(SetFeatures, words(allFeatures|1)), "features 0x1 were not offered"},
		{"old driver", tell(SetFeatures, words(0)), "older than virtio 1.0"},
		{"protocol features", tell(SetProtocolFeatures, words(1<<3)), "features 0x8 were not offered"},
		{"configuration offset", tell(GetConfig, append(state(257, 1), 0, 0, 0, 0, 0)), "of the configuration space"},
		{"configuration size", tell(GetConfig, append(state(0, 2), 0, 0, 0, 0, 0)), "of the configuration space"},
		{"queue", tell(SetVringNum, state(2, 8)), "there is no queue 2"},
		{"queue of an address", tell(SetVringAddr, append(state(1<<31, 0), make([]byte, 32)...)), "there is no queue"},
		{"queue of a kick", tell(SetVringKick, words(2), kick), "there is no queue 2"},
		{"no kick", tell(SetVringKick, words(0)), "0 descriptors, want one"},
		{"two kicks", tell(SetVringKick, words(0), kick, kick), "2 descriptors, want one"},
		{"no call", tell(SetVringCall, words(0)), "0 descriptors, want one"},
		{"polling", tell(SetVringKick, words(vringNoFD)), "not offered"},
		{"kick that is a file", func(f *frontEnd) {
			f.setUp(len(steps))
			f.tell(SetVringKick, words(0), mem(f))
		}, "wait for the guest"},

		{"no regions", tell(SetMemTable, memTable()), "0 memory regions"},
		{"nine regions", tell(SetMemTable, memTable(make([][4]uint64, 9)...), mem, mem, mem, mem, mem, mem, mem, mem), "9 memory regions"},
		{"regions without payload", tell(SetMemTable, words(1), mem), "too short"},
		{"table without head", tell(SetMemTable, make([]byte, 4), mem), "too short"},
		{"no memory", tell(SetMemTable, memTable(wholeMemory)), "0 descriptors for 1"},
		{"more memory", tell(SetMemTable, memTable(wholeMemory), mem, mem), "2 descriptors for 1"},
		{"many descriptors", tell(SetMemTable, memTable(wholeMemory), slices.Repeat([]func(*frontEnd) int{mem}, 100)...), "descriptors for 1"},
		{"empty region", region(guestBase, 0, userBase, 0), "does not fit"},
		{"region behind the file", region(guestBase, memBytes, userBase, 1), "does not fit"},
		{"region wraps in the file", region(guestBase, memBytes, userBase, max-10), "does not fit"},
		{"region wraps in the guest", region(max-10, memBytes, userBase, 0), "does not fit"},
		{"region wraps for the user", region(guestBase, memBytes, max-10, 0), "does not fit"},
		{"huge region", region(0, max, 0, 0), "does not fit"},
		{"second region is wrong", tell(SetMemTable, memTable(wholeMemory, [4]uint64{}), mem, mem), "does not fit"},
		{"region of a pipe", tell(SetMemTable, memTable(wholeMemory), kick), "does not fit"},

		{"no entries", num(0), "has 0 entries"},
		{"one entry", num(1), "has 1 entries"},
		{"not a power of two", num(12), "has 12 entries"},
		{"too many entries", num(2 * maxRing), "has 2048 entries"},
		{"far too many entries", num(1 << 31), "has 2147483648 entries"},
		{"descriptors outside", addr(memBytes, usedStart, availStart), "outside"},
		{"descriptors at the end", addr(memBytes-16*entries+16, usedStart, availStart), "outside"},
		{"used ring outside", addr(0, memBytes-8, availStart), "outside"},
		{"available ring outside", addr(0, usedStart, max), "outside"},
		{"descriptors not aligned", addr(8, usedStart, availStart), "not aligned"},
		{"used ring not aligned", addr(0, usedStart+2, availStart), "not aligned"},
		{"available ring not aligned", addr(0, usedStart, availStart+2), "not aligned"},
		{"not aligned here", start(func(f *frontEnd) {
			f.tell(SetMemTable, memTable([4]uint64{guestBase, memBytes - 2, userBase, 2}), mem(f))
		}), "not aligned"},
		{"no set-up", func(f *frontEnd) {
			f.tell(SetVringEnable, state(0, 1))
			f.tell(SetVringKick, words(0), f.kicks[0])
		}, "queue 0 was started before it was set up"},
		{"memory while running", func(f *frontEnd) {
			f.setUp(len(steps))
			f.tell(SetMemTable, memTable(wholeMemory), mem(f))
		}, "while queues run"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := connect(t, Options{Kicked: echo})
			tt.do(f)
			if err := f.end(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Serve() = %v, want …%s…", err, tt.want)
			}
		})
	}
}

// TestEndAtEachStep ends the connection from either side after each step of the handshake, and in the middle of the
// next message. Nothing may be left.
func TestEndAtEachStep(t *testing.T) {
	half := binary.LittleEndian.AppendUint32(nil, uint32(SetMemTable))
	run := func(n int, end func(f *frontEnd), want error) {
		t.Run("", func(t *testing.T) {
			f := connect(t, Options{Kicked: echo})
			f.setUp(n)
			end(f)
			if err := f.end(); !errors.Is(err, want) {
				t.Errorf("after %d steps: Serve() = %v, want %v", n, err, want)
			}
			if f.device.Queue(0).Lock() {
				t.Error("the queue runs after Serve()")
			}
			f.device.Queue(0).Unlock()
		})
	}
	leave := func(f *frontEnd) { f.conn.Close() }
	run(len(steps), leave, io.EOF) // opens what package net and the poller keep
	fds, mappings := resources(t)
	for n := range len(steps) + 1 {
		run(n, leave, io.EOF)
		run(n, func(f *frontEnd) { f.device.Close() }, net.ErrClosed)
		run(n, func(f *frontEnd) {
			f.conn.WriteMsgUnix(half, unix.UnixRights(int(f.file.Fd())), nil)
			f.conn.Close()
		}, io.EOF)
	}
	if gotFDs, gotMappings := resources(t); gotFDs != fds || gotMappings != mappings {
		t.Errorf("%d descriptors and %d mappings are left, want %d and %d", gotFDs, gotMappings, fds, mappings)
	}
}

func TestServeOnce(t *testing.T) {
	f := connect(t, Options{})
	f.sync()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	if err := f.device.Serve(unixConn(t, fds[1])); !errors.Is(err, net.ErrClosed) {
		t.Errorf("second Serve() = %v, want %v", err, net.ErrClosed)
	}
	f.device.Close()
	f.end()
}

// TestRepliesUnread has a front end that asks and never reads.
func TestRepliesUnread(t *testing.T) {
	f := connect(t, Options{})
	f.conn.SetWriteBuffer(1 << 20)
	go func() {
		for Send(f.conn, Message{Request: GetFeatures}) == nil {
		}
	}()
	f.device.Close()
	if err := f.end(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve() = %v, want %v", err, net.ErrClosed)
	}
}

// TestRestart disables and enables a queue, replaces its descriptors and takes its base, as drivers do when they are
// suspended or loaded again. It has to go on where it stood, with one goroutine.
func TestRestart(t *testing.T) {
	var busy, starts atomic.Int32
	f := connect(t, Options{
		Started: func(*Queue) { starts.Add(1) },
		Kicked: func(q *Queue) error {
			if busy.Add(1) != 1 {
				return errors.New("two goroutines serve one queue")
			}
			defer busy.Add(-1)
			return echo(q)
		},
	})
	f.setUp(16) // queue 0
	use := func(what string) {
		t.Helper()
		for range entries + 1 {
			f.offer(0)
			eventually(t, what, func() bool { return f.rings[0].usedIndex() == f.rings[0].avail })
		}
	}
	expectStarts := func(want int32) {
		t.Helper()
		f.sync()
		if got := starts.Load(); got != want {
			t.Errorf("queue started %d times, want %d", got, want)
		}
	}
	use("served at first")
	for range 100 {
		f.tell(SetVringEnable, state(0, 1))
	}
	expectStarts(1)
	use("served when enabled again and again")

	f.tell(SetVringEnable, state(0, 0))
	f.sync()
	f.offer(0)
	f.tell(SetVringEnable, state(0, 1))
	eventually(t, "what came while it was disabled", func() bool { return f.rings[0].usedIndex() == f.rings[0].avail })
	use("served when enabled again")
	expectStarts(2)

	f.calls[0] = pair(t)
	f.tell(SetVringCall, words(0), f.calls[0][1])
	expectStarts(2)
	f.rings[0].askForCall(f.rings[0].avail)
	use("served with another call")
	eventually(t, "calls arrive at the new descriptor", func() bool { return rung(f.calls[0][0]) > 0 })
	f.tell(SetVringCall, words(vringNoFD))
	f.sync()
	f.rings[0].askForCall(f.rings[0].avail)
	use("served with a driver that polls")

	for range 20 {
		f.kicks[0] = eventfd(t)
		f.tell(SetVringKick, words(0), f.kicks[0])
		f.sync()
		use("served with another kick")
	}
	expectStarts(22)

	base := f.ask(GetVringBase, state(0, 0))
	if got, want := base, state(0, uint32(f.rings[0].avail)); !bytes.Equal(got, want) {
		t.Errorf("base = %x, want %x", got, want)
	}
	f.tell(SetVringEnable, state(0, 1))
	expectStarts(22) // it needs a kick
	f.tell(SetVringBase, base)
	f.tell(SetVringKick, words(0), f.kicks[0])
	use("served from its base")

	// Loaded again: everything from the start.
	f.tell(SetVringEnable, state(0, 0))
	f.sync()
	clear(f.mem)
	f.rings[0].avail, f.rings[0].used = 0, 0
	f.setUp(16)
	use("served after loading again")

	f.conn.Close()
	if err := f.end(); !errors.Is(err, io.EOF) {
		t.Errorf("Serve() = %v, want %v", err, io.EOF)
	}
}

// TestWithoutProtocolFeatures has a front end that does not know SetVringEnable, nor gives a call.
func TestWithoutProtocolFeatures(t *testing.T) {
	f := connect(t, Options{Kicked: echo})
	f.tell(SetFeatures, words(FeatureVersion1))
	f.tell(SetMemTable, memTable(wholeMemory), int(f.file.Fd()))
	f.tell(SetVringNum, state(0, entries))
	f.tell(SetVringAddr, ringAddr(0))
	f.tell(SetVringKick, words(0), f.kicks[0])
	f.rings[0].eventIdx = false
	for range 3 * entries {
		f.offer(0)
		eventually(t, "the buffer is used", func() bool { return f.rings[0].usedIndex() == f.rings[0].avail })
	}
}

// TestOldDriver has requests by the back end agreed on, whose socket stays open as long as the device is served.
func TestOldDriver(t *testing.T) {
	f := connect(t, Options{Kicked: echo, OldDriver: true})
	const want = ProtocolConfig | ProtocolBackendRequest
	if got := binary.LittleEndian.Uint64(f.ask(GetProtocolFeatures, nil)); got != want {
		t.Errorf("protocol features = %#x, want %#x", got, want)
	}
	f.tell(SetProtocolFeatures, words(want))
	var theirs [2]int
	for i := range theirs { // the second socket takes the place of the first
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		theirs[i] = pair[0]
		defer unix.Close(pair[0])
		f.tell(SetBackendRequestFD, nil, pair[1])
		unix.Close(pair[1])
	}
	ended := func(fd int) bool {
		n, err := unix.Read(fd, make([]byte, 1))
		return n == 0 && err == nil
	}
	f.ask(GetFeatures, nil) // answered when all before has been done
	if !ended(theirs[0]) || ended(theirs[1]) {
		t.Error("the socket that was given last is to be open, and no other")
	}
	f.conn.Close()
	if err := f.end(); !errors.Is(err, io.EOF) || !ended(theirs[1]) {
		t.Errorf("Serve() = %v, want %v and the socket closed", err, io.EOF)
	}
}

// TestRegions uses a ring and a buffer in different regions, one of which begins within a page of its file.
func TestRegions(t *testing.T) {
	got := make(chan string, 1)
	f := connect(t, Options{Kicked: func(q *Queue) error {
		var c Chain
		defer q.Unlock()
		if !q.Lock() {
			return nil
		}
		ok, err := q.Take(&c)
		if ok {
			got <- string(bytes.Join(c.Read, nil))
		}
		return err
	}})
	const far, at = 1 << 40, buffers + 100
	f.setUp(14)
	f.tell(SetMemTable, memTable([4]uint64{guestBase, buffers, userBase, 0}, [4]uint64{far, 100, far, at}),
		int(f.file.Fd()), int(f.file.Fd()))
	copy(f.mem[at+95:], "whole")
	f.rings[0].desc(0, desc{addr: far + 95, length: 5})
	f.rings[0].offer(0)
	f.rings[0].publish(0)
	f.tell(SetVringKick, words(0), f.kicks[0])
	f.tell(SetVringEnable, state(0, 1))
	if got := <-got; got != "whole" {
		t.Errorf("read %q", got)
	}
	f.rings[0].desc(1, desc{addr: far + 95, length: 6})
	f.rings[0].offer(1)
	f.rings[0].publish(1)
	ring(f.kicks[0])
	if err := f.end(); !errors.Is(err, ErrRing) {
		t.Errorf("Serve() = %v, want %v", err, ErrRing)
	}
}

// TestTruncated takes the memory away while the queues run.
func TestTruncated(t *testing.T) {
	f := connect(t, Options{Kicked: echo})
	f.setUp(len(steps))
	if err := truncate.File(f.file); err != nil {
		t.Fatal(err)
	}
	ring(f.kicks[1])
	if err := f.end(); !errors.Is(err, ErrMemory) {
		t.Errorf("Serve() = %v, want %v", err, ErrMemory)
	}
}

// TestBlockingKick has a front end that makes the descriptor blocking behind our back.
func TestBlockingKick(t *testing.T) {
	f := connect(t, Options{Kicked: echo})
	f.setUp(len(steps))
	for _, fd := range f.kicks {
		if err := unix.SetNonblock(fd, false); err != nil {
			t.Fatal(err)
		}
	}
	f.offer(0)
	eventually(t, "the buffer is used", func() bool { return f.rings[0].usedIndex() == 1 })
	f.device.Close()
	if err := f.end(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve() = %v, want %v", err, net.ErrClosed)
	}
}

// TestEndlessQueue ends a queue that is never empty.
func TestEndlessQueue(t *testing.T) {
	var taken atomic.Int64
	f := connect(t, Options{Kicked: func(q *Queue) error {
		var c Chain
		for q.Lock() {
			ok, err := q.Take(&c)
			if err != nil || !ok {
				q.Unlock()
				return err
			}
			q.Untake(1)
			q.Unlock()
			taken.Add(1)
		}
		q.Unlock()
		return nil
	}})
	f.setUp(len(steps))
	f.offer(0)
	f.offer(1)
	eventually(t, "both are busy", func() bool { return taken.Load() > 1000 })
	f.device.Close()
	f.end()
}

func TestGuard(t *testing.T) {
	want := errors.New("an error")
	if err := Guard(func() error { return want }); err != want {
		t.Errorf("Guard() = %v, want %v", err, want)
	}
	func() {
		defer func() {
			if r := recover(); r != "other" {
				t.Errorf("panic = %v, want the other", r)
			}
		}()
		_ = Guard(func() error { panic("other") })
	}()
	n := 0
	if got := testing.AllocsPerRun(100, func() { _ = Guard(func() error { n++; return nil }) }); got != 0 {
		t.Errorf("Guard() allocates %v times, want 0", got)
	}
}

// TestNoLostWakeUp runs a driver and a device that sleep whenever they can.
func TestNoLostWakeUp(t *testing.T) {
	for _, eventIdx := range []bool{true, false} {
		f := connect(t, Options{Kicked: echo})
		f.setUp(4)
		features := uint64(FeatureProtocol | FeatureVersion1)
		if eventIdx {
			features |= FeatureEventIdx
		}
		f.tell(SetFeatures, words(features))
		for i, step := range steps {
			if i > 4 {
				step(f)
			}
		}
		r := &f.rings[0]
		r.eventIdx = eventIdx
		fd, err := unix.Dup(f.calls[0][0])
		if err != nil {
			t.Fatal(err)
		}
		call := os.NewFile(uintptr(fd), "calls")
		for r.used != 40000 {
			for n := min(1+rand.N(entries), entries-int(r.avail-r.used)); n > 0; n-- {
				f.offer(0)
			}
			wait := rand.N(2) == 0 // else go on with what is free
			for {
				if _, ok := r.takeUsed(); ok {
					wait = false
					continue
				}
				r.askForCall(r.used)
				if !wait && r.avail-r.used < entries || r.usedIndex() != r.used {
					break
				}
				if _, err := call.Read(make([]byte, 8)); err != nil {
					t.Fatal(err)
				}
			}
		}
		call.Close()
		f.conn.Close()
		f.end()
	}
}

// FuzzMessages feeds messages with descriptors to a device whose driver also has bytes in its rings. Each message is
// a byte with its type, one that says which descriptors come with it, one with the length of its payload, the payload.
func FuzzMessages(f *testing.F) {
	f.Add([]byte("\x01\x00\x00"), []byte{})
	f.Add(bytes.Join([][]byte{
		{2, 0, 8},
		words(allFeatures),
		{5, 1, 40},
		memTable(wholeMemory),
		{13, 2, 8},
		words(0),
		{8, 0, 8},
		state(0, entries),
		{10, 0, 8},
		state(0, 0),
		{9, 0, 40},
		ringAddr(0),
		{12, 2, 8},
		words(0),
		{18, 0, 8},
		state(0, 1),
		{18, 0, 8},
		state(0, 0),
		{18, 0, 8},
		state(0, 1),
		{13, 2, 8},
		words(0),
		{12, 2, 8},
		words(0),
		{11, 0, 8},
		state(0, 0),
		{24, 0, 16},
		make([]byte, 16),
	}, nil), []byte("\x00\x00\x10\x00\x00\x00\x00\x00\x10\x00\x00\x00\x01\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, script, mem []byte) {
		e := connect(t, Options{Kicked: echo})
		copy(e.mem, mem)
		go io.Copy(io.Discard, e.conn)
		for len(script) >= 3 {
			m := Message{Request: Request(script[0])}
			switch script[1] {
			case 1:
				m.FDs = []int{int(e.file.Fd())}
			case 2:
				m.FDs = []int{e.kicks[0]}
			case 3:
				m.FDs = []int{int(e.file.Fd()), int(e.file.Fd())}
			case 4:
				truncate.File(e.file)
			}
			size := min(int(script[2]), len(script)-3)
			m.Payload, script = script[3:3+size], script[3+size:]
			if Send(e.conn, m) != nil {
				break
			}
		}
		ring(e.kicks[0])
		if len(script)%2 == 0 {
			e.device.Close()
		} else {
			e.conn.CloseWrite()
		}
		e.end()
	})
}

// TestCallMadeBlocking has a front end that fills the socket of its calls and makes it blocking: the device goes on, and ends
// when it is closed.
func TestCallMadeBlocking(t *testing.T) {
	f := connect(t, Options{Kicked: echo})
	f.setUp(len(steps))
	call := f.calls[0][1]
	for {
		if _, err := unix.Write(call, make([]byte, 4096)); err != nil {
			break
		}
	}
	if err := unix.SetNonblock(call, false); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		f.rings[0].askForCall(f.rings[0].used)
		f.offer(0)
		eventually(t, "the buffer is used", func() bool { _, ok := f.rings[0].takeUsed(); return ok })
	}
	f.device.Close()
	if err := f.end(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve() = %v, want %v", err, net.ErrClosed)
	}
}

// TestCallNoSocket has a front end with a call that it could make block.
func TestCallNoSocket(t *testing.T) {
	f := connect(t, Options{})
	f.tell(SetVringCall, words(0), eventfd(t))
	if err := f.end(); err == nil || !strings.Contains(err.Error(), "has to be a socket") {
		t.Errorf("Serve() = %v, want that it has to be a socket", err)
	}
}
