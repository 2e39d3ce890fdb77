package vhostuser

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// newRing makes a queue in ordinary memory that starts at an index, and its driver.
func newRing(t testing.TB, features uint64, base uint16) (*Queue, *driver, []byte) {
	t.Helper()
	mem, err := unix.Mmap(-1, 0, memBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(mem) })
	calls := pair(t)
	q := &Queue{
		num: entries, base: base, call: calls[1],
		descAddr: userBase, availAddr: userBase + availStart, usedAddr: userBase + usedStart,
	}
	m := &Memory{regions: []region{{guest: guestBase, size: memBytes, user: userBase, mem: mem}}}
	if err := q.start(m, features); err != nil {
		t.Fatal(err)
	}
	d := &driver{mem: mem, calls: calls[0], avail: base, used: base, eventIdx: features&FeatureEventIdx != 0}
	*d.word(availStart) = uint32(base) << 16
	*d.word(usedStart) = uint32(base) << 16
	return q, d, mem
}

func TestTake(t *testing.T) {
	const (
		at     = guestBase + buffers
		tables = guestBase + 0x8000
	)
	for _, tt := range []struct {
		name     string
		chain    []desc
		indirect []desc
		want     string // lengths to read / to write; or "" for ErrRing
	}{
		{"one to read", []desc{{at, 5, 0, 0}}, nil, "[5] / []"},
		{"one to write", []desc{{at, 5, descWrite, 0}}, nil, "[] / [5]"},
		{"both", []desc{{at, 5, descNext, 1}, {at, 6, descNext, 2}, {at, 7, descNext | descWrite, 3}, {at, 8, descWrite, 0}}, nil, "[5 6] / [7 8]"},
		{"backwards", []desc{{at, 1, descNext, 7}, {}, {}, {}, {}, {}, {}, {at, 2, 0, 0}}, nil, "[1 2] / []"},
		{"whole memory", []desc{{guestBase, memBytes, 0, 0}}, nil, "[65536] / []"},
		{"all descriptors", []desc{
			{at, 1, descNext, 1},
			{at, 1, descNext, 2},
			{at, 1, descNext, 3},
			{at, 1, descNext, 4},
			{at, 1, descNext, 5},
			{at, 1, descNext, 6},
			{at, 1, descNext, 7},
			{at, 1, 0, 0},
		}, nil, "[1 1 1 1 1 1 1 1] / []"},
		{"empty", []desc{{at, 0, 0, 0}}, nil, "[] / []"},
		{"empty parts anywhere", []desc{{0, 0, descNext, 1}, {at, 1, descNext, 2}, {1 << 63, 0, descWrite, 0}}, nil, "[1] / []"},
		{"indirect", []desc{{tables, 32, descIndirect, 0}}, []desc{{at, 3, descNext, 1}, {at, 4, descWrite, 0}}, "[3] / [4]"},
		{"indirect behind direct", []desc{{at, 1, descNext, 1}, {tables, 16, descIndirect, 0}}, []desc{{at, 2, 0, 0}}, "[1 2] / []"},
		{"indirect of a whole queue", []desc{{tables, 16 * entries, descIndirect, 0}}, []desc{{at, 2, 0, 0}}, "[2] / []"},

		{"head out of range", nil, nil, ""},
		{"next out of range", []desc{{at, 1, descNext, entries}}, nil, ""},
		{"next far out of range", []desc{{at, 1, descNext, 0xffff}}, nil, ""},
		{"itself", []desc{{at, 1, descNext, 0}}, nil, ""},
		{"loop", []desc{{at, 1, descNext, 1}, {at, 1, descNext, 0}}, nil, ""},
		{"loop without bytes", []desc{{at, 0, descNext, 1}, {at, 0, descNext, 0}}, nil, ""},
		{"read behind write", []desc{{at, 1, descNext | descWrite, 1}, {at, 1, 0, 0}}, nil, ""},
		{"below the memory", []desc{{guestBase - 1, 1, 0, 0}}, nil, ""},
		{"across the end", []desc{{guestBase + memBytes - 1, 2, 0, 0}}, nil, ""},
		{"at the end", []desc{{guestBase + memBytes, 1, 0, 0}}, nil, ""},
		{"wraps", []desc{{1<<64 - 1, 1<<32 - 1, 0, 0}}, nil, ""},
		{"the front end's address", []desc{{userBase, 1, 0, 0}}, nil, ""},
		{"nested", []desc{{tables, 16, descIndirect, 0}}, []desc{{tables, 16, descIndirect, 0}}, ""},
		{"indirect goes on", []desc{{tables, 16, descIndirect | descNext, 1}, {at, 1, 0, 0}}, []desc{{at, 1, 0, 0}}, ""},
		{"indirect next out of range", []desc{{tables, 32, descIndirect, 0}}, []desc{{at, 1, descNext, 2}}, ""},
		{"indirect loop", []desc{{tables, 32, descIndirect, 0}}, []desc{{at, 1, descNext, 1}, {at, 1, descNext, 0}}, ""},
		{"indirect read behind write", []desc{{at, 1, descWrite | descNext, 1}, {tables, 16, descIndirect, 0}}, []desc{{at, 1, 0, 0}}, ""},
		{"empty table", []desc{{tables, 0, descIndirect, 0}}, nil, ""},
		{"half a table", []desc{{tables, 24, descIndirect, 0}}, nil, ""},
		{"table outside", []desc{{guestBase + memBytes - 8, 16, descIndirect, 0}}, nil, ""},
		{"table larger than the queue", []desc{{tables, 16 * (entries + 1), descIndirect, 0}}, []desc{{at, 1, 0, 0}}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q, d, mem := newRing(t, 0, 0)
			for i, v := range tt.chain {
				d.desc(i, v)
			}
			for i, v := range tt.indirect {
				putDesc(mem[tables-guestBase+16*i:], v)
			}
			d.offer(0)
			if tt.chain == nil {
				d.mem[availStart+4] = entries
			}
			d.publish(0)
			var c Chain
			ok, err := q.Take(&c)
			if tt.want == "" {
				if !errors.Is(err, ErrRing) {
					t.Errorf("Take() = %v, %v, want %v", ok, err, ErrRing)
				}
				return
			}
			if got := lengths(c); !ok || err != nil || got != tt.want {
				t.Errorf("Take() = %v, %v: %s, want %s", ok, err, got, tt.want)
			}
			if ok, err := q.Take(&c); ok || err != nil {
				t.Errorf("second Take() = %v, %v, want none", ok, err)
			}
		})
	}
}

