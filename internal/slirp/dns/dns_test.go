package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

const hang = 60 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server is a name server on a loopback address that answers with what its function makes of a query; nil is silence.
type server struct {
	addr    netip.Addr
	queries atomic.Int32
}

// startServers starts servers on 127.0.0.1, .2 ... with one port for all, for UDP and TCP, and returns the port.
func startServers(t testing.TB, answer ...func(query []byte) []byte) ([]*server, uint16) {
	t.Helper()
	var port uint16
	var servers []*server
	for i, f := range answer {
		s := &server{addr: netip.AddrFrom4([4]byte{127, 0, 0, byte(i + 1)})}
		udp, tcp := listenBoth(t, s.addr, port)
		port = uint16(udp.LocalAddr().(*net.UDPAddr).Port)
		var done sync.WaitGroup
		done.Go(func() {
			buf := make([]byte, 1<<16)
			for {
				n, from, err := udp.ReadFrom(buf)
				if err != nil {
					return
				}
				s.queries.Add(1)
				if a := f(bytes.Clone(buf[:n])); a != nil {
					udp.WriteTo(a, from)
				}
			}
		})
		done.Go(func() {
			for {
				c, err := tcp.Accept()
				if err != nil {
					return
				}
				done.Go(func() {
					defer c.Close()
					q, err := readMessage(c)
					if err != nil {
						return
					}
					s.queries.Add(1)
					if a := f(q); a != nil {
						writeMessage(c, a)
					}
				})
			}
		})
		t.Cleanup(func() { udp.Close(); tcp.Close(); done.Wait() })
		servers = append(servers, s)
	}
	return servers, port
}

// listenBoth listens on one port for UDP and TCP; 0 takes any.
func listenBoth(t testing.TB, addr netip.Addr, port uint16) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 20 {
		udp, err := net.ListenPacket("udp4", netip.AddrPortFrom(addr, port).String())
		if err != nil {
			t.Fatal(err)
		}
		tcp, err := net.Listen("tcp4", udp.LocalAddr().String())
		if err == nil {
			return udp, tcp
		}
		udp.Close()
	}
	t.Fatalf("no port of %s is free for both UDP and TCP", addr)
	return nil, nil
}

// says answers every query with a text behind the header.
func says(text string) func([]byte) []byte {
	return func(q []byte) []byte {
		a := bytes.Clone(q[:headerBytes])
		a[2] |= 0x80
		return append(a, text...)
	}
}

// failing answers with a response code.
func failing(code byte) func([]byte) []byte {
	return func(q []byte) []byte {
		a := bytes.Clone(q)
		a[2] |= 0x80
		a[3] = code
		return a
	}
}

func silent([]byte) []byte { return nil }

// relay is a running relay with a client for each transport.
type relay struct {
	*Relay
	udp net.Conn
	tcp string
}

// startRelay starts a relay for the servers of a resolv.conf.
func startRelay(t testing.TB, path string, port uint16, timeout time.Duration) *relay {
	t.Helper()
	r := &relay{Relay: New(Options{ResolvConf: path})}
	r.port, r.timeout = port, timeout
	udp, tcp := listenBoth(t, netip.MustParseAddr("127.0.0.1"), 0)
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	for _, serve := range []func() error{
		func() error { return r.ServeUDP(ctx, udp) },
		func() error { return r.ServeTCP(ctx, tcp) },
	} {
		done.Go(func() {
			if err := serve(); err != nil {
				t.Errorf("serve: %v", err)
			}
		})
	}
	c, err := net.Dial("udp4", udp.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	r.udp, r.tcp = c, tcp.Addr().String()
	t.Cleanup(func() { cancel(); c.Close(); done.Wait() })
	return r
}

func resolvConf(t testing.TB, servers ...*server) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "resolv.conf")
	writeConf(t, path, servers...)
	return path
}

