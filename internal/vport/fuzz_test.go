package vport

import (
	"encoding/binary"
	"errors"
	"runtime"
	"sync"
	"testing"

	"docker-usermode-linux/internal/vhostuser"
	"docker-usermode-linux/internal/vhostuser/vhostusertest"
)

// serve is a host that answers whoever opens the port, until the end.
func (p *testPort) serve(serving *sync.WaitGroup) {
	for {
		conn, err := p.Accept()
		if err != nil {
			return
		}
		serving.Go(func() {
			b := make([]byte, 1000)
			for {
				n, err := conn.Read(b)
				if err != nil {
					return
				}
				if b[0] == 'c' {
					conn.Close()
				}
				if _, err := conn.Write(b[:n]); err != nil {
					return
				}
			}
		})
	}
}

// checkEnd ends a port, whatever its guest has done.
func (p *testPort) checkEnd(t *testing.T, serving *sync.WaitGroup) {
	t.Helper()
	p.Close()
	err := p.end(t)
	if err != nil && !errors.Is(err, ErrDriver) && !errors.Is(err, vhostuser.ErrRing) {
		t.Errorf("Run() = %v", err)
	}
	serving.Wait()
}

// FuzzControl has a driver that sends messages in any order, with data between them. Each step is a byte that says what,
// one with a length, and so many bytes.
func FuzzControl(f *testing.F) {
	step := func(what byte, b []byte) []byte { return append([]byte{what, byte(len(b))}, b...) }
	control := func(id uint32, event, value uint16) []byte { return step(0, message(id, event, value)) }
	var whole []byte
	for _, b := range [][]byte{
		control(1<<32-1, eventDeviceReady, 1),
		step(2, make([]byte, 100)),
		control(0, eventPortReady, 1),
		step(2, make([]byte, 100)),
		step(2, make([]byte, 100)),
		control(0, eventPortOpen, 1),
		step(1, []byte("hello")),
		step(3, make([]byte, 3)),
		control(0, eventPortOpen, 0),
		control(0, eventPortOpen, 1),
		step(1, []byte("close")),
		step(3, make([]byte, 200)),
		control(0, eventPortOpen, 0),
	} {
		whole = append(whole, b...)
	}
	f.Add(whole)
	f.Add(control(0, eventPortReady, 0))
	f.Add(step(0, make([]byte, 7)))
	f.Fuzz(func(t *testing.T, script []byte) {
		p := startPort(t)
		g := connectRaw(t, p)
		var serving sync.WaitGroup
		serving.Go(func() { p.serve(&serving) })
		messages := 0
		for i := uint16(0); len(script) >= 2 && i < vhostusertest.Entries; i++ {
			size := min(int(script[1]), len(script)-2)
			content := script[2 : 2+size]
			switch script[0] % 4 {
			case 0:
				g.offer(queueControlFromGuest, i, content, 0)
				messages++
			case 1:
				g.offer(queueFromGuest, i, content, 0)
			case 2:
				g.offer(queueControlToGuest, i, content, vhostusertest.Write)
			case 3:
				g.offer(queueToGuest, i, content, vhostusertest.Write)
			}
			script = script[2+size:]
		}
		for messages > 0 && len(p.done) == 0 { // each is acted upon, or ends the port
			if _, _, ok := g.Rings[queueControlFromGuest].Used(); ok {
				messages--
			}
			runtime.Gosched()
		}
		p.checkEnd(t, &serving)
	})
}

// FuzzRings has random bytes in all rings, while the host reads and writes.
func FuzzRings(f *testing.F) {
	desc := func(addr uint64, length uint32, flags, next uint16) []byte {
		b := binary.LittleEndian.AppendUint64(nil, addr)
		b = binary.LittleEndian.AppendUint32(b, length)
		return binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16(b, flags), next)
	}
	const at = vhostusertest.Base + numQueues*vhostusertest.RingBytes
	chain := append(desc(at, 10, vhostusertest.Next, 1), desc(at, 100, 0, 0)...)
	f.Add(uint64(0x0001_0001_0008_0002), desc(at, 4096, vhostusertest.Write, 0), chain, desc(at, 100, 2, 0), desc(at, 8, 0, 0), message(0, eventPortOpen, 1))
	f.Add(uint64(0x0001_0000_012c_0001), []byte{}, desc(vhostusertest.Base, 32, vhostusertest.Indirect, 0), []byte{}, desc(at, 8, 0, 0), message(0, eventPortOpen, 1))
	f.Add(uint64(0x0002_0001_0001_0001), chain, chain, chain, chain, message(0, eventPortReady, 1))
	f.Fuzz(func(t *testing.T, avail uint64, toGuest, fromGuest, controlToGuest, controlFromGuest, content []byte) {
		p := startPort(t)
		g := connectRaw(t, p)
		copy(g.Mem[numQueues*vhostusertest.RingBytes:], content)
		for i, table := range [][]byte{toGuest, fromGuest, controlToGuest, controlFromGuest} {
			ring := g.Mem[i*vhostusertest.RingBytes:]
			copy(ring[:16*vhostusertest.Entries], table)
			binary.LittleEndian.PutUint16(ring[16*vhostusertest.Entries+2:], uint16(avail>>(16*i)))
		}
		var serving sync.WaitGroup
		serving.Go(func() { p.serve(&serving) })
		for range 2 {
			for _, i := range []int{queueControlFromGuest, queueControlToGuest, queueFromGuest, queueToGuest} {
				g.Rings[i].Kick()
			}
			_, _ = g.Config(0) // some time for the device
		}
		p.checkEnd(t, &serving)
	})
}
