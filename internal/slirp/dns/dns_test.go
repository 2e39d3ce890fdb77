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
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"
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

// echoes answers with the query itself and a text behind it.
func echoes(text string) func([]byte) []byte {
	return func(q []byte) []byte {
		a := append(bytes.Clone(q), text...)
		a[2] |= 0x80
		return a
	}
}

// question is a query for a name. With a size it says by EDNS what answers it takes.
func question(id uint16, name string, kind dnsmessage.Type, size int) []byte {
	m := dnsmessage.Message{
		Header: dnsmessage.Header{ID: id, RecursionDesired: true},
		Questions: []dnsmessage.Question{{
			Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET,
		}},
	}
	if size != 0 {
		opt := dnsmessage.Resource{Body: &dnsmessage.OPTResource{}}
		opt.Header.SetEDNS0(size, 0, true)
		m.Additionals = []dnsmessage.Resource{opt}
	}
	q, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return q
}

// nobody is an address without a server.
var nobody = &server{addr: netip.MustParseAddr("127.0.0.99")}

// server0 stands for a server that a test runs itself on the loopback.
var server0 = server{addr: loopback}

var testHosts = map[string][]netip.Addr{
	"host.uml.internal": {netip.MustParseAddr("10.0.2.2"), netip.MustParseAddr("fd00::2")},
	"gateway":           {netip.MustParseAddr("10.0.2.2")},
	"four":              {netip.MustParseAddr("192.0.2.4")},
	"-- no domain":      {netip.MustParseAddr("192.0.2.5")},
}

// hasty makes a relay ask the next server soon.
func hasty(r *Relay) { r.maxShare = 200 * time.Millisecond }

// relay is a running relay with a client for each transport.
type relay struct {
	*Relay
	udp net.Conn
	tcp string
}

// startRelay starts a relay for the servers of a resolv.conf. It waits for them as long as a test may take, unless
// change says otherwise.
func startRelay(t testing.TB, path string, port uint16, change func(*Relay)) *relay {
	t.Helper()
	r := &relay{Relay: New(Options{ResolvConf: path, Hosts: testHosts})}
	r.port, r.patience, r.maxShare, r.idle = port, hang, hang, hang
	if change != nil {
		change(r.Relay)
	}
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

func appendText(t testing.TB, path, text string) {
	t.Helper()
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(old, text...), 0o644); err != nil {
		t.Fatal(err)
	}
}