func writeConf(t testing.TB, path string, servers ...*server) {
	t.Helper()
	var text strings.Builder
	for _, s := range servers {
		fmt.Fprintf(&text, "nameserver %s\n", s.addr)
	}
	if err := os.WriteFile(path, []byte(text.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

// query is a message with an identifier and an empty question.
func query(id uint16, text string) []byte {
	q := make([]byte, headerBytes, headerBytes+len(text))
	binary.BigEndian.PutUint16(q, id)
	q[2] = 1 // recursion desired
	return append(q, text...)
}

// ask asks over UDP.
func (r *relay) ask(t testing.TB, q []byte) []byte {
	t.Helper()
	if _, err := r.udp.Write(q); err != nil {
		t.Fatal(err)
	}
	r.udp.SetReadDeadline(time.Now().Add(hang))
	buf := make([]byte, 1<<16)
	n, err := r.udp.Read(buf)
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	return buf[:n]
}

// dial opens a connection for queries over TCP.
func (r *relay) dial(t testing.TB) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp4", r.tcp)
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(hang))
	t.Cleanup(func() { c.Close() })
	return c
}

func TestRelay(t *testing.T) {
	// The answer is no valid DNS message but for its header: the relay must not care.
	servers, port := startServers(t, says(strings.Repeat("\xff", 5000)))
	r := startRelay(t, resolvConf(t, servers...), port, hang)
	want := says(strings.Repeat("\xff", 5000))(query(0x1234, ""))
	if got := r.ask(t, query(0x1234, "?")); !bytes.Equal(got, want) {
		t.Errorf("over UDP: %d bytes, want %d as the server sent them", len(got), len(want))
	}
	c := r.dial(t)
	writeMessage(c, query(0x1234, "?"))
	if got, err := readMessage(c); err != nil || !bytes.Equal(got, want) {
		t.Errorf("over TCP: %d bytes, %v, want %d as the server sent them", len(got), err, len(want))
	}
}

// TestPipelining sends many queries at once on one connection and closes its sending side.
func TestPipelining(t *testing.T) {
	servers, port := startServers(t, func(q []byte) []byte { return says(string(q[headerBytes:]))(q) })
	r := startRelay(t, resolvConf(t, servers...), port, hang)
	c := r.dial(t)
	const count = 3 * maxConnQueries
	go func() {
		for i := range count {
			writeMessage(c, query(uint16(i), fmt.Sprint("query ", i)))
		}
		c.(*net.TCPConn).CloseWrite()
	}()
	got := make(map[string]bool)
	for range count {
		a, err := readMessage(c)
		if err != nil {
			t.Fatalf("after %d answers: %v", len(got), err)
		}
		if want := fmt.Sprint("query ", binary.BigEndian.Uint16(a)); string(a[headerBytes:]) != want {
			t.Errorf("answer %q, want %q", a[headerBytes:], want)
		}
		got[string(a[headerBytes:])] = true
	}
	if len(got) != count {
		t.Errorf("%d different answers, want %d", len(got), count)
	}
	if _, err := readMessage(c); !errors.Is(err, io.EOF) {
		t.Errorf("after the last answer: %v, want EOF", err)
	}
}

func TestFailover(t *testing.T) {
	for _, c := range []struct {
		name  string
		first func([]byte) []byte
	}{
		{"no answer", silent},
		{"servfail", failing(servFail)},
		{"refused", failing(refused)},
		{"another identifier", func(q []byte) []byte { q[0]++; return says("forged")(q) }},
		{"a query for an answer", func(q []byte) []byte { return q }},
		{"garbage", func([]byte) []byte { return []byte("x") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			servers, port := startServers(t, c.first, says("second"))
			r := startRelay(t, resolvConf(t, servers...), port, 100*time.Millisecond)
			if got := r.ask(t, query(1, "")); string(got[headerBytes:]) != "second" {
				t.Errorf("over UDP: answer %q, want the second server's", got[headerBytes:])
			}
			conn := r.dial(t)
			writeMessage(conn, query(2, ""))
			if got, err := readMessage(conn); err != nil || string(got[headerBytes:]) != "second" {
				t.Errorf("over TCP: answer %q, %v, want the second server's", got, err)
			}
		})
	}
}

// TestFailoverRefused has a first server that nobody listens on: no time may pass.
func TestFailoverRefused(t *testing.T) {
	servers, port := startServers(t, says("second"))
	nobody := &server{addr: netip.MustParseAddr("127.0.0.99")}
	r := startRelay(t, resolvConf(t, nobody, servers[0]), port, 2*hang)
	if got := r.ask(t, query(1, "")); string(got[headerBytes:]) != "second" {
		t.Errorf("answer %q, want the second server's", got[headerBytes:])
	}
}

// TestDeadServerIsAskedLast checks that a server that timed out does not delay every query.
func TestDeadServerIsAskedLast(t *testing.T) {
	servers, port := startServers(t, silent, says("second"))
	r := startRelay(t, resolvConf(t, servers...), port, 100*time.Millisecond)
	for i := range 10 {
		r.ask(t, query(uint16(i), ""))
	}
	if got := servers[0].queries.Load(); got != 1 {
		t.Errorf("the dead server got %d queries, want 1", got)
	}
}

func TestAllFail(t *testing.T) {
	t.Run("the last failure is passed on", func(t *testing.T) {
		servers, port := startServers(t, failing(refused), silent)
		r := startRelay(t, resolvConf(t, servers...), port, 50*time.Millisecond)
		if got := r.ask(t, query(7, "q"))[3]; got != refused {
			t.Errorf("response code %d, want %d", got, refused)
		}
	})
	t.Run("none answers", func(t *testing.T) {
		servers, port := startServers(t, silent)
		r := startRelay(t, resolvConf(t, servers...), port, 50*time.Millisecond)
		q := query(7, "q")
		want := bytes.Clone(q)
		want[2], want[3] = 0x81, 0x82
		if got := r.ask(t, q); !bytes.Equal(got, want) {
			t.Errorf("answer %x, want SERVFAIL %x", got, want)
		}
	})
	t.Run("no file", func(t *testing.T) {
		r := startRelay(t, filepath.Join(t.TempDir(), "none"), 0, hang)
		if got := r.ask(t, query(7, "q"))[3] & 0xf; got != servFail {
			t.Errorf("response code %d, want %d", got, servFail)
		}
	})
}

// TestResolvConfChanges checks that a new file counts from the next query on, whether it is rewritten or replaced.
func TestResolvConfChanges(t *testing.T) {
	servers, port := startServers(t, says("first"), says("second"), says("third"))
	path := resolvConf(t, servers[0])
	r := startRelay(t, path, port, hang)
	expect := func(want string) {
		t.Helper()
		if got := r.ask(t, query(1, "")); string(got[headerBytes:]) != want {
			t.Errorf("answer %q, want %q", got[headerBytes:], want)
		}
	}
	expect("first")
	writeConf(t, path, servers[1])
	expect("second")
	other := resolvConf(t, servers[2])
	if err := os.Rename(other, path); err != nil {
		t.Fatal(err)
	}
	expect("third")
	os.Remove(path)
	if got := r.ask(t, query(1, ""))[3] & 0xf; got != servFail {
		t.Errorf("without the file: response code %d, want %d", got, servFail)
	}
	writeConf(t, path, servers[0])
	expect("first")
}

// TestBounds checks that a storm of queries is bounded.
func TestBounds(t *testing.T) {
	servers, port := startServers(t, silent)
	r := startRelay(t, resolvConf(t, servers...), port, hang)
	for i := range maxInFlight + 100 {
		r.udp.Write(query(uint16(i), ""))
		if i%50 == 0 {
			s := r.Stats()
			for end := time.Now().Add(hang); int(s.Queries.Load()+s.Dropped.Load()) <= i; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("queries are lost before the relay")
				}
			}
		}
	}
	for end := time.Now().Add(hang); r.Stats().Dropped.Load() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no query is dropped")
		}
	}
	if got := r.Stats().Queries.Load(); got != maxInFlight {
		t.Errorf("%d queries in flight, want %d", got, maxInFlight)
	}
}

