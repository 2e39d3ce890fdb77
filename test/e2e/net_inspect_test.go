package e2e

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestNetInspect looks into a guest's network with what we offer for that.
func TestNetInspect(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	dir := t.TempDir()
	c, own, _ := l.guest(t, "-e", "PORTS=7000/tcp+udp 8000-8009", "-e", "NET_METRICS=:9100", "-e", "NET_PCAP=/pcap/net.pcap",
		"-v", dir+":/pcap")
	wants(t, "a client", peerTalk(t, l.peer, "tcp", own+":7000", "who"), l.addr)
	wants(t, "a client by UDP", peerTalk(t, l.peer, "udp", own+":7000", "who"), l.addr)
	wants(t, "a peer", c.talk("udp4", "peer:7000", "who"), own)

	table := docker(t, "exec", c.id, "/entrypoint", "net")
	for _, want := range []string{"Network", "*:8000-8009", "INITIATOR", "10.0.2.15:7000", l.addr, "LINK"} {
		if !strings.Contains(table, want) {
			t.Errorf("no %q in the table of entrypoint net:\n%s", want, table)
		}
	}
	i := c.inspect()
	if !i.Up || len(i.Forwards) != 3 || i.Forwards[1].Clients != 1 || i.Counters.TCPFlows == 0 || i.Counters.UDPFlows < 2 {
		t.Errorf("entrypoint net --json = %+v", i)
	}
	metrics := docker(t, "exec", l.peer, "/peer", "get", "http://"+own+":9100/metrics")
	for _, want := range []string{
		"\numl_net_up 1", "\numl_net_drops_total 0\n",
		"\n" + `uml_net_forward_clients_total{guest="7000",host="*:7000",proto="udp"} 1` + "\n",
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("no %q in the metrics:\n%s", want, metrics)
		}
	}
	c.noDrops()

	if code := c.stop(); code != "0" {
		t.Errorf("exit code %s after docker stop, want 0", code)
	}
	capture, err := os.ReadFile(filepath.Join(dir, "net.pcap"))
	if err != nil {
		t.Fatal(err)
	}
	frames := readPcap(t, capture)
	// A query of the guest's for its peer, to the name server.
	query := []byte("\x04peer\x00")
	for _, f := range frames {
		if len(f) > 42 && binary.BigEndian.Uint16(f[12:]) == 0x0800 && f[23] == 17 &&
			bytes.Equal(f[30:34], []byte{10, 0, 2, 3}) && bytes.Contains(f[42:], query) {
			return
		}
	}
	t.Errorf("no DNS query for the peer in the %d frames of the capture", len(frames))
}

// readPcap returns the frames of a capture, whose header it checks (draft-ietf-opsawg-pcap).
func readPcap(t *testing.T, data []byte) (frames [][]byte) {
	t.Helper()
	const nanoseconds, ethernet = 0xa1b23c4d, 1
	le := binary.LittleEndian
	if len(data) < 24 || le.Uint32(data) != nanoseconds || le.Uint32(data[20:]) != ethernet {
		t.Fatalf("the capture begins with %x", data[:min(24, len(data))])
	}
	for data = data[24:]; len(data) > 0; {
		if len(data) < 16 || len(data) < 16+int(le.Uint32(data[8:])) {
			t.Fatalf("the capture is cut off within a frame")
		}
		size := 16 + int(le.Uint32(data[8:]))
		frames = append(frames, data[16:size])
		data = data[size:]
	}
	return frames
}