// plain is a query with an identifier that has no question.
func plain(id uint16, text string) []byte {
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

// askTCP asks over a TCP connection of its own.
func (r *relay) askTCP(t testing.TB, q []byte) []byte {
	t.Helper()
	c := r.dial(t)
	defer c.Close()
	writeMessage(c, q)
	got, err := readMessage(c)
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	return got
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

// TestRelay checks that messages arrive as they were sent: the answer is no valid message but for its head, and the
// case of the name is to be kept (draft-vixie-dnsext-dns0x20).
func TestRelay(t *testing.T) {
	var asked sync.Map
	servers, port := startServers(t, func(q []byte) []byte {
		asked.Store(string(q), true)
		return echoes(strings.Repeat("\xff", 5000))(q)
	})
	r := startRelay(t, resolvConf(t, servers...), port, nil)
	q := question(0x1234, "wWw.eXAMPLe.OrG.", dnsmessage.TypeA, 8192)
	want := echoes(strings.Repeat("\xff", 5000))(q)
	if got := r.ask(t, q); !bytes.Equal(got, want) {
		t.Errorf("over UDP: %d bytes, want %d as the server sent them", len(got), len(want))
	}
	if got := r.askTCP(t, q); !bytes.Equal(got, want) {
		t.Errorf("over TCP: %d bytes, want %d as the server sent them", len(got), len(want))
	}
	asked.Range(func(got, _ any) bool {
		if got.(string) != string(q) {
			t.Errorf("the server was asked %x, want %x", got, q)
		}
		return true
	})
}

// testTruncation checks that a client gets no more over UDP than it takes, and learns that there is more.
func testTruncation(t *testing.T) {
	for _, c := range []struct {
		edns, answer int // bytes; EDNS 0 is none
		whole        bool
	}{
		{0, 512, true},
		{0, 513, false},
		{100, 512, true},
		{1232, 1232, true},
		{1232, 1233, false},
		{65535, maxUDPBytes, true},
		{65535, maxUDPBytes + 1, false},
	} {
		q := question(7, "Big.example.", dnsmessage.TypeTXT, c.edns)
		servers, port := startServers(t, echoes(strings.Repeat("x", c.answer-len(q))))
		r := startRelay(t, resolvConf(t, servers...), port, nil)
		got := r.ask(t, q)
		if c.whole {
			if len(got) != c.answer {
				t.Errorf("%+v: an answer of %d bytes", c, len(got))
			}
			continue
		}
		if got := r.Stats().Truncated.Load(); got != 1 {
			t.Errorf("%+v: %d answers truncated, want 1", c, got)
		}
		var m dnsmessage.Message
		if err := m.Unpack(got); err != nil {
			t.Fatalf("%+v: the answer is malformed: %v", c, err)
		}
		if !m.Response || !m.Truncated || m.ID != 7 || len(m.Questions) != 1 ||
			m.Questions[0].Name.String() != "Big.example." || len(m.Answers)+len(m.Authorities) != 0 {
			t.Errorf("%+v: answer %+v, want its question and TC alone", c, m)
		}
		if got, want := len(m.Additionals) == 1, c.edns != 0; got != want {
			t.Errorf("%+v: the answer has EDNS: %v, want %v", c, got, want)
		}
		if got := r.askTCP(t, q); len(got) != c.answer {
			t.Errorf("%+v: an answer of %d bytes over TCP", c, len(got))
		}
	}
}

// TestServerTruncates checks that the TC bit of a server is its client's to act upon.
func TestServerTruncates(t *testing.T) {
	servers, port := startServers(t, func(q []byte) []byte {
		a := echoes("")(q)
		a[2] |= 2
		return a
	})
	r := startRelay(t, resolvConf(t, servers...), port, nil)
	q := question(7, "example.", dnsmessage.TypeTXT, 0)
	want := echoes("")(q)
	want[2] |= 2
	if got := r.ask(t, q); !bytes.Equal(got, want) {
		t.Errorf("answer %x, want %x", got, want)
	}
	if got := servers[0].queries.Load(); got != 1 {
		t.Errorf("the server was asked %d times, want once", got)
	}
}

// TestForgedAnswers checks that only what the server that was asked says to the question counts.
func TestForgedAnswers(t *testing.T) {
	server, tcp := listenBoth(t, loopback, 0)
	tcp.Close()
	defer server.Close()
	other, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	go func() {
		buf := make([]byte, 1<<16)
		n, from, err := server.ReadFrom(buf)
		if err != nil {
			return
		}
		good := echoes("good")(buf[:n])
		other.WriteTo(good, from)
		for _, change := range []func(a []byte){
			func(a []byte) { a[0]++ },                                // identifier
			func(a []byte) { a[2] &^= 0x80 },                         // a query
			func(a []byte) { a[headerBytes+1] = 'x' },                // name
			func(a []byte) { a[headerBytes+len("\x01a\x00\x00")]++ }, // type
			func(a []byte) { a[5] = 0 },                              // no question
			func(a []byte) { a[5] = 2 },                              // two
		} {
			a := bytes.Clone(good)
			change(a)
			server.WriteTo(append(a, " forged"...), from)
		}
		server.WriteTo(good[:5], from)
		server.WriteTo(good, from)
	}()
	port := uint16(server.LocalAddr().(*net.UDPAddr).Port)
	r := startRelay(t, resolvConf(t, &server0), port, nil)
	if got := r.ask(t, question(7, "a.", dnsmessage.TypeA, 0)); !bytes.HasSuffix(got, []byte("good")) {
		t.Errorf("answer %q, want the server's own", got)
	}
}

// TestPipelining sends many queries at once on one connection and closes its sending side.
func TestPipelining(t *testing.T) {
	servers, port := startServers(t, func(q []byte) []byte { return says(string(q[headerBytes:]))(q) })
	r := startRelay(t, resolvConf(t, servers...), port, nil)
	c := r.dial(t)
	const count = 3 * maxConnQueries
	go func() {
		for i := range count {
			writeMessage(c, plain(uint16(i), fmt.Sprint("query ", i)))
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
		{"servfail", failing(byte(dnsmessage.RCodeServerFailure))},
		{"refused", failing(byte(dnsmessage.RCodeRefused))},
		{"another identifier", func(q []byte) []byte { q[0]++; return says("forged")(q) }},
		{"a query for an answer", func(q []byte) []byte { return q }},
		{"garbage", func([]byte) []byte { return []byte("x") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			servers, port := startServers(t, c.first, says("second"))
			r := startRelay(t, resolvConf(t, servers...), port, hasty)
			if got := r.ask(t, plain(1, "")); string(got[headerBytes:]) != "second" {
				t.Errorf("over UDP: answer %q, want the second server's", got[headerBytes:])
			}
			if got := r.askTCP(t, plain(2, "")); string(got[headerBytes:]) != "second" {
				t.Errorf("over TCP: answer %q, want the second server's", got)
			}
		})
	}
}

// TestAnswerWithoutQuestion has a server that does not understand EDNS and answers with a header alone.
func TestAnswerWithoutQuestion(t *testing.T) {
	want := []byte("\x00\x07\x81\x01\x00\x00\x00\x00\x00\x00\x00\x00")
	servers, port := startServers(t, func([]byte) []byte { return want })
	r := startRelay(t, resolvConf(t, servers...), port, nil)
	if got := r.ask(t, question(7, "example.", dnsmessage.TypeA, 1232)); !bytes.Equal(got, want) {
		t.Errorf("answer %x, want FORMERR %x", got, want)
	}
}

// TestFailoverRefused has a first server that nobody listens on: no time may pass.
func TestFailoverRefused(t *testing.T) {
	servers, port := startServers(t, says("second"))
	r := startRelay(t, resolvConf(t, nobody, servers[0]), port, nil)
	if got := r.ask(t, plain(1, "")); string(got[headerBytes:]) != "second" {
		t.Errorf("answer %q, want the second server's", got[headerBytes:])
	}
}

// TestSlowServer checks that the answer of a server counts even after the next one was asked.
func TestSlowServer(t *testing.T) {
	second := make(chan struct{})
	asked := sync.OnceFunc(func() { close(second) })
	servers, port := startServers(t,
		func(q []byte) []byte { <-second; return says("slow")(q) },
		func([]byte) []byte { asked(); return nil })
	r := startRelay(t, resolvConf(t, servers...), port, hasty)
	if got := r.ask(t, plain(1, "")); string(got[headerBytes:]) != "slow" {
		t.Errorf("answer %q, want the first server's", got[headerBytes:])
	}
}

// TestDeadServerIsAskedLast checks that a server that timed out does not delay every query.
func TestDeadServerIsAskedLast(t *testing.T) {
	servers, port := startServers(t, silent, says("second"))
	r := startRelay(t, resolvConf(t, servers...), port, hasty)
	for i := range 10 {
		r.ask(t, plain(uint16(i), ""))
	}
	if got := servers[0].queries.Load(); got > 2*defaultAttempts {
		t.Errorf("the dead server got %d queries, want the first two alone", got)
	}
}

// TestSlowAnswerKeepsOrder checks that the first server stays the first when it was silent, be it for several queries
// at once, but for two in a row.
func TestSlowAnswerKeepsOrder(t *testing.T) {
	r := New(Options{ResolvConf: resolvConf(t, nobody, &server0)})
	first := netip.AddrPortFrom(nobody.addr, Port)
	isFirst := func(want bool) {
		t.Helper()
		if got := r.plan().servers[0] == first; got != want {
			t.Fatalf("%s is asked first: %v, want %v", first, got, want)
		}
	}
	isFirst(true)
	began := time.Now()
	r.noteSilence(first, began)
	r.noteSilence(first, began) // A and AAAA
	isFirst(true)
	r.trust(first)
	r.noteSilence(first, time.Now())
	isFirst(true)
	r.noteSilence(first, time.Now())
	isFirst(false)
	r.trust(first)
	isFirst(true)
}

// TestPatience checks that the last server is asked, and has time to answer, before the guest gives up.
func TestPatience(t *testing.T) {
	for _, c := range []struct {
		options         string
		servers         []*server
		patience, share time.Duration
	}{
		{"", []*server{nobody}, patience, patience},
		{"ndots:1", []*server{nobody, &server0}, patience, patience / 2},
		{"timeout:1 attempts:1", []*server{nobody, &server0}, 800 * time.Millisecond, 400 * time.Millisecond},
		{"timeout:1", []*server{nobody, &server0}, 1600 * time.Millisecond, 800 * time.Millisecond},
		{"timeout:2 attempts:1", []*server{nobody}, 1600 * time.Millisecond, 1600 * time.Millisecond},
		{"timeout:1 attempts:5", []*server{nobody}, patience, time.Second},
		{"timeout:30 attempts:5", []*server{nobody}, patience, patience},
	} {
		path := resolvConf(t, c.servers...)
		appendText(t, path, "options "+c.options+"\n")
		p := New(Options{ResolvConf: path}).plan()
		if p.patience.Round(time.Millisecond) != c.patience || p.share.Round(time.Millisecond) != c.share {
			t.Errorf("%q and %d servers: %v, %v for each; want %v, %v",
				c.options, len(c.servers), p.patience, p.share, c.patience, c.share)
		}
	}
}

func TestAllFail(t *testing.T) {
	t.Run("the last failure is passed on", func(t *testing.T) {
		servers, port := startServers(t, failing(byte(dnsmessage.RCodeRefused)))
		r := startRelay(t, resolvConf(t, servers[0], nobody), port, nil)
		if got := r.ask(t, plain(7, "q"))[3]; dnsmessage.RCode(got) != dnsmessage.RCodeRefused {
			t.Errorf("response code %d, want REFUSED", got)
		}
	})
	t.Run("none answers", func(t *testing.T) {
		servers, port := startServers(t, silent)
		r := startRelay(t, resolvConf(t, servers...), port, func(r *Relay) { r.patience = 50 * time.Millisecond })
		want := plain(7, "")
		want[2], want[3] = 0x81, 0x82
		if got := r.ask(t, plain(7, "q")); !bytes.Equal(got, want) {
			t.Errorf("answer %x, want SERVFAIL %x", got, want)
		}
		q := question(7, "Example.", dnsmessage.TypeA, 0)
		want = bytes.Clone(q)
		want[2], want[3] = 0x81, 0x82
		if got := r.ask(t, q); !bytes.Equal(got, want) {
			t.Errorf("answer %x, want SERVFAIL %x", got, want)
		}
	})
}

// TestResolvConfChanges checks that a new file counts from the next query on, whether it is rewritten or replaced.
func TestResolvConfChanges(t *testing.T) {
	servers, port := startServers(t, says("first"), says("second"), says("third"))
	path := resolvConf(t, servers[0])
	r := startRelay(t, path, port, nil)
	expect := func(want string) {
		t.Helper()
		if got := r.ask(t, plain(1, "")); string(got[headerBytes:]) != want {
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
	expect("first") // 127.0.0.1, as the C library does without a file, or without servers in it
	writeConf(t, path, servers[1])
	expect("second")
	writeConf(t, path)
	expect("first")
	// More often than the file system's clock ticks, and of the same size.
	for i := range 50 {
		writeConf(t, path, servers[i%3])
		expect([]string{"first", "second", "third"}[i%3])
	}
}

func TestOptions(t *testing.T) {
	t.Run("rotate", func(t *testing.T) {
		servers, port := startServers(t, says("first"), says("second"))
		path := resolvConf(t, servers...)
		appendText(t, path, "options rotate\n")
		r := startRelay(t, path, port, nil)
		for i := range 10 {
			r.ask(t, plain(uint16(i), ""))
		}
		for i, s := range servers {
			if got := s.queries.Load(); got != 5 {
				t.Errorf("server %d got %d queries, want 5", i+1, got)
			}
		}
	})
	t.Run("use-vc", func(t *testing.T) {
		udp, tcp := listenBoth(t, loopback, 0)
		udp.Close()
		defer tcp.Close()
		go func() {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			if q, err := readMessage(c); err == nil {
				writeMessage(c, says("over TCP")(q))
			}
		}()
		path := resolvConf(t, &server0)
		appendText(t, path, "options use-vc\n")
		r := startRelay(t, path, uint16(tcp.Addr().(*net.TCPAddr).Port), nil)
		if got := r.ask(t, plain(1, "")); string(got[headerBytes:]) != "over TCP" {
			t.Errorf("answer %q, want the one over TCP", got[headerBytes:])
		}
	})
	t.Run("attempts", func(t *testing.T) {
		var count atomic.Int32
		servers, port := startServers(t, func(q []byte) []byte {
			if count.Add(1) < 4 {
				return nil
			}
			return says("at last")(q)
		})
		path := resolvConf(t, servers...)
		appendText(t, path, "options attempts:4\n")
		r := startRelay(t, path, port, hasty)
		if got := r.ask(t, plain(1, "")); string(got[headerBytes:]) != "at last" {
			t.Errorf("answer %q, want one to the fourth attempt", got)
		}
	})
}

func TestConfigNumbers(t *testing.T) {
	for _, c := range []struct {
		options  string
		timeout  time.Duration
		attempts int
	}{
		{"ndots:2", 5 * time.Second, 2},
		{"timeout:1 attempts:3", time.Second, 3},
		{"timeout:1 timeout:2 attempts:1 attempts:4", 2 * time.Second, 4},
		{"timeout:99999 attempts:99999", 30 * time.Second, 5},
		{"timeout:0 attempts:-1", 5 * time.Second, 2},
		{"timeout: attempts:x", 5 * time.Second, 2},
	} {
		config := ParseConfig([]byte("options " + c.options))
		if got := config.timeout(); got != c.timeout {
			t.Errorf("%s: timeout() = %v, want %v", c.options, got, c.timeout)
		}
		if got := config.attempts(); got != c.attempts {
			t.Errorf("%s: attempts() = %d, want %d", c.options, got, c.attempts)
		}
	}
}

// TestLinkLocalServer asks a server whose address is one of a link.
func TestLinkLocalServer(t *testing.T) {
	interfaces, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range interfaces {
		addrs, _ := i.Addrs()
		for _, a := range addrs {
			p, err := netip.ParsePrefix(a.String())
			if err != nil || !p.Addr().IsLinkLocalUnicast() || !p.Addr().Is6() {
				continue
			}
			addr := p.Addr().WithZone(i.Name)
			c, err := net.ListenPacket("udp6", netip.AddrPortFrom(addr, 0).String())
			if err != nil {
				continue
			}
			defer c.Close()
			go func() {
				buf := make([]byte, 512)
				if n, from, err := c.ReadFrom(buf); err == nil {
					c.WriteTo(says("local")(buf[:n]), from)
				}
			}()
			r := startRelay(t, resolvConf(t, &server{addr: addr}), uint16(c.LocalAddr().(*net.UDPAddr).Port), nil)
			if got := r.ask(t, plain(1, "")); string(got[headerBytes:]) != "local" {
				t.Errorf("answer %q of %s", got, addr)
			}
			return
		}
	}
	t.Skip("no network interface has a link-local address")
}

// TestTransfer checks that all messages of a zone transfer arrive, whether the server closes its connection then or
// not, after one server that refuses.
func TestTransfer(t *testing.T) {
	for _, closes := range []bool{true, false} {
		for _, kind := range []dnsmessage.Type{dnsmessage.TypeAXFR, typeIXFR} {
			refusing, port := startServers(t, failing(byte(dnsmessage.RCodeRefused)))
			addr := netip.MustParseAddr("127.0.0.2")
			l, err := net.Listen("tcp4", netip.AddrPortFrom(addr, port).String())
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				c, err := l.Accept()
				if err != nil {
					return
				}
				defer c.Close()
				q, err := readMessage(c)
				if err != nil {
					return
				}
				writeMessage(c, echoes("first")(q))
				for _, text := range []string{"second", "third"} {
					a := append(plain(0, ""), text...) // without the question
					copy(a, q[:2])
					a[2] |= 0x80
					writeMessage(c, a)
				}
				if !closes {
					c.Read(make([]byte, 1)) // until the relay closes
				}
			}()
			r := startRelay(t, resolvConf(t, refusing[0], &server{addr: addr}), port, func(r *Relay) {
				if !closes {
					r.idle = 500 * time.Millisecond
				}
			})
			c := r.dial(t)
			writeMessage(c, question(7, "example.", kind, 0))
			for _, want := range []string{"first", "second", "third"} {
				if got, err := readMessage(c); err != nil || !bytes.HasSuffix(got, []byte(want)) {
					t.Errorf("%v: message %q, %v, want the %s", kind, got, err, want)
				}
			}
			if _, err := readMessage(c); !errors.Is(err, io.EOF) {
				t.Errorf("%v: after the last message: %v, want EOF", kind, err)
			}
		}
	}
}

// TestTransferFails checks that a transfer that nobody gives ends with the answer, and leaves the connection open.
func TestTransferFails(t *testing.T) {
	servers, port := startServers(t, func(q []byte) []byte {
		const notAuth = 9
		if q[headerBytes+1] == 'x' {
			return failing(notAuth)(q)
		}
		return failing(byte(dnsmessage.RCodeRefused))(q)
	})
	r := startRelay(t, resolvConf(t, servers...), port, nil)
	c := r.dial(t)
	for _, name := range []string{"x.", "y."} {
		writeMessage(c, question(7, name, dnsmessage.TypeAXFR, 0))
		if got, err := readMessage(c); err != nil || got[3]&0xf == 0 {
			t.Errorf("transfer of %s: %x, %v, want a failure", name, got, err)
		}
	}
}

// TestIdleConnection checks that a silent connection is closed, one in the middle of a message too, but none that waits
// for an answer.
func TestIdleConnection(t *testing.T) {
	idle := func(r *relay) {
		c := r.dial(t)
		defer c.Close()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("Read() = %v of an idle connection, want EOF", err)
		}
	}
	running := make(chan *relay, 1)
	servers, port := startServers(t, func(q []byte) []byte {
		r := <-running
		idle(r) // takes as long as the client's connection was silent, and longer
		idle(r)
		return says("late")(q)
	})
	r := startRelay(t, resolvConf(t, servers...), port, func(r *Relay) { r.idle = 300 * time.Millisecond })
	running <- r
	if got := r.askTCP(t, plain(1, "")); string(got[headerBytes:]) != "late" {
		t.Errorf("answer %q", got)
	}
	c := r.dial(t)
	c.Write([]byte("\x00"))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("Read() = %v after half a message, want EOF", err)
	}
}

func TestTooManyConnections(t *testing.T) {
	servers, port := startServers(t, says("hello"))
	r := startRelay(t, resolvConf(t, servers...), port, nil)
	for range maxConns {
		c := r.dial(t)
		writeMessage(c, plain(1, ""))
		if _, err := readMessage(c); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.dial(t).Read(make([]byte, 1)); err == nil {
		t.Error("one connection more is served")
	}
	if got := r.Stats().Dropped.Load(); got != 1 {
		t.Errorf("%d dropped, want 1", got)
	}
}

func TestOwnNames(t *testing.T) {
	servers, port := startServers(t, echoes("relayed"))
	r := startRelay(t, resolvConf(t, servers...), port, nil)
	const (
		reverse6 = "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa."
		relayed  = "relayed"
	)
	for _, c := range []struct {
		name string
		kind dnsmessage.Type
		want string
	}{
		{"host.uml.internal.", dnsmessage.TypeA, "10.0.2.2 "},
		{"HOST.uml.Internal.", dnsmessage.TypeA, "10.0.2.2 "},
		{"host.uml.internal.", dnsmessage.TypeAAAA, "fd00::2 "},
		{"host.uml.internal.", dnsmessage.TypeMX, ""},
		{"host.uml.internal.", 65, ""}, // HTTPS, which every browser asks for
		{"four.", dnsmessage.TypeAAAA, ""},
		{"2.2.0.10.in-addr.arpa.", dnsmessage.TypePTR, "gateway. host.uml.internal. "},
		{"2.2.0.10.in-addr.arpa.", dnsmessage.TypeA, ""},
		{reverse6, dnsmessage.TypePTR, "host.uml.internal. "},
		{"x.host.uml.internal.", dnsmessage.TypeA, relayed},
		{"uml.internal.", dnsmessage.TypeA, relayed},
		{"15.2.0.10.in-addr.arpa.", dnsmessage.TypePTR, relayed},
		{".", dnsmessage.TypeNS, relayed},
	} {
		for _, ask := range []func(testing.TB, []byte) []byte{r.ask, r.askTCP} {
			answer := ask(t, question(7, c.name, c.kind, 1232))
			var m dnsmessage.Message
			if bytes.HasSuffix(answer, []byte(relayed)) {
				if c.want != relayed {
					t.Errorf("%s %v is relayed", c.name, c.kind)
				}
				continue
			}
			if err := m.Unpack(answer); err != nil {
				t.Fatalf("%s %v: the answer is malformed: %v", c.name, c.kind, err)
			}
			var got strings.Builder
			for _, a := range m.Answers {
				if a.Header.TTL != ownTTL || a.Header.Name != m.Questions[0].Name {
					t.Errorf("%s %v: answer %v", c.name, c.kind, a.GoString())
				}
				switch b := a.Body.(type) {
				case *dnsmessage.AResource:
					fmt.Fprint(&got, netip.AddrFrom4(b.A), " ")
				case *dnsmessage.AAAAResource:
					fmt.Fprint(&got, netip.AddrFrom16(b.AAAA), " ")
				case *dnsmessage.PTRResource:
					fmt.Fprint(&got, b.PTR, " ")
				}
			}
			if got.String() != c.want || m.RCode != 0 || !m.Authoritative || !m.Response || m.ID != 7 ||
				m.Questions[0].Name.String() != c.name || len(m.Additionals) != 1 {
				t.Errorf("%s %v: answer %v, want %q", c.name, c.kind, m.GoString(), c.want)
			}
		}
	}
}

// testLongSearchList has a list that is longer than any option of DHCP and any line of a C library.
func testLongSearchList(t *testing.T) {
	servers, port := startServers(t, says("hello"))
	path := resolvConf(t, servers...)
	var search []string
	for i := range 1000 {
		search = append(search, fmt.Sprintf("d%d.%s.example", i, strings.Repeat("x", 40)))
	}
	appendText(t, path, "search "+strings.Join(search, " ")+"\noptions ndots:3\n")
	r := startRelay(t, path, port, nil)
	if got := r.ask(t, plain(1, "")); string(got[headerBytes:]) != "hello" {
		t.Errorf("answer %q", got)
	}
	c, err := ReadConfig(path)
	if err != nil || len(c.Search) != len(search) || len(c.Options) != 1 {
		t.Errorf("ReadConfig() has %d domains and options %q, %v, want %d and one", len(c.Search), c.Options, err, len(search))
	}
	// A file beyond all reason is cut.
	appendText(t, path, strings.Repeat("search "+strings.Join(search, " ")+"\n", 10))
	if got := r.ask(t, plain(1, "")); string(got[headerBytes:]) != "hello" {
		t.Errorf("answer %q", got)
	}
}

// testStorm checks that a storm of queries does not pile up.
func testStorm(t *testing.T) {
	servers, port := startServers(t, silent)
	r := startRelay(t, resolvConf(t, servers...), port, nil)
	for i := range maxInFlight + 100 {
		r.udp.Write(plain(uint16(i), ""))
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
	// The query's own, and the one that asks the server.
	if got := runtime.NumGoroutine(); got > 2*maxInFlight+50 {
		t.Errorf("%d goroutines for %d queries", got, maxInFlight)
	}
}

// TestNoise checks that what is no query gets no answer, and does not disturb.
func TestNoise(t *testing.T) {
	servers, port := startServers(t, says("hello"))
	r := startRelay(t, resolvConf(t, servers...), port, nil)
	r.udp.Write(nil)
	r.udp.Write([]byte("short"))
	r.udp.Write(says("an answer")(plain(1, "")))
	if got := r.ask(t, plain(2, "")); got[1] != 2 {
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
		if c.timeout() <= 0 || c.attempts() <= 0 {
			t.Errorf("timeout %v, %d attempts", c.timeout(), c.attempts())
		}
	})
}

// FuzzRelay gives the relay messages of a client and of a server.
func FuzzRelay(f *testing.F) {
	q := plain(0x1234, "\x07example\x03com\x00\x00\x01\x00\x01")
	f.Add(q, says("x")(q))
	for _, name := range []string{"host.uml.internal.", "2.2.0.10.in-addr.arpa."} {
		q := question(1, name, dnsmessage.TypeA, 4096)
		f.Add(q, echoes(strings.Repeat("x", 5000))(q))
	}
	f.Add([]byte("short"), []byte("short"))
	f.Fuzz(func(t *testing.T, q, a []byte) {
		if isQuery(q) {
			q := readQuery(q)
			for _, own := range [][]byte{q.fail(), newNames(testHosts).answer(q)} {
				if own != nil && (!q.isAnswer(own) || len(own) > minUDPBytes) {
					t.Errorf("answer %x to %x", own, q.msg)
				}
			}
			q.isTransfer()
			if q.isAnswer(a) {
				isFailure(a)
				if fits, _ := q.fits(a); len(fits) > q.size || !q.isAnswer(fits) {
					t.Errorf("%x of %x for a client that takes %d bytes", fits, a, q.size)
				}
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
