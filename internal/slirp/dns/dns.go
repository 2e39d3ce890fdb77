// Package dns relays DNS queries, as they are, to the name servers of a resolv.conf(5).
package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Theory of operation
//
// A query is bytes. Of a message the relay reads its header only: whether it is a query, its identifier, and the
// response code. So whatever DNS grows next passes through, and the answer is the server's: its size, its truncation
// bit, its EDNS options.
//
// Each query has a socket of its own, connected to the server: a random port guards against forged answers, and a
// server that refuses is known at once. The servers are asked in the order of the file, the next one when one
// refuses, is not reached, does not answer in time or answers that it cannot (SERVFAIL, NOTIMP, REFUSED), as the C
// library does, which sees but one server here. A server that did not answer in time is asked last for a while, so
// that a dead one costs its time-out once and not with every query. If no server has an answer the client gets the
// last failure, or a SERVFAIL of ours. It never gets silence.
//
// The file is looked at (stat) with every query and read again when it is another or has changed: Docker and DHCP
// clients rewrite it.
//
// TCP: a client's connection carries any number of queries, which are relayed side by side and answered as answers
// come in (RFC 7766 section 6.2.1). Each is one connection to a server and one answer: zone transfers, whose answers
// are many messages, are cut after the first.
//
// Bounds: queries in flight, over both transports, and TCP connections. A UDP query beyond is dropped, as a busy
// server would, a TCP query waits.

const (
	headerBytes = 12
	maxBytes    = 1<<16 - 1

	defaultTimeout = 2 * time.Second
	// avoidFor is how long a server that timed out is asked last.
	avoidFor = 30 * time.Second
	// tcpIdle is how long a client's connection may be silent (RFC 7766 section 6.2.3 suggests seconds).
	tcpIdle = 30 * time.Second

	maxInFlight    = 1024
	maxConns       = 128
	maxConnQueries = 64
)

// Response codes (RFC 1035 section 4.1.1).
const (
	servFail = 2
	notImp   = 4
	refused  = 5
)

// Options of a Relay.
type Options struct {
	// ResolvConf is the path of the file with the servers.
	ResolvConf string
}

// Relay relays queries.
type Relay struct {
	path    string
	timeout time.Duration // 0: what resolv.conf says, or the default
	port    uint16        // of servers; tests change it
	slots   chan struct{}
	conns   chan struct{}
	stats   Stats

	mu      sync.Mutex
	config  Config                       // guarded by mu
	file    os.FileInfo                  // guarded by mu: config is from this file; nil before the first read
	avoided map[netip.AddrPort]time.Time // guarded by mu: until when
}

// Stats counts what a Relay did.
type Stats struct {
	Queries  atomic.Uint64
	Answers  atomic.Uint64
	Failures atomic.Uint64 // queries that no server answered
	Dropped  atomic.Uint64 // queries beyond the bounds
}

// New makes a relay.
func New(o Options) *Relay {
	return &Relay{
		path:    o.ResolvConf,
		slots:   make(chan struct{}, maxInFlight),
		conns:   make(chan struct{}, maxConns),
		avoided: make(map[netip.AddrPort]time.Time),
	}
}

// Stats returns the counters, which go on counting.
func (r *Relay) Stats() *Stats { return &r.stats }

// ServeUDP relays the queries that arrive on conn until ctx ends, then returns nil, or until conn fails. It closes
// conn and returns when no query is in flight any more.
func (r *Relay) ServeUDP(ctx context.Context, conn net.PacketConn) error {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	var queries sync.WaitGroup
	defer queries.Wait()
	defer cancel()
	buf := make([]byte, maxBytes)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("dns over udp: %w", err)
		}
		if !isQuery(buf[:n]) {
			continue
		}
		select {
		case r.slots <- struct{}{}:
		default:
			r.stats.Dropped.Add(1)
			continue
		}
		query := slices.Clone(buf[:n])
		queries.Go(func() {
			defer func() { <-r.slots }()
			if answer := r.relay(ctx, "udp", query); answer != nil {
				_, _ = conn.WriteTo(answer, from) // a lost answer is asked for again
			}
		})
	}
}

// ServeTCP relays the queries of the connections that l accepts until ctx ends, then returns nil, or until l fails.
// It closes l and all connections, and returns when they have ended.
func (r *Relay) ServeTCP(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() {
		if s, ok := l.(interface{ Shutdown() }); ok {
			s.Shutdown() // netstack's listener does not end Accept when it is closed
		}
		_ = l.Close()
	})
	defer stop()
	var open sync.WaitGroup
	defer open.Wait()
	defer cancel()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("dns over tcp: %w", err)
		}
		select {
		case r.conns <- struct{}{}:
		default:
			r.stats.Dropped.Add(1)
			_ = conn.Close()
			continue
		}
		open.Go(func() {
			defer func() { <-r.conns }()
			r.serveConn(ctx, conn)
		})
	}
}

