package vport

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"docker-usermode-linux/internal/vhostuser/vhostusertest"
)

func TestSizes(t *testing.T) {
	_, _, conn, program := open(t)
	var sizes []int
	for _, n := range []int{1, 2, 8, 100, 4096, 8192, 32 << 10, 64 << 10, 256 * 4096, 256 * 32 << 10} {
		sizes = append(sizes, n-1, n, n+1)
	}
	random := rand.NewChaCha8([32]byte{})
	for _, way := range []struct {
		name string
		from io.Writer
		to   io.Reader
	}{{"to guest", conn, program}, {"from guest", program, conn}} {
		for _, size := range sizes {
			want, got := make([]byte, size), make([]byte, size)
			random.Read(want)
			writing := inBackground(way.from.Write, want)
			if _, err := io.ReadFull(way.to, got); err != nil {
				t.Fatal(err)
			}
			if w := wait(t, "Write() returns", writing); w.n != size || w.err != nil {
				t.Fatalf("%s: Write() of %d bytes = %d, %v", way.name, size, w.n, w.err)
			}
			if !bytes.Equal(got, want) {
				t.Fatalf("%s: %d bytes differ", way.name, size)
			}
		}
	}
}

// TestStream sends 64 MiB both ways at once, in pieces of all sizes.
func TestStream(t *testing.T) {
	const total = 64 << 20
	_, _, conn, program := open(t)
	type sum [sha256.Size]byte
	pieces := func(seed byte) func(buffer []byte) []byte {
		random := rand.New(rand.NewChaCha8([32]byte{seed}))
		return func(buffer []byte) []byte { return buffer[:1+random.IntN(1<<(1+random.IntN(17)))] }
	}
	send := func(w io.Writer, seed byte, done chan<- sum) {
		random := rand.NewChaCha8([32]byte{seed, 1})
		hash, piece, buffer := sha256.New(), pieces(seed), make([]byte, 1<<17)
		for left := total; left > 0; {
			b := piece(buffer)
			b = b[:min(len(b), left)]
			random.Read(b)
			hash.Write(b)
			if n, err := w.Write(b); n != len(b) || err != nil {
				t.Errorf("Write() = %d, %v, want %d", n, err, len(b))
				break
			}
			left -= len(b)
		}
		done <- sum(hash.Sum(nil))
	}
	receive := func(r io.Reader, seed byte, done chan<- sum) {
		hash, piece, buffer := sha256.New(), pieces(seed), make([]byte, 1<<17)
		for left := total; left > 0; {
			b := piece(buffer)
			n, err := r.Read(b[:min(len(b), left)])
			if err != nil {
				t.Errorf("Read() = %v", err)
				break
			}
			hash.Write(b[:n])
			left -= n
		}
		done <- sum(hash.Sum(nil))
	}
	sent, received := [2]chan sum{}, [2]chan sum{}
	for i, way := range []struct {
		from io.Writer
		to   io.Reader
	}{{conn, program}, {program, conn}} {
		sent[i], received[i] = make(chan sum, 1), make(chan sum, 1)
		go send(way.from, byte(i), sent[i])
		go receive(way.to, byte(10+i), received[i])
	}
	for i := range sent {
		if want, got := wait(t, "all is sent", sent[i]), wait(t, "all is received", received[i]); got != want {
			t.Errorf("direction %d: sum = %x, want %x", i, got, want)
		}
	}
}

