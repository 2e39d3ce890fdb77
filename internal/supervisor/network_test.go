package supervisor

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"docker-usermode-linux/internal/config"
)

// hang is more than anything here takes.
const hang = 30 * time.Second

// TestCaptureToPipe has NET_PCAP name a pipe that nobody reads, then somebody, then nobody again.
func TestCaptureToPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	opened := make(chan *guestNet, 1)
	go func() {
		n, err := openNetwork(config.Config{Net: true, NetPcap: path}, t.TempDir(), false, zerolog.Nop())
		if err != nil {
			t.Error(err)
		}
		opened <- n
	}()
	var n *guestNet
	select {
	case n = <-opened:
	case <-time.After(hang):
		t.Fatal("the start waits for a reader")
	}
	if t.Failed() {
		return
	}
	data := bytes.Repeat([]byte("frame "), 1<<16) // more than fits into a pipe
	written := make(chan error, 1)
	write := func() {
		_, err := n.capture.Write(data)
		written <- err
	}
	go write()
	reader, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(data))
	if _, err := io.ReadFull(reader, got); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the reader gets something else than was written: %v", err)
	}
	if err := <-written; err != nil {
		t.Errorf("write: %v", err)
	}
	reader.Close()

	go write()
	select {
	case err := <-written:
		t.Errorf("a write without a reader returns %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	n.close()
	select {
	case err := <-written:
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("a write that close breaks off returns %v", err)
		}
	case <-time.After(hang):
		t.Error("close does not end a write")
	}
}

// TestPortsTaken checks that ports that cannot be had are told with their setting and the mend, each on its line.
func TestPortsTaken(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken := l.Addr().(*net.TCPAddr).AddrPort()
	_, err = openNetwork(config.Config{Net: true, Ports: []config.Forward{
		{HostAddr: taken.Addr(), HostPort: taken.Port(), GuestPort: 80, Count: 1},
		{Proto: config.UDP, HostAddr: netip.MustParseAddr("192.0.2.1"), HostPort: 8080, GuestPort: 80, Count: 1},
	}}, t.TempDir(), false, zerolog.Nop())
	if err == nil {
		t.Fatal("openNetwork() = nil, want an error")
	}
	want := regexp.MustCompile(fmt.Sprintf(`^PORTS: listen on tcp %s: already taken by .*; `+
		`forward another port of the container, or exclude this with ~%d/tcp
PORTS: listen on udp 192\.0\.2\.1:8080: 192\.0\.2\.1 is not one of this host's addresses$`, taken, taken.Port()))
	if !want.MatchString(err.Error()) {
		t.Errorf("openNetwork() =\n%v\nwant\n%s", err, want)
	}
}
