package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

// ErrGone is the error of commands and calls that the agent did not finish, for example because the guest has stopped.
var ErrGone = errors.New("the guest's agent is gone")

// Client is the host's end of a connection to an agent, or to a Proxy. Any number of goroutines may use it.
type Client struct {
	stream  *stream
	conn    ssh.Conn
	turn    chan struct{} // holds a token while a Call is under way: the connection has one request at a time
	handing sync.Mutex    // held by handOver
	done    chan struct{}
	err     error // of the connection; valid when done is closed
}

// Dial makes a connection of conn, which the Client then owns. It waits for the agent for 30 s at most, or until ctx
// ends; ctx has no meaning afterwards.
func Dial(ctx context.Context, conn net.Conn) (*Client, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, handshakeTimeout,
		fmt.Errorf("the guest's agent did not answer within %v", handshakeTimeout))
	defer cancel()
	stream := newStream(conn)
	stop := context.AfterFunc(ctx, stream.abort)

	// No host key to check: conn is the console port of our own guest, or a socket of our own supervisor.
	config := &ssh.ClientConfig{User: "root", HostKeyCallback: ssh.InsecureIgnoreHostKey(), ClientVersion: version}
	sshConn, channels, requests, err := ssh.NewClientConn(stream, "", config)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		stream.abort()
		<-stream.sent
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("connect to the guest's agent: %w", err)
	}
	c := &Client{stream: stream, conn: sshConn, turn: make(chan struct{}, 1), done: make(chan struct{})}
	go c.serve(channels, requests)
	return c, nil
}

// serve refuses what the agent asks for, until the connection ends.
func (c *Client) serve(channels <-chan ssh.NewChannel, requests <-chan *ssh.Request) {
	var tasks sync.WaitGroup
	tasks.Go(func() { ssh.DiscardRequests(requests) })
	tasks.Go(func() {
		for channel := range channels {
			_ = channel.Reject(ssh.Prohibited, "the guest opens no channels")
		}
	})
	c.err = ignoreGoodbye(c.conn.Wait())
	c.stream.abort()
	<-c.stream.sent
	tasks.Wait()
	close(c.done)
}

// Done is closed when the connection has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

// Wait waits until the connection has ended. An end that either side wanted is no error.
func (c *Client) Wait() error {
	<-c.done
	return c.err
}

// Close ends the connection; commands get SIGHUP.
func (c *Client) Close() error {
	_ = c.conn.Close() // reports that the agent has closed it before
	<-c.done
	return nil
}

