package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// loopback is whom the C library asks when its configuration names no server.
var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

var errNoAnswer = errors.New("the server's message is no answer to the query")

// plan is how to ask one query.
type plan struct {
	servers []netip.AddrPort
	// patience is how long the query may take.
	patience time.Duration
	// share of the time that one server has before the next one is asked too.
	share time.Duration
	// attempts is how often a query over UDP is sent to a server within its share.
	attempts int
	// tcp asks over TCP even what was asked over UDP.
	tcp bool
}

// plan returns how to ask the next query.
func (r *Relay) plan() plan {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refresh()
	servers := r.config.Servers
	if len(servers) == 0 {
		servers = []netip.AddrPort{netip.AddrPortFrom(loopback, Port)}
	}
	p := plan{
		patience: r.budget(),
		attempts: r.config.attempts(),
		tcp:      r.config.has("use-vc"),
	}
	p.share = min(p.patience/time.Duration(len(servers)), r.config.timeout(), r.maxShare)
	first := 0
	if r.config.has("rotate") {
		first = r.turn % len(servers)
		r.turn++
	}
	now := time.Now()
	var late []netip.AddrPort
	for _, s := range slices.Concat(servers[first:], servers[:first]) {
		if r.port != 0 {
			s = netip.AddrPortFrom(s.Addr(), r.port)
		}
		if now.Before(r.silent[s].avoid) {
			late = append(late, s)
		} else {
			p.servers = append(p.servers, s)
		}
	}
	p.servers = append(p.servers, late...)
	return p
}

// budget is how long a query may take: the guest has the same options, and less patience where they say so. It is
// called with r.mu held.
func (r *Relay) budget() time.Duration {
	client := min(r.config.timeout()*time.Duration(r.config.attempts()), defaultTimeout)
	return time.Duration(float64(r.patience) * client.Seconds() / defaultTimeout.Seconds())
}

// silence is what is known of a server that did not answer.
type silence struct {
	since time.Time // when the last query that it left unanswered was given up
	avoid time.Time // until when it is asked last; zero before it was silent twice
}

// noteSilence notes that a server was silent when it was asked at a time. Queries that are under way together fall into
// the same silence: one answer that is slow, or a moment without a network, makes no server dead.
func (r *Relay) noteSilence(s netip.AddrPort, asked time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before, again := r.silent[s]
	if again && asked.Before(before.since) {
		return
	}
	now := time.Now()
	next := silence{since: now}
	if again {
		next.avoid = now.Add(avoidFor)
	}
	r.silent[s] = next
}

// trust notes that a server answers.
func (r *Relay) trust(s netip.AddrPort) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.silent, s)
}

// refresh reads the configuration if its file is another than before. It is called with r.mu held.
func (r *Relay) refresh() {
	file, err := os.Stat(r.path)
	if err != nil {
		r.config, r.file = Config{}, nil
		return
	}
	if r.file != nil && r.settled && sameFile(r.file, file) {
		return
	}
	before := r.config.Servers
	r.config, _ = ReadConfig(r.path) // without a file there are no servers
	r.file, r.settled = file, time.Since(changeTime(file)) > settleTime
	if !slices.Equal(before, r.config.Servers) {
		clear(r.silent)
	}
}

// sameFile says whether a file is the same and unchanged.
func sameFile(a, b os.FileInfo) bool {
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size() &&
		changeTime(a).Equal(changeTime(b))
}

// changeTime is the file's ctime, which unlike its mtime nobody can set.
func changeTime(file os.FileInfo) time.Time {
	if s, ok := file.Sys().(*syscall.Stat_t); ok {
		return time.Unix(s.Ctim.Unix())
	}
	return file.ModTime()
}