func lengths(c Chain) string {
	sizes := func(parts [][]byte) []int {
		s := []int{}
		for _, p := range parts {
			s = append(s, len(p))
		}
		return s
	}
	return fmt.Sprint(sizes(c.Read), " / ", sizes(c.Write))
}

// TestAvailableJumps has drivers that offer more than there are descriptors, or take back what they offered.
func TestAvailableJumps(t *testing.T) {
	for _, avail := range []uint16{entries + 1, 0x8000, 0xffff} {
		q, d, _ := newRing(t, 0, 0)
		d.avail = avail
		d.publish(0)
		var c Chain
		if ok, err := q.Take(&c); ok || !errors.Is(err, ErrRing) {
			t.Errorf("Take() with %d chains = %v, %v, want %v", avail, ok, err, ErrRing)
		}
	}
}

// TestIndexesWrap goes round the ring until both indexes have gone round too.
func TestIndexesWrap(t *testing.T) {
	for _, features := range []uint64{0, FeatureEventIdx} {
		q, d, _ := newRing(t, features, 0xfff0)
		for i := range entries {
			d.desc(i, desc{guestBase + buffers, uint32(i + 1), descWrite, 0})
		}
		var c Chain
		for i := range 1 << 16 {
			n := i%entries + 1
			for range n {
				d.offer(d.avail % entries)
			}
			d.publish(d.avail - uint16(n))
			if got := q.Available(); got != n {
				t.Fatalf("Available() = %d, want %d", got, n)
			}
			for range n {
				if ok, err := q.Take(&c); !ok || err != nil || len(c.Write[0]) != int(c.head)+1 {
					t.Fatalf("Take() = %v, %v, %+v", ok, err, c)
				}
				q.Use(&c, uint32(c.head)+7)
			}
			if _, ok := d.takeUsed(); ok {
				t.Fatal("used before it was published")
			}
			if err := q.Publish(); err != nil {
				t.Fatal(err)
			}
			for range n {
				want := usedElem{uint32(d.used % entries), uint32(d.used%entries) + 7}
				if got, ok := d.takeUsed(); !ok || got != want {
					t.Fatalf("used %+v, want %+v", got, want)
				}
			}
		}
	}
}

