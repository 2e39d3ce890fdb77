package slirp

import (
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Both netstacks, the bridge's and the fake guest's, run in this process and share its CPUs: the numbers compare
// versions of the bridge, they are not what a guest kernel reaches.

func BenchmarkTCPGuestToHost(b *testing.B) {
	br := newBridge(b, Options{Policy: testPolicy}, nil)
	guest, host := guestToHost(b, br)
	stream(b, guest, host)
}

func BenchmarkTCPHostToGuest(b *testing.B) {
	br := newBridge(b, Options{Policy: testPolicy}, nil)
	guest, host := guestToHost(b, br)
	stream(b, host, guest)
}

// stream measures writing 64 KiB blocks.
func stream(b *testing.B, from, to io.ReadWriter) {
	block := make([]byte, 64<<10)
	total := 0
	done := make(chan struct{})
	b.SetBytes(int64(len(block)))
	b.ReportAllocs()
	go func() {
		defer close(done)
		buf := make([]byte, 256<<10)
		for {
			n, err := to.Read(buf)
			if total += n; err != nil {
				return
			}
		}
	}()
	sent, cpu := 0, cpuTime()
	for b.Loop() {
		n, err := from.Write(block)
		if err != nil {
			b.Fatal(err)
		}
		sent += n
	}
	b.ReportMetric(float64((cpuTime()-cpu).Nanoseconds())/float64(sent>>10), "cpu-ns/KiB")
	from.(duplex).CloseWrite()
	<-done
	if total != sent {
		b.Fatalf("%d of %d bytes arrived", total, sent)
	}
}

// BenchmarkTCPRoundTrip is a byte there and back.
func BenchmarkTCPRoundTrip(b *testing.B) {
	br := newBridge(b, Options{Policy: testPolicy}, nil)
	guest, host := guestToHost(b, br)
	go io.Copy(host, host)
	buf := make([]byte, 1)
	b.ReportAllocs()
	for b.Loop() {
		guest.Write(buf)
		if _, err := io.ReadFull(guest, buf); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkTCPConnect is a connection, forwarded, one after the other.
func BenchmarkTCPConnect(b *testing.B) {
	o, addr := forwardOptions(b, TCP, 80)
	br := newBridge(b, o, nil)
	l, err := br.guest.ListenTCP(80)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Write([]byte{1})
			c.Close()
		}
	}()
	b.ReportAllocs()
	for b.Loop() {
		c, err := net.Dial("tcp4", addr.String())
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
}

// cpuTime is what this process has used. On a busy machine it compares better than the time that passed.
func cpuTime() time.Duration {
	var u unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