// Call sends a request to ServerOptions.Handle in the guest, and waits for the answer, which it decodes to what answer
// points to unless that is nil. Without error request and answer are JSON. Calls have turns. If ctx ends before its turn
// has come, nothing was sent; if it ends later, the answer is dropped when it comes, and the next turn begins then.
func (c *Client) Call(ctx context.Context, name string, request, answer any) error {
	payload, err := json.Marshal(request)
	if err != nil {
		return fmt.Errorf("call %s: %w", name, err)
	}
	if len(payload) > maxCommand {
		return fmt.Errorf("call %s: request is %d bytes long, at most %d are possible", name, len(payload), maxCommand)
	}
	var reply []byte
	called := make(chan error, 1)
	select {
	case c.turn <- struct{}{}:
	case <-c.done:
		return fmt.Errorf("call %s: %w", name, ErrGone)
	case <-ctx.Done():
		return fmt.Errorf("call %s: %w", name, context.Cause(ctx))
	}
	go func() { // ends with the connection at the latest
		defer func() { <-c.turn }()
		ok, data, err := c.conn.SendRequest(name+requestSuffix, true, payload)
		reply = data
		if err != nil {
			err = ErrGone
		} else if !ok {
			err = fmt.Errorf("guest: %s", Printable(string(data)))
		}
		called <- err
	}()
	select {
	case err = <-called:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err == nil && answer != nil {
		err = json.Unmarshal(reply, answer)
	}
	if err != nil {
		return fmt.Errorf("call %s: %w", name, err)
	}
	return nil
}

// Streams are what a command is connected to.
type Streams struct {
	// Stdin is read until its end, which the command sees. A Read that does not return outlives Run. Nil: no input.
	Stdin io.Reader
	// Stdout and Stderr get the output. With a terminal all goes to Stdout. Nil: it is dropped. If Stdout is the
	// *os.File of a pipe and the Client is a Proxy's on a unix socket, the Proxy's process writes to that pipe itself.
	Stdout, Stderr io.Writer
	// Resize has the new sizes of the terminal. Nil: it keeps its size.
	Resize <-chan Size
	// Signals are passed on to the command's process group; SIGKILL, too. Nil: none.
	Signals <-chan os.Signal
}

// Run runs a command in the guest and returns its exit code as a shell shows it: 128+n after signal n. A command that
// could not be started has said why on Stderr, and has a code of 125 to 127.
//
// With an error the code is 125. It is ErrGone if the connection was lost, that of a Writer of streams, or the cause of
// ctx; in each case the command gets SIGHUP.
func (c *Client) Run(ctx context.Context, command Command, streams Streams) (code int, err error) {
	payload, err := command.marshal()
	if err != nil {
		return codeAgent, err
	}
	r := &remote{client: c, streams: streams, ended: make(chan struct{})}
	type result struct {
		code int
		err  error
	}
	results := make(chan result, 1)
	go func() {
		code, err := r.run(payload)
		results <- result{code, err}
	}()
	select {
	case res := <-results:
		return res.code, res.err
	case <-ctx.Done():
	}
	go r.close() // which waits for an agent that does not read
	select {
	case <-results:
	case <-time.After(linger):
	}
	return codeAgent, context.Cause(ctx)
}

// marshal checks the command and returns it in JSON.
func (c Command) marshal() ([]byte, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	payload, err := json.Marshal(c)
	if err == nil && len(payload) > maxCommand {
		err = fmt.Errorf("command is %d bytes long, at most %d are possible", len(payload), maxCommand)
	}
	return payload, err
}

// remote is a command that runs in the guest.
type remote struct {
	client  *Client
	streams Streams
	ended   chan struct{}
	deaf    atomic.Bool // the command has closed its input

	mu      sync.Mutex
	closed  bool
	channel ssh.Channel
	failed  error // the first error of a Writer
}

// run returns when the channel is closed and all output written.
func (r *remote) run(payload []byte) (code int, err error) {
	defer close(r.ended)
	channel, requests, err := r.client.conn.OpenChannel("session", nil)
	if refusal, ok := errors.AsType[*ssh.OpenChannelError](err); ok {
		return codeAgent, errors.New(Printable(refusal.Message))
	}
	if err != nil {
		return codeAgent, ErrGone
	}
	r.mu.Lock()
	r.channel = channel
	if r.closed {
		_ = channel.Close()
	}
	r.mu.Unlock()

	started := make(chan error, 1)
	go func() { started <- r.start(payload) }()
	var outputs sync.WaitGroup
	outputs.Go(func() { r.copyOutput(r.streams.Stdout, channel) })
	outputs.Go(func() { r.copyOutput(r.streams.Stderr, channel.Stderr()) })

	code, err = codeAgent, ErrGone
	for request := range requests {
		switch request.Type {
		case "exit-status":
			var v exitStatus
			if ssh.Unmarshal(request.Payload, &v) == nil {
				code, err = int(v.Code), nil
			}
		case "exit-signal":
			var v exitSignal
			if ssh.Unmarshal(request.Payload, &v) == nil {
				sig, _ := signalNumber(v.Signal)
				code, err = 128+int(sig), nil
			}
		case requestEndOfWrite:
			r.deaf.Store(true)
		}
		_ = request.Reply(false, nil) // it fails if the connection is gone, which ends this loop
	}
	outputs.Wait()
	if startErr := <-started; startErr != nil && err != nil {
		err = startErr
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failed != nil {
		return codeAgent, r.failed
	}
	return code, err
}

// start sends the command, and then what comes for it. Without start the channel is closed.
func (r *remote) start(payload []byte) error {
	r.handOver()
	ok, err := r.channel.SendRequest(requestCommand, true, payload)
	if err != nil {
		return ErrGone
	}
	if !ok {
		r.close()
		return errors.New("the guest's agent does not take commands here")
	}
	go r.copyInput()
	if r.streams.Resize != nil || r.streams.Signals != nil {
		go r.control()
	}
	return nil
}

// control passes on sizes and signals until the command has ended.
func (r *remote) control() {
	resize, signals := r.streams.Resize, r.streams.Signals
	for {
		// A failed request means that the command has ended.
		select {
		case size, ok := <-resize:
			if !ok {
				resize = nil
				continue
			}
			_, _ = r.channel.SendRequest("window-change", false,
				ssh.Marshal(windowChange{Cols: uint32(size.Cols), Rows: uint32(size.Rows)}))
		case sig, ok := <-signals:
			if !ok {
				signals = nil
				continue
			}
			if number, ok := sig.(syscall.Signal); ok {
				_, _ = r.channel.SendRequest("signal", false, ssh.Marshal(stringRequest{signalName(unix.Signal(number))}))
			}
		case <-r.ended:
			return
		}
	}
}

// copyInput sends Stdin. Its errors end the input, as its end does.
func (r *remote) copyInput() {
	if r.streams.Stdin != nil {
		_ = copyBuffered(throttled{r.channel, r.client.stream}, hearing{r})
	}
	_ = r.channel.CloseWrite()
}

// hearing is Stdin as long as the command reads it.
type hearing struct{ *remote }

func (h hearing) Read(p []byte) (int, error) {
	if h.deaf.Load() {
		return 0, io.EOF
	}
	return h.streams.Stdin.Read(p)
}

// copyOutput writes to one of the Writers. When one fails, the command is given up.
func (r *remote) copyOutput(dst io.Writer, src io.Reader) {
	if dst == nil {
		dst = io.Discard
	}
	err := copyBuffered(dst, src)
	if err == nil {
		return
	}
	r.mu.Lock()
	if r.failed == nil {
		r.failed = err
	}
	r.mu.Unlock()
	r.close()
}

// close closes the channel, also one that is about to be opened.
func (r *remote) close() {
	r.mu.Lock()
	channel := r.channel
	r.closed = true
	r.mu.Unlock()
	if channel != nil {
		_ = channel.Close() // it may be closed already
	}
}
