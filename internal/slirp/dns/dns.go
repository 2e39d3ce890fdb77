// Package dns relays DNS queries, as they are, to the name servers of a resolv.conf(5), and answers those for a few
// names itself.
package dns

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Theory of operation
//
// A query is bytes, and so is its answer: both pass through as they are, the case of names and whatever DNS grows next
// included. Of a query the relay reads its header, its question, and how large an answer it takes (EDNS); of an answer
// the header and the question. The only messages that it makes itself are a SERVFAIL, the empty answer with the TC bit
// in place of one that is too large for UDP, and the answers for the names in Options.Hosts.
//
// Each query has a socket of its own, connected to the server: identifiers of different clients never meet, only the
// server's own datagrams arrive, a random port guards against forged ones, and a server that refuses is known at once.
// An answer must have the query's identifier and question.
//
// Servers are asked in the order of the file (or in turn, with "rotate"): the next one when one refuses, is not
// reached or answers that it cannot (SERVFAIL, NOTIMP, REFUSED), as the C library does, which sees but one server
// here; and the next one besides when one is silent for its share of the time. The first good answer counts. The time
// is less than what a client waits before it asks again, and less than the "timeout:n" times "attempts:n" after which it
// gives up, and the servers share it equally, unless "timeout:n" gives
// them less; in its share each is asked "attempts:n" times. A server that was silent twice in a row is asked last for a
// while, so that a dead one costs its share twice and not with every query. Once is a slow answer, a lost packet: C
// libraries start with the first server all the same, which may know names that the others do not. If no server has an answer the client gets the last
// failure, or a SERVFAIL of ours. It never gets silence.
//
// The file is looked at (stat) with every query and read again when it is another or has changed: Docker and DHCP
// clients rewrite it. Because a file can change twice within one tick of its clock, one that has just changed is read
// with every query.
//
// TCP: a client's connection carries any number of queries, which are relayed side by side and answered as answers
// come in (RFC 7766 section 6.2.1). Each is one connection to a server. The answer to a zone transfer is many messages,
// and where it ends only who understands it knows: they are passed on until the server closes or says no more, and then
// the client's connection is closed as well.
//
// Bounds: queries in flight, over all sockets that are served, and TCP connections. A UDP query beyond is dropped, as a
// busy server would, a TCP query waits. A query holds a goroutine, and for each server that it is at one more with a
// socket and a buffer of the size that the client takes: with 3 servers that are all dead, and clients that take much,
// 1,024 queries hold 25 MB.

const (
	// patience is how long a query may take. C libraries repeat theirs after 5 s (defaultTimeout); one second is for a
	// busy guest. Where they give up sooner it is less in proportion.
	patience = 4 * time.Second
	// avoidFor is how long a server that was silent twice is asked last.
	avoidFor = 30 * time.Second
	// settleTime is more than any file system's clock needs for a tick, FAT's 2 s aside.
	settleTime = time.Second
	// idleTime is how long a connection may be silent (RFC 7766 section 6.2.3 suggests seconds), or be in the middle of
	// a message.
	idleTime = 10 * time.Second

	maxInFlight    = 1024
	maxConns       = 128
	maxConnQueries = 64
)

// Options of a Relay.
type Options struct {
	// ResolvConf is the path of the file with the servers.
	ResolvConf string
	// Hosts are names that the relay answers itself, in lower case and without a dot at the end. What cannot be a domain
	// is left out.
	Hosts map[string][]netip.Addr
}

// Relay relays queries.
type Relay struct {
	path     string
	names    names
	patience time.Duration
	idle     time.Duration
	maxShare time.Duration // of a server; tests shorten it
	port     uint16        // of servers; tests change it
	slots    chan struct{}
	conns    chan struct{}
	stats    Stats

	mu      sync.Mutex
	config  Config                     // guarded by mu
	file    os.FileInfo                // guarded by mu: config is from this file; nil before the first read
	settled bool                       // guarded by mu: the file cannot have changed unseen since
	turn    int                        // guarded by mu: for "rotate"
	silent  map[netip.AddrPort]silence // guarded by mu: servers that did not answer the last time
}

// Stats counts what a Relay did.
type Stats struct {
	Queries   atomic.Uint64
	Own       atomic.Uint64 // queries for names of our own
	Answers   atomic.Uint64 // of servers
	Truncated atomic.Uint64 // answers that were too large for the client
	Failures  atomic.Uint64 // queries that no server answered
	Dropped   atomic.Uint64 // queries and connections beyond the bounds
}

// New makes a relay.
func New(o Options) *Relay {
	return &Relay{
		path:     o.ResolvConf,
		names:    newNames(o.Hosts),
		patience: patience,
		maxShare: patience,
		idle:     idleTime,
		slots:    make(chan struct{}, maxInFlight),
		conns:    make(chan struct{}, maxConns),
		silent:   make(map[netip.AddrPort]silence),
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
		q := readQuery(slices.Clone(buf[:n]))
		queries.Go(func() {
			defer func() { <-r.slots }()
			answer := r.relay(ctx, "udp", q)
			if answer == nil {
				return
			}
			answer, whole := q.fits(answer)
			if !whole {
				r.stats.Truncated.Add(1)
			}
			_, _ = conn.WriteTo(answer, from) // a lost answer is asked for again
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
	send := func(answer []byte) error {
		write.Lock()
		defer write.Unlock()
		_ = conn.SetWriteDeadline(time.Now().Add(r.idle))
		err := writeMessage(conn, answer)
		if err != nil {
			cancel()
		}
		return err
	}
	in := bufio.NewReader(conn)
	mine := make(chan struct{}, maxConnQueries)
	for {
		_ = conn.SetReadDeadline(time.Now().Add(r.idle))
		if _, err := in.Peek(1); err != nil {
			if isTimeout(err) && len(mine) > 0 {
				continue // not idle: it waits for us
			}
			// Half-closed is not closed: what was asked is still to be answered.
			if errors.Is(err, io.EOF) {
				queries.Wait()
			}
			return
		}
		_ = conn.SetReadDeadline(time.Now().Add(r.idle))
		msg, err := readMessage(in)
		if err != nil || !isQuery(msg) {
			return
		}
		mine <- struct{}{}
		select {
		case r.slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		q := readQuery(msg)
		queries.Go(func() {
			defer func() { <-r.slots; <-mine }()
			if q.isTransfer() {
				r.stats.Queries.Add(1)
				if r.transfer(ctx, q, send) {
					cancel()
				}
				return
			}
			if answer := r.relay(ctx, "tcp", q); answer != nil {
				_ = send(answer)
			}
		})
	}
}

// relay returns the answer to a query, or nil when ctx ended.
func (r *Relay) relay(ctx context.Context, network string, q *query) []byte {
	r.stats.Queries.Add(1)
	if answer := r.names.answer(q); answer != nil {
		r.stats.Own.Add(1)
		return answer
	}
	answer, ok := r.ask(ctx, network, q)
	switch {
	case ok:
		r.stats.Answers.Add(1)
		return answer
	case ctx.Err() != nil:
		return nil
	}
	r.stats.Failures.Add(1)
	if answer == nil {
		answer = q.fail()
	}
	return answer
}

func isTimeout(err error) bool {
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}