func TestUntake(t *testing.T) {
	q, d, _ := newRing(t, 0, 0xffff)
	for i := range 3 {
		d.desc(i, desc{guestBase + buffers, uint32(i + 1), 0, 0})
	}
	d.offer(0, 1, 2)
	d.publish(0xffff)
	take := func(want int) {
		t.Helper()
		var c Chain
		if ok, err := q.Take(&c); !ok || err != nil || len(c.Read[0]) != want {
			t.Fatalf("Take() = %v, %v, %+v, want %d bytes", ok, err, c, want)
		}
	}
	take(1)
	take(2)
	take(3)
	q.Untake(2)
	take(2)
	take(3)
}

// TestSignals counts the calls that the driver gets, depending on where it asks for them.
func TestSignals(t *testing.T) {
	publish := func(t *testing.T, q *Queue, d *driver, n int) {
		var c Chain
		for range n {
			d.offer(0)
			d.publish(d.avail - 1)
			if ok, err := q.Take(&c); !ok || err != nil {
				t.Fatalf("Take() = %v, %v", ok, err)
			}
			q.Use(&c, 0)
		}
		if err := q.Publish(); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		base     uint16
		event    uint16 // beyond base: a call when used passes it
		batches  []int
		want     []uint64
		features uint64
	}{
		{0, 0, []int{1, 1, 5}, []uint64{1, 0, 0}, FeatureEventIdx},
		{0, 0, []int{5, 1}, []uint64{1, 0}, FeatureEventIdx},
		{0, 1, []int{1, 1, 1}, []uint64{0, 1, 0}, FeatureEventIdx},
		{0, 4, []int{4, 1, 1}, []uint64{0, 1, 0}, FeatureEventIdx},
		{0, 0xffff, []int{1, 8, 8}, []uint64{0, 0, 0}, FeatureEventIdx}, // the one before: it has gone by
		{0xfffe, 0, []int{1, 1, 1}, []uint64{1, 0, 0}, FeatureEventIdx},
		{0xfffe, 1, []int{1, 1, 1}, []uint64{0, 1, 0}, FeatureEventIdx},
		{0xfffe, 2, []int{1, 1, 1}, []uint64{0, 0, 1}, FeatureEventIdx},
		{0xfffe, 3, []int{8, 1}, []uint64{1, 0}, FeatureEventIdx},
		{0, 0xffff, []int{1, 1, 8}, []uint64{1, 1, 1}, 0},
		{0xfffe, 0, []int{0, 1, 0, 8}, []uint64{0, 1, 0, 1}, 0},
	} {
		q, d, _ := newRing(t, tt.features, tt.base)
		d.desc(0, desc{guestBase + buffers, 1, 0, 0})
		d.askForCall(tt.base + tt.event)
		for i, n := range tt.batches {
			publish(t, q, d, n)
			if got := rung(d.calls); got != tt.want[i] {
				t.Errorf("%+v: %d calls after batch %d, want %d", tt, got, i, tt.want[i])
			}
		}
	}

	q, d, _ := newRing(t, 0, 0)
	d.desc(0, desc{guestBase + buffers, 1, 0, 0})
	*d.word(availStart) |= availNoInterrupt
	publish(t, q, d, 3)
	if got := rung(d.calls); got != 0 {
		t.Errorf("%d calls with a driver that wants none", got)
	}
	for err := error(nil); err == nil; { // until it is full
		_, err = unix.Write(q.call, make([]byte, 4096))
	}
	*d.word(availStart) &^= availNoInterrupt
	publish(t, q, d, 1)
}