// TestBackPressure has an end that does not read. The other one's Write has to wait, and nothing may be lost.
func TestBackPressure(t *testing.T) {
	for _, way := range []string{"to guest", "from guest"} {
		_, _, conn, program := open(t)
		from, to, holds := io.ReadWriteCloser(conn), program, vhostusertest.Entries*4096
		if way == "from guest" {
			from, to, holds = program, conn, vhostusertest.Entries*32<<10
		}
		want := make([]byte, holds+100000)
		rand.NewChaCha8([32]byte{}).Read(want)
		if got := wait(t, "what the queue holds is written", inBackground(from.Write, want[:holds])); got.err != nil {
			t.Fatal(got.err)
		}
		writing := inBackground(from.Write, want[holds:])
		select {
		case got := <-writing:
			t.Errorf("%s: Write() = %d, %v, want it to wait", way, got.n, got.err)
		case <-time.After(moment):
		}
		got := make([]byte, len(want))
		if _, err := io.ReadFull(to, got); err != nil {
			t.Fatal(err)
		}
		if w := wait(t, "Write() goes on", writing); w.err != nil {
			t.Errorf("%s: Write() = %d, %v", way, w.n, w.err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: the bytes differ", way)
		}
	}
}

// TestWaitersEnd closes either end while both wait to read, and to write.
func TestWaitersEnd(t *testing.T) {
	for _, who := range []string{"host", "guest"} {
		_, _, conn, program := open(t)
		big := make([]byte, 10<<20)
		var waiting []<-chan result
		for _, f := range []func([]byte) (int, error){conn.Write, program.Write} {
			waiting = append(waiting, inBackground(f, big))
		}
		time.Sleep(moment)
		if who == "host" {
			conn.Close()
			if got := wait(t, "the host's Write() ends", waiting[0]); !errors.Is(got.err, net.ErrClosed) || got.n != 256*4096 {
				t.Errorf("Write() = %d, %v, want %d, %v", got.n, got.err, 256*4096, net.ErrClosed)
			}
			program.Close()
		} else {
			program.Close()
		}
		for _, w := range waiting[map[string]int{"host": 1, "guest": 0}[who]:] {
			if got := wait(t, "all Writes end", w); !errors.Is(got.err, net.ErrClosed) && !errors.Is(got.err, os.ErrClosed) {
				t.Errorf("%s closes: Write() = %d, %v", who, got.n, got.err)
			}
		}
	}
	_, _, conn, program := open(t)
	host, guest := inBackground(conn.Read, make([]byte, 1)), inBackground(program.Read, make([]byte, 1))
	time.Sleep(moment)
	program.Close()
	if got := wait(t, "the guest's Read() ends", guest); !errors.Is(got.err, os.ErrClosed) {
		t.Errorf("the guest's Read() = %v, want %v", got.err, os.ErrClosed)
	}
	if got := wait(t, "the host's Read() ends", host); got.err != io.EOF {
		t.Errorf("Read() = %v, want %v", got.err, io.EOF)
	}
}

// TestPingPong has both ends sleep before each message: a lost wake-up hangs.
func TestPingPong(t *testing.T) {
	_, _, conn, program := open(t)
	const rounds = 20000
	echoed := make(chan error, 1)
	go func() {
		b := make([]byte, 10)
		for range rounds {
			if _, err := io.ReadFull(program, b); err != nil {
				echoed <- err
				return
			}
			if _, err := program.Write(b); err != nil {
				echoed <- err
				return
			}
		}
		echoed <- nil
	}()
	for i := range rounds {
		want := fmt.Appendf(nil, "%10d", i)
		write(t, conn, string(want))
		expect(t, conn, string(want))
	}
	if err := wait(t, "the echo ends", echoed); err != nil {
		t.Error(err)
	}
}

// TestParts has chains of many parts, in an indirect table as Linux's splice(2) makes them, of no length, and buffers of
// one byte.
func TestParts(t *testing.T) {
	p := startPort(t)
	g := connectRaw(t, p)
	g.tell(portID, eventPortOpen, 1)
	g.await(t, queueControlFromGuest)
	conn := p.accept(t)
	const in = queueFromGuest
	g.part(in, 10, []byte("one "), vhostusertest.Next, 200)
	g.part(in, 200, nil, vhostusertest.Next, 11)
	g.part(in, 11, []byte("two "), vhostusertest.Next, 12)
	g.part(in, 12, []byte("three "), 0, 0)
	table := g.part(in, 20, make([]byte, 3*16), vhostusertest.Indirect, 0)
	for i, s := range []string{"four ", "five ", "six "} {
		g.part(in, 21, []byte(s), vhostusertest.Next*uint16(min(2-i, 1)), uint16(i+1))
		copy(table[16*i:], g.Mem[in*vhostusertest.RingBytes+16*21:][:16])
	}
	g.part(in, 30, nil, 0, 0)
	g.part(in, 31, []byte("seven"), 0, 0)
	for _, head := range []uint16{30, 10, 30, 20, 30, 31, 30} {
		g.Rings[in].Offer(head)
	}
	g.Rings[in].Publish()
	for _, want := range []string{"o", "ne t", "wo three f", "our five", " six seve", "n"} {
		expect(t, conn, want)
	}

	const out = queueToGuest
	var got [][]byte
	for i := range uint16(7) {
		size, flags, next := []int{1, 1, 0, 3, 0, 5, 0}[i], uint16(vhostusertest.Write), uint16(0)
		if i == 1 || i == 2 { // a chain of 1, 2 and 3
			flags, next = flags|vhostusertest.Next, i+1
		}
		got = append(got, g.part(out, i, make([]byte, size), flags, next))
	}
	for _, head := range []uint16{4, 0, 1, 6, 5} {
		g.Rings[out].Offer(head)
	}
	g.Rings[out].Publish()
	write(t, conn, "abcdefgh")
	if s := string(slices.Concat(got...)); s != "abcdefgh\x00\x00" {
		t.Errorf("the guest has %q", s)
	}
	for _, want := range []uint32{0, 1, 4, 0, 3} {
		if n := g.await(t, out); n != want {
			t.Errorf("the guest sees %d bytes, want %d", n, want)
		}
	}
}

func TestConnIsOne(t *testing.T) {
	_, _, conn, _ := open(t)
	if n, err := conn.Read(nil); n != 0 || err != nil {
		t.Errorf("Read(nil) = %d, %v", n, err)
	}
	if n, err := conn.Write(nil); n != 0 || err != nil {
		t.Errorf("Write(nil) = %d, %v", n, err)
	}
	for _, f := range []func(time.Time) error{conn.SetDeadline, conn.SetReadDeadline, conn.SetWriteDeadline} {
		if err := f(time.Time{}); !errors.Is(err, os.ErrNoDeadline) {
			t.Errorf("deadline = %v, want %v", err, os.ErrNoDeadline)
		}
	}
	for _, a := range []net.Addr{conn.LocalAddr(), conn.RemoteAddr()} {
		if a.Network() != "vport" || a.String() != "vport0p0" {
			t.Errorf("address = %s %s", a.Network(), a)
		}
	}
}

// TestAllocations reads and writes in one go, with no goroutine that could allocate meanwhile.
func TestAllocations(t *testing.T) {
	_, _, conn, program := open(t)
	b := make([]byte, 32<<10)
	if got := testing.AllocsPerRun(1000, func() {
		if _, err := program.Write(b); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, b); err != nil {
			t.Fatal(err)
		}
	}); got != 0 {
		t.Errorf("Read() of 32 KiB allocates %v times, want 0", got)
	}
	if got := testing.AllocsPerRun(1000, func() {
		if _, err := conn.Write(b); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(program, b); err != nil {
			t.Fatal(err)
		}
	}); got != 0 {
		t.Errorf("Write() of 32 KiB allocates %v times, want 0", got)
	}
}

func BenchmarkThroughput(b *testing.B) {
	for _, way := range []string{"to guest", "from guest"} {
		b.Run(way, func(b *testing.B) {
			_, _, conn, program := open(b)
			from, to := io.ReadWriteCloser(conn), program
			if way == "from guest" {
				from, to = program, conn
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				buffer := make([]byte, 32<<10)
				for {
					if _, err := to.Read(buffer); err != nil {
						return
					}
				}
			}()
			buffer := make([]byte, 32<<10)
			b.SetBytes(int64(len(buffer)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := from.Write(buffer); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			program.Close()
			<-done
		})
	}
}