// TestNoise checks that what is no query gets no answer, and does not disturb.
func TestNoise(t *testing.T) {
	servers, port := startServers(t, says("hello"))
	r := startRelay(t, resolvConf(t, servers...), port, hang)
	r.udp.Write(nil)
	r.udp.Write([]byte("short"))
	r.udp.Write(says("an answer")(query(1, "")))
	if got := r.ask(t, query(2, "")); got[1] != 2 {
		t.Errorf("answer to query %d, want 2", got[1])
	}
	for _, noise := range []string{"", "\x00", "\x00\x00", "\x00\x05short", "\xff\xffcut"} {
		c := r.dial(t)
		io.WriteString(c, noise)
		c.(*net.TCPConn).CloseWrite()
		if _, err := readMessage(c); err == nil {
			t.Errorf("%q is answered", noise)
		}
	}
	if got := servers[0].queries.Load(); got != 1 {
		t.Errorf("the server got %d queries, want 1", got)
	}
}

func TestParseConfig(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"empty", "", "{[] [] []}"},
		{
			"docker", "# Generated by Docker Engine.\nsearch corp.example.com\nnameserver 127.0.0.11\n" +
				"options ndots:0 edns0 trust-ad\n",
			"{[127.0.0.11:53] [corp.example.com] [ndots:0 edns0 trust-ad]}",
		},
		{
			"several", "nameserver 192.0.2.1\nnameserver 2001:db8::1\nnameserver fe80::1%eth0\n",
			"{[192.0.2.1:53 [2001:db8::1]:53 [fe80::1%eth0]:53] [] []}",
		},
		{"last search counts", "domain a.example\nsearch b.example c.example.\n", "{[] [b.example c.example] []}"},
		{"last domain counts", "search a.example b.example\ndomain c.example d.example\n", "{[] [c.example] []}"},
		{
			"nonsense", "nameserver\nnameserver example.com\nfoo bar\n;nameserver 192.0.2.1\n" +
				"\tnameserver\t192.0.2.2 # yes\nsearch . a..b x_y -/-",
			"{[192.0.2.2:53] [x_y] []}",
		},
		{"mapped", "nameserver ::ffff:192.0.2.1\n", "{[192.0.2.1:53] [] []}"},
	} {
		if got := fmt.Sprint(ParseConfig([]byte(c.text))); got != c.want {
			t.Errorf("%s: ParseConfig() = %s, want %s", c.name, got, c.want)
		}
	}
	many := strings.Repeat("nameserver 192.0.2.1\n", 100)
	if got := len(ParseConfig([]byte(many)).Servers); got != maxServers {
		t.Errorf("%d servers, want %d", got, maxServers)
	}
}