// TestAskForKick checks what the driver is asked for, and that the device sees what came in between.
func TestAskForKick(t *testing.T) {
	for _, features := range []uint64{0, FeatureEventIdx} {
		q, d, _ := newRing(t, features, 0xffff)
		d.desc(0, desc{guestBase + buffers, 1, 0, 0})
		var c Chain
		for range 3 {
			if q.AskForKick() {
				t.Errorf("features %#x: AskForKick() = true, nothing was offered", features)
			}
			d.offer(0)
			if !d.publish(d.avail - 1) {
				t.Errorf("features %#x: the driver does not kick", features)
			}
			if !q.AskForKick() {
				t.Errorf("features %#x: AskForKick() = false, one was offered", features)
			}
			q.RefuseKicks()
			if ok, err := q.Take(&c); !ok || err != nil {
				t.Fatalf("Take() = %v, %v", ok, err)
			}
			q.Use(&c, 0)
			if err := q.Publish(); err != nil {
				t.Fatal(err)
			}
			if got := d.usedIndex(); got != d.avail {
				t.Errorf("features %#x: used index %d, want %d", features, got, d.avail)
			}
			d.offer(0)
			if d.publish(d.avail - 1) {
				t.Errorf("features %#x: the driver kicks although it was asked not to", features)
			}
			if ok, err := q.Take(&c); !ok || err != nil {
				t.Fatalf("Take() = %v, %v", ok, err)
			}
			q.Use(&c, 0)
			q.Publish()
		}
	}
}

// TestRingAllocations checks that a queue in its steady state makes no garbage.
func TestRingAllocations(t *testing.T) {
	q, d, _ := newRing(t, FeatureEventIdx, 0)
	d.desc(0, desc{guestBase + buffers, 1, descNext, 1})
	d.desc(1, desc{guestBase + buffers, 1, descWrite, 0})
	var c Chain
	use := func() error {
		d.offer(0)
		d.publish(d.avail - 1)
		if _, err := q.Take(&c); err != nil {
			return err
		}
		q.Use(&c, 1)
		return q.Publish()
	}
	if got := testing.AllocsPerRun(100, func() {
		if err := Guard(use); err != nil {
			t.Error(err)
		}
	}); got != 0 {
		t.Errorf("a chain costs %v allocations, want 0", got)
	}
}

// FuzzRing lets a device serve a ring of random bytes.
func FuzzRing(f *testing.F) {
	at := uint64(guestBase + buffers)
	ring := func(descs ...desc) []byte {
		b := make([]byte, 16*entries)
		for i, v := range descs {
			putDesc(b[16*i:], v)
		}
		return b
	}
	f.Add(uint16(1), []byte{0, 0, 1, 0}, ring(desc{at, 100, descNext, 1}, desc{at, 100, descWrite, 0}), false)
	f.Add(uint16(2), []byte{1, 0, 0, 0}, ring(desc{guestBase, 32, descIndirect, 0}, desc{at, 100, 0, 0}), true)
	f.Fuzz(func(t *testing.T, avail uint16, heads, table []byte, eventIdx bool) {
		features := uint64(0)
		if eventIdx {
			features = FeatureEventIdx
		}
		q, d, mem := newRing(t, features, avail-entries)
		d.avail = avail
		d.publish(0)
		copy(mem[availStart+4:availStart+4+2*entries], heads)
		copy(mem[:availStart], table)
		var c Chain
		for {
			ok, err := q.Take(&c)
			if err != nil && !errors.Is(err, ErrRing) {
				t.Fatal(err)
			}
			if !ok {
				break
			}
			for _, parts := range [][][]byte{c.Read, c.Write} {
				for _, p := range parts {
					if len(p) == 0 || len(p) > memBytes || cap(p) != len(p) {
						t.Fatalf("part of %d bytes, %d possible", len(p), cap(p))
					}
				}
			}
			for _, p := range c.Write {
				clear(p) // also the ring itself
			}
			q.Use(&c, 1)
			if err := q.Publish(); err != nil {
				t.Fatal(err)
			}
		}
		q.AskForKick()
		q.RefuseKicks()
	})
}