// serveConn relays the queries of one connection.
func (r *Relay) serveConn(ctx context.Context, conn net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	var queries sync.WaitGroup
	defer conn.Close()
	defer queries.Wait()
	defer cancel()

	var write sync.Mutex
	mine := make(chan struct{}, maxConnQueries)
	for {
		_ = conn.SetReadDeadline(time.Now().Add(tcpIdle))
		query, err := readMessage(conn)
		if err != nil {
			// Half-closed is not closed: what was asked is still to be answered.
			if errors.Is(err, io.EOF) {
				queries.Wait()
			}
			return
		}
		if !isQuery(query) {
			return
		}
		mine <- struct{}{}
		select {
		case r.slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		queries.Go(func() {
			defer func() { <-r.slots; <-mine }()
			answer := r.relay(ctx, "tcp", query)
			if answer == nil {
				return
			}
			write.Lock()
			defer write.Unlock()
			_ = conn.SetWriteDeadline(time.Now().Add(tcpIdle))
			if writeMessage(conn, answer) != nil {
				cancel()
			}
		})
	}
}

// relay returns the answer to a query, or nil when ctx ended.
func (r *Relay) relay(ctx context.Context, network string, query []byte) []byte {
	r.stats.Queries.Add(1)
	servers, timeout := r.servers()
	var failure []byte
	for _, s := range servers {
		answer, err := exchange(ctx, network, s, query, timeout)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			if isTimeout(err) {
				r.avoid(s)
			}
		case isFailure(answer):
			failure = answer
		default:
			r.stats.Answers.Add(1)
			return answer
		}
	}
	r.stats.Failures.Add(1)
	if failure == nil {
		failure = fail(query)
	}
	return failure
}

// exchange asks one server.
func exchange(
	ctx context.Context, network string, server netip.AddrPort, query []byte, timeout time.Duration,
) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if network == "tcp" {
		if err := writeMessage(conn, query); err != nil {
			return nil, err
		}
		answer, err := readMessage(conn)
		if err == nil && !answers(answer, query) {
			err = errors.New("the server's answer is to something else")
		}
		return answer, err
	}
	if _, err := conn.Write(query); err != nil {
		return nil, err
	}
	buf := answerPool.Get().(*[maxBytes]byte)
	defer answerPool.Put(buf)
	for {
		n, err := conn.Read(buf[:])
		if err != nil {
			return nil, err
		}
		// Anything else is forged, or late: the answer may still come.
		if answers(buf[:n], query) {
			return slices.Clone(buf[:n]), nil
		}
	}
}

var answerPool = sync.Pool{New: func() any { return new([maxBytes]byte) }}

// isQuery says whether a message of a client is to be relayed: it has a header, and the QR bit is clear.
func isQuery(msg []byte) bool { return len(msg) >= headerBytes && msg[2]&0x80 == 0 }

// answers says whether msg can be the answer to query: QR is set and the identifiers are equal.
func answers(msg, query []byte) bool {
	return len(msg) >= headerBytes && msg[2]&0x80 != 0 && msg[0] == query[0] && msg[1] == query[1]
}

// isFailure says whether an answer is one after which another server is worth asking.
func isFailure(answer []byte) bool {
	switch answer[3] & 0x0f {
	case servFail, notImp, refused:
		return true
	}
	return false
}

// fail turns a query into the answer SERVFAIL: QR and RA are set, the rest stands as it was asked.
func fail(query []byte) []byte {
	answer := slices.Clone(query)
	answer[2] |= 0x80
	answer[3] = 0x80 | servFail
	return answer
}

func isTimeout(err error) bool {
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout() || errors.Is(err, context.DeadlineExceeded)
}

// readMessage reads a message with its length in front (RFC 1035 section 4.2.2).
func readMessage(r io.Reader) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	msg := make([]byte, binary.BigEndian.Uint16(length[:]))
	if _, err := io.ReadFull(r, msg); err != nil {
		return nil, io.ErrUnexpectedEOF
	}
	return msg, nil
}

// writeMessage writes a message with its length in front, in one piece.
func writeMessage(w io.Writer, msg []byte) error {
	buf := make([]byte, 0, 2+len(msg))
	buf = binary.BigEndian.AppendUint16(buf, uint16(len(msg)))
	_, err := w.Write(append(buf, msg...))
	return err
}

// servers returns the servers to ask, in order, and the time each has to answer.
func (r *Relay) servers() ([]netip.AddrPort, time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refresh()
	timeout := r.timeout
	if timeout == 0 {
		// The client repeats its query after 5 s. A second server must have had its chance by then.
		timeout = min(defaultTimeout, max(r.config.timeout(), defaultTimeout/2))
		if r.config.timeout() == 0 {
			timeout = defaultTimeout
		}
	}
	now := time.Now()
	var good, late []netip.AddrPort
	for _, s := range r.config.Servers {
		if r.port != 0 {
			s = netip.AddrPortFrom(s.Addr(), r.port)
		}
		if now.Before(r.avoided[s]) {
			late = append(late, s)
		} else {
			good = append(good, s)
		}
	}
	return append(good, late...), timeout
}

// avoid notes that a server timed out.
func (r *Relay) avoid(s netip.AddrPort) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.avoided[s] = time.Now().Add(avoidFor)
}

// refresh reads the configuration if its file is another than before. It is called with r.mu held.
func (r *Relay) refresh() {
	file, err := os.Stat(r.path)
	if err != nil {
		r.config, r.file = Config{}, nil
		return
	}
	if r.file != nil && sameFile(r.file, file) {
		return
	}
	r.config, _ = ReadConfig(r.path) // without a file there are no servers
	r.file = file
	clear(r.avoided)
}

// sameFile says whether a file is the same and unchanged. The change time tells a rewrite within one tick of the clock
// that also keeps the size, if anything does.
func sameFile(a, b os.FileInfo) bool {
	if !os.SameFile(a, b) || !a.ModTime().Equal(b.ModTime()) || a.Size() != b.Size() {
		return false
	}
	sa, oka := a.Sys().(*syscall.Stat_t)
	sb, okb := b.Sys().(*syscall.Stat_t)
	return !oka || !okb || sa.Ctim == sb.Ctim
}