// ask returns the answer of the first server that has one. If none has, it is not ok, and the answer is the last
// failure, or nil.
func (r *Relay) ask(ctx context.Context, network string, q *query) (answer []byte, ok bool) {
	p := r.plan()
	if p.tcp {
		network = "tcp"
	}
	type reply struct {
		server netip.AddrPort
		answer []byte
		err    error
	}
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithTimeout(ctx, p.patience)
	defer cancel()
	replies := make(chan reply, len(p.servers)) // nobody waits to be heard
	late := time.NewTimer(p.share)
	defer late.Stop()
	asked, open := 0, 0
	var askedAt time.Time // the last one
	next := func() {
		if asked == len(p.servers) || ctx.Err() != nil {
			return
		}
		s := p.servers[asked]
		asked++
		open++
		askedAt = time.Now()
		late.Reset(p.share)
		running.Go(func() {
			answer, err := exchange(ctx, network, s, q, p)
			replies <- reply{s, answer, err}
		})
	}
	var failure []byte
	for next(); open > 0; {
		select {
		case <-late.C:
			r.noteSilence(p.servers[asked-1], askedAt)
			next()
		case got := <-replies:
			open--
			if got.server == p.servers[asked-1] {
				late.Stop()
			}
			if got.err == nil {
				r.trust(got.server)
				if !isFailure(got.answer) {
					return got.answer, true
				}
				failure = got.answer
			}
			next()
		}
	}
	return failure, false
}

// exchange asks one server, until ctx ends.
func exchange(ctx context.Context, network string, server netip.AddrPort, q *query, p plan) ([]byte, error) {
	conn, err := dial(ctx, network, server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if network == "tcp" {
		return first(conn, q)
	}
	// One byte more than the client takes tells an answer that is too large. The rest of it is of no use.
	buf := make([]byte, q.size+1)
	for sent := 1; ; sent++ {
		if _, err := conn.Write(q.msg); err != nil {
			return nil, err
		}
		var again time.Time // never
		if sent < p.attempts {
			again = time.Now().Add(p.share / time.Duration(p.attempts))
		}
		_ = conn.SetReadDeadline(again)
		answer, err := readAnswer(conn, q, buf)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return answer, err
		}
	}
}

// readAnswer waits for the answer over UDP. Anything else is forged, or late: the answer may still come.
func readAnswer(conn net.Conn, q *query, buf []byte) ([]byte, error) {
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return nil, err
		}
		if q.isAnswer(buf[:n]) {
			return buf[:n], nil
		}
	}
}

// transfer passes the messages of an answer to send as they come, until the server ends the connection or falls silent.
// It reports whether that is all that tells the client that the answer has ended.
func (r *Relay) transfer(ctx context.Context, q *query, send func([]byte) error) (open bool) {
	p := r.plan()
	failure := q.fail()
	for _, s := range p.servers {
		conn, msg, err := r.begin(ctx, s, q, p.share)
		if ctx.Err() != nil && err != nil {
			return false
		}
		if err != nil {
			continue
		}
		if isFailure(msg) {
			_ = conn.Close()
			failure = msg
			continue
		}
		defer conn.Close()
		stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
		defer stop()
		r.stats.Answers.Add(1)
		if msg[3]&0x0f != 0 { // such as NOTAUTH: nothing follows
			_ = send(msg)
			return false
		}
		for err == nil && q.isFollowing(msg) && send(msg) == nil {
			_ = conn.SetReadDeadline(time.Now().Add(r.idle))
			msg, err = readMessage(conn)
		}
		return true
	}
	r.stats.Failures.Add(1)
	_ = send(failure)
	return false
}

// begin asks a server over TCP and returns the first message of its answer, and the connection for the others.
func (r *Relay) begin(
	ctx context.Context, server netip.AddrPort, q *query, timeout time.Duration,
) (net.Conn, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := dial(ctx, "tcp", server)
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	msg, err := first(conn, q)
	if !stop() || err != nil {
		_ = conn.Close()
		return nil, nil, errors.Join(err, ctx.Err())
	}
	return conn, msg, nil
}

// first sends a query over TCP and returns the first message of its answer.
func first(conn net.Conn, q *query) ([]byte, error) {
	if err := writeMessage(conn, q.msg); err != nil {
		return nil, err
	}
	msg, err := readMessage(conn)
	if err == nil && !q.isAnswer(msg) {
		err = errNoAnswer
	}
	return msg, err
}

func dial(ctx context.Context, network string, server netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, server.String())
}