func TestReadConfigMissing(t *testing.T) {
	c, err := ReadConfig(filepath.Join(t.TempDir(), "none"))
	if !errors.Is(err, os.ErrNotExist) || len(c.Servers) != 0 {
		t.Errorf("ReadConfig() = %v, %v, want no servers and ErrNotExist", c, err)
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte("nameserver 127.0.0.11\nsearch a.example b.example\noptions ndots:0"))
	f.Add([]byte("nameserver fe80::1%eth0\r\ndomain .\n#\n;"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c := ParseConfig(data)
		for _, s := range c.Servers {
			if !s.IsValid() || s.Port() != Port {
				t.Errorf("server %v", s)
			}
		}
		for _, d := range c.Search {
			if !isDomain(d) {
				t.Errorf("search domain %q", d)
			}
		}
		c.timeout()
	})
}

// FuzzRelay gives the relay messages of a client and of a server.
func FuzzRelay(f *testing.F) {
	q := query(0x1234, "\x07example\x03com\x00\x00\x01\x00\x01")
	f.Add(q, says("x")(q))
	f.Add([]byte("short"), []byte("short"))
	f.Fuzz(func(t *testing.T, q, a []byte) {
		if isQuery(q) {
			if r := fail(q); len(r) != len(q) || !answers(r, q) || !isFailure(r) {
				t.Errorf("fail(%x) = %x", q, r)
			}
			if answers(a, q) {
				isFailure(a)
			}
		}
		r := bytes.NewReader(q)
		for {
			msg, err := readMessage(r)
			if err != nil {
				break
			}
			var out bytes.Buffer
			writeMessage(&out, msg)
			if back, err := readMessage(&out); err != nil || !bytes.Equal(back, msg) {
				t.Errorf("%x comes back as %x, %v", msg, back, err)
			}
		}
	})
}
