package agent

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

const (
	// queueLow is the number of queued bytes from which on data has to wait (see stream). It is 8 packets, or about
	// 1 ms at 300 MB/s: enough to keep the other end busy.
	queueLow = 256 << 10
	// queueHigh is the number of queued bytes from which on everything has to wait. What is between the two marks is
	// one packet for each session, and replies. A peer that goes on asking without reading gets here.
	queueHigh = 8 << 20
	// linger is how long Close tries to send what is queued.
	linger = time.Second
)

// stream is a net.Conn for the SSH transport on any byte stream, such as a console port.
//
// Write puts its bytes in a queue that a goroutine sends. Without it two ends can stop for ever: x/crypto/ssh answers
// some messages, such as the close of a channel, from the goroutine that reads. If both ends do so at a time when both
// directions are full of data, neither reads. Here only data waits, in throttle, and what has to be said about it
// does not. As a second use, many small writes become one of up to 256 KiB.
type stream struct {
	inner  io.ReadWriteCloser
	reader *bufio.Reader
	sent   chan struct{} // closed when the sending goroutine has ended
	abort  func()        // closes inner, once

	mu     sync.Mutex
	change *sync.Cond // of anything below
	queue  []byte     // not yet taken by send
	file   *os.File   // goes along with what is sent next; inner is a unix socket
	err    error      // of the first write that failed, or net.ErrClosed
}

// newStream starts the goroutine that sends; it ends with Close or abort.
func newStream(inner io.ReadWriteCloser) *stream {
	s := &stream{
		inner:  inner,
		reader: bufio.NewReaderSize(inner, 2*bufferSize),
		sent:   make(chan struct{}),
	}
	s.change = sync.NewCond(&s.mu)
	s.abort = sync.OnceFunc(func() {
		s.fail(net.ErrClosed)
		s.mu.Lock()
		s.queue = nil
		s.mu.Unlock()
		inner.Close()
	})
	go s.send()
	return s
}

func (s *stream) Read(p []byte) (int, error) { return s.reader.Read(p) }

func (s *stream) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waitBelow(queueHigh)
	if s.err != nil {
		return 0, s.err
	}
	s.queue = append(s.queue, p...)
	s.change.Broadcast()
	return len(p), nil
}

// attach sends a file along with the next bytes. It stays the caller's, who closes it once they have been answered.
func (s *stream) attach(file *os.File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.file = file
}

// throttle waits until there is room for data. All who write data to a channel call it before.
func (s *stream) throttle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waitBelow(queueLow)
}

// waitBelow waits until fewer bytes than that are queued, or until nothing can be sent any more.
//
// Preconditions: mu is held.
func (s *stream) waitBelow(bytes int) {
	for len(s.queue) >= bytes && s.err == nil {
		s.change.Wait()
	}
}

// send is the goroutine that empties the queue.
func (s *stream) send() {
	defer close(s.sent)
	var spare []byte // the queue that was sent last, to be filled again
	for {
		s.mu.Lock()
		for len(s.queue) == 0 && s.err == nil {
			s.change.Wait()
		}
		if len(s.queue) == 0 {
			s.mu.Unlock()
			return
		}
		bytes := s.queue
		s.queue = spare[:0]
		file := s.file
		s.file = nil
		s.change.Broadcast()
		s.mu.Unlock()

		if err := s.write(bytes, file); err != nil {
			s.fail(err)
			return
		}
		if spare = bytes; cap(spare) > 2*queueLow {
			spare = nil // a burst is over
		}
	}
}

// write sends all of bytes, and file unless it is nil.
func (s *stream) write(bytes []byte, file *os.File) error {
	if file != nil {
		n, err := sendWith(s.inner.(*net.UnixConn), bytes, file)
		if err != nil {
			return err
		}
		bytes = bytes[n:]
	}
	_, err := s.inner.Write(bytes)
	return err
}

func (s *stream) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
	s.change.Broadcast()
}

// Close sends what is queued, as long as that takes no longer than linger, and closes the inner stream.
func (s *stream) Close() error {
	s.fail(net.ErrClosed)
	timer := time.AfterFunc(linger, s.abort)
	<-s.sent
	timer.Stop()
	s.abort()
	return nil
}

// LocalAddr is the inner stream's, if it has one.
func (s *stream) LocalAddr() net.Addr {
	if conn, ok := s.inner.(net.Conn); ok {
		return conn.LocalAddr()
	}
	return streamAddr{}
}

// RemoteAddr is the inner stream's, if it has one.
func (s *stream) RemoteAddr() net.Addr {
	if conn, ok := s.inner.(net.Conn); ok {
		return conn.RemoteAddr()
	}
	return streamAddr{}
}

var errNoDeadline = errors.New("a stream has no deadlines: abort it")

func (*stream) SetDeadline(time.Time) error      { return errNoDeadline }
func (*stream) SetReadDeadline(time.Time) error  { return errNoDeadline }
func (*stream) SetWriteDeadline(time.Time) error { return errNoDeadline }

// streamAddr is the address of what has none.
type streamAddr struct{}

func (streamAddr) Network() string { return "stream" }
func (streamAddr) String() string  { return "stream" }

// throttled is a writer of a channel's data.
type throttled struct {
	io.Writer
	stream *stream
}

func (t throttled) Write(p []byte) (n int, err error) {
	for first := true; err == nil && (first || len(p) > 0); first = false {
		t.stream.throttle()
		size := min(len(p), bufferSize)
		var m int
		m, err = t.Writer.Write(p[:size])
		n, p = n+m, p[size:]
	}
	return n, err
}
