package slirp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// pcapFile is a file in memory that can be read while it is written.
type pcapFile struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (f *pcapFile) Write(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.buf.Write(b)
}

// frame is a record of a capture.
type frame struct {
	time time.Time
	size int
	data []byte
}

// frames parses the file as far as it is written.
func (f *pcapFile) frames(t *testing.T) []frame {
	t.Helper()
	f.mu.Lock()
	b := bytes.Clone(f.buf.Bytes())
	f.mu.Unlock()
	if len(b) == 0 {
		return nil
	}
	le := binary.LittleEndian
	want := []byte("\x4d\x3c\xb2\xa1\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x04\x00\x01\x00\x00\x00")
	if len(b) < len(want) || !bytes.Equal(b[:len(want)], want) {
		t.Fatalf("file header = %x, want %x", b[:min(len(b), len(want))], want)
	}
	var all []frame
	for b = b[len(want):]; len(b) > 0; {
		if len(b) < recordBytes {
			t.Fatalf("%d bytes after the last frame", len(b))
		}
		kept := int(le.Uint32(b[8:]))
		f := frame{
			time: time.Unix(int64(le.Uint32(b)), int64(le.Uint32(b[4:]))),
			size: int(le.Uint32(b[12:])),
		}
		b = b[recordBytes:]
		if kept > f.size || kept > len(b) {
			t.Fatalf("%d of %d bytes are kept, the file has %d", kept, f.size, len(b))
		}
		f.data, b = b[:kept], b[kept:]
		all = append(all, f)
	}
	return all
}

// TestPcap checks that the capture has every frame of a connection, both ways, in order and with its Ethernet header.
func TestPcap(t *testing.T) {
	var file pcapFile
	began := time.Now()
	b := newBridge(t, Options{Policy: testPolicy, Pcap: &file}, nil)
	guest, host := guestToHost(t, b)
	text := strings.Repeat("to the guest ", 10_000)
	done := make(chan error, 1)
	go func() { _, err := io.WriteString(host, text); done <- err }()
	expectRead(t, guest, text)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(guest, "to the host"); err != nil {
		t.Fatal(err)
	}
	expectRead(t, host, "to the host")
	// Without waiting for more, or for the end.
	eventually(t, "the file has the data", func() bool {
		return slices.ContainsFunc(file.frames(t), func(f frame) bool { return bytes.HasSuffix(f.data, []byte("to the host")) })
	})
	b.Close()
	if err := within(t, "Run", func() error { return <-b.done }); err != nil {
		t.Errorf("Run() = %v", err)
	}
	b.done <- nil // for the cleanup

	var fromGuest, arp int
	var toGuest strings.Builder
	last := began.Add(-time.Millisecond)
	for i, f := range file.frames(t) {
		eth := header.Ethernet(f.data)
		if len(f.data) != f.size || f.size < header.EthernetMinimumSize {
			t.Fatalf("frame %d: %d of %d bytes are kept", i, len(f.data), f.size)
		}
		if f.time.Before(last) || f.time.After(time.Now()) {
			t.Errorf("frame %d: time %v after %v", i, f.time, last)
		}
		last = f.time
		if eth.Type() == header.ARPProtocolNumber {
			arp++
			continue
		}
		ip := header.IPv4(f.data[header.EthernetMinimumSize:])
		if !ip.IsValid(len(ip)) || int(ip.TotalLength()) != len(ip) {
			t.Fatalf("frame %d: bad IPv4 header: %x", i, []byte(ip))
		}
		switch src := eth.SourceAddress(); src {
		case linkAddress(GuestMAC):
			fromGuest++
		case linkAddress(GatewayMAC):
			toGuest.Write(header.TCP(ip.Payload()).Payload())
		default:
			t.Errorf("frame %d: from %s", i, src)
		}
	}
	if arp == 0 || fromGuest == 0 {
		t.Errorf("%d ARP frames, %d IP frames from the guest", arp, fromGuest)
	}
	if toGuest.String() != text {
		t.Errorf("the capture has %d bytes of data to the guest, want the %d that were sent", toGuest.Len(), len(text))
	}
	if s := b.Snapshot(); s.PcapDropped != 0 {
		t.Errorf("%d frames dropped", s.PcapDropped)
	}
}

// stuckWriter blocks every write until it is told what to return.
type stuckWriter chan error

func (w stuckWriter) Write(b []byte) (int, error) { return len(b), <-w }

// TestPcapStuck checks that a file that takes nothing costs frames of the capture, not time of the guest, and that its
// failure is no one else's.
func TestPcapStuck(t *testing.T) {
	w := make(stuckWriter)
	b := newBridge(t, Options{Policy: testPolicy, Pcap: w}, nil)
	payload := make([]byte, 60_000)
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(payload)})
	defer pkt.DecRef()
	within(t, "add", func() bool {
		for range 2*captureBytes/len(payload) + 2 {
			b.capture.add(pkt)
		}
		return true
	})
	dropped := b.Snapshot().PcapDropped
	if dropped == 0 {
		t.Error("nothing is dropped, though nothing can be written")
	}
	guest, host := guestToHost(t, b)
	io.WriteString(guest, "still here")
	expectRead(t, host, "still here")
	w <- errors.New("no space left on device")
	eventually(t, "frames are only counted", func() bool {
		b.capture.mu.Lock()
		defer b.capture.mu.Unlock()
		return b.capture.failed
	})
	io.WriteString(host, "and here")
	expectRead(t, guest, "and here")
	if s := b.Snapshot(); s.PcapDropped <= dropped || s.FramesDroppedIn+s.FramesDroppedOut != 0 {
		t.Errorf("Snapshot() = %+v, want more than %d dropped in the capture, none on the link", s, dropped)
	}
}

// TestPcapSnap checks that what is above the limit is cut, and that the file tells the size of the whole.
func TestPcapSnap(t *testing.T) {
	n := &Network{now: time.Now}
	c := newCapture(io.Discard, n)
	header := len(c.pending)
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: 2, Payload: buffer.MakeWithData(make([]byte, snapBytes)),
	})
	defer pkt.DecRef()
	copy(pkt.LinkHeader().Push(1), "x")
	c.add(pkt)
	record := c.pending[header:]
	if kept, size := binary.LittleEndian.Uint32(record[8:]), binary.LittleEndian.Uint32(record[12:]); kept != snapBytes ||
		size != snapBytes+1 || len(record) != recordBytes+snapBytes || record[recordBytes] != 'x' {
		t.Errorf("%d of %d bytes kept in a record of %d that begins with %q", kept, size, len(record), record[recordBytes])
	}
}
