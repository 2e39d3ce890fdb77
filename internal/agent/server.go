package agent

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
)

const (
	// maxSessions bounds the sessions of a private connection: each has a thread, some goroutines, and up to 4 MiB in
	// windows. Nobody has that many terminals open; scripts in parallel do come near a hundred.
	maxSessions = 512
	// maxLoginSessions bounds the sessions of a login. sshd_config(5) has 10, which is few for editors; but other users
	// are to get their share.
	maxLoginSessions = 64
	// maxForwards bounds the forwarded connections of a login: a browser behind ssh -D opens dozens.
	maxForwards = 256
	// maxConnections bounds the connections of a listener, logged in or not.
	maxConnections = 256
	// maxStartups bounds the connections that have not logged in (sshd_config(5), MaxStartups).
	maxStartups = 10
	// maxAuthTries is the number of wrong passwords and keys on one connection (sshd_config(5), MaxAuthTries).
	maxAuthTries = 6
	// handshakeTimeout is for the part before the password, where no human has to think. A guest under full load takes
	// seconds.
	handshakeTimeout = 30 * time.Second
	// loginGrace is the time for all of the login (sshd_config(5), LoginGraceTime).
	loginGrace = 120 * time.Second
)

// version is what the server says it is (RFC 4253 section 4.2).
const version = "SSH-2.0-docker-usermode-linux"

// ServerOptions are what a Server needs. The zero value is a server of a private stream without requests.
type ServerOptions struct {
	// HostKey identifies the server. Nil: a new key that nobody knows, good for private streams.
	HostKey ssh.Signer
	// Auth decides who may log in. Nil: whoever has the stream may do everything.
	Auth *Authenticator
	// Handle answers the global requests NAME@docker-usermode-linux: name is without the suffix, both payloads are JSON.
	// The text of an error reaches the client. A connection has one call at a time, several have them at once. Unused
	// where Auth is set. Nil: all are refused.
	Handle func(name string, payload []byte) ([]byte, error)
	// Log gets what the administrator of the guest wants to know: refused logins, connections that broke. It is called
	// from several goroutines. Nil: nothing is logged.
	Log func(error)
}

// Server runs commands for the clients of streams.
type Server struct {
	options  ServerOptions
	accounts accounts
}

// NewServer returns a server that does nothing yet.
func NewServer(options ServerOptions) *Server {
	if options.Log == nil {
		options.Log = func(error) {}
	}
	return &Server{options: options, accounts: accounts{"/"}}
}

// Serve serves one stream until the client closes it, which is no error, or ctx ends, and closes it. When it returns all
// sessions have ended. Commands that ignore SIGHUP go on, each with a goroutine that waits for it.
//
// A Read of conn must end when conn is closed, which that of a file does if the file can be polled.
func (s *Server) Serve(ctx context.Context, conn io.ReadWriteCloser) error {
	err := s.serve(ctx, conn, func() {})
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// ServeListener accepts connections until the listener is closed, and returns when the last of them is over. If ctx ends,
// or the listener fails, it closes the listener and all connections. It logs what went wrong with single ones.
//
// New connections are dropped while too many have not logged in, or are there at all.
func (s *Server) ServeListener(ctx context.Context, listener net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var connections sync.WaitGroup
	defer connections.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { listener.Close() })()

	var open, startups atomic.Int32
	for {
		conn, err := listener.Accept()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			connections.Wait() // others may listen from now on, which is no reason to cut these off
			return nil
		}
		if isTemporary(err) {
			s.options.Log(fmt.Errorf("accept a connection: %w", err))
			pause(ctx, 100*time.Millisecond)
			continue
		}
		if err != nil {
			listener.Close()
			return fmt.Errorf("accept a connection: %w", err)
		}
		if startups.Load() >= maxStartups || open.Load() >= maxConnections {
			conn.Close()
			continue
		}
		open.Add(1)
		startups.Add(1)
		connections.Go(func() {
			defer open.Add(-1)
			started := sync.OnceFunc(func() { startups.Add(-1) })
			defer started()
			err := s.serve(ctx, conn, started)
			// Single refusals are in the log already.
			if _, refused := errors.AsType[*ssh.ServerAuthError](err); err != nil && !refused && ctx.Err() == nil {
				s.options.Log(fmt.Errorf("ssh from %s: %w", conn.RemoteAddr(), err))
			}
		})
	}
}

// isTemporary says whether a failed accept is a matter of load: no descriptors, no memory, a client that was gone.
func isTemporary(err error) bool {
	temporary, ok := errors.AsType[interface {
		error
		Temporary() bool
	}](err)
	return ok && temporary.Temporary()
}

// pause waits for d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// connection is a client.
type connection struct {
	server *Server
	stream *stream
	ssh    *ssh.ServerConn
	grant  grant

	sessions, forwards atomic.Int32
}

// serve serves one stream; started is called when the login is over.
func (s *Server) serve(ctx context.Context, conn io.ReadWriteCloser, started func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream := newStream(conn)
	defer func() { <-stream.sent }()
	defer stream.abort()
	defer context.AfterFunc(ctx, stream.abort)()

	config, err := s.config(ctx)
	if err != nil {
		return err
	}
	if s.options.Auth != nil {
		handshake := time.AfterFunc(handshakeTimeout, stream.abort)
		defer handshake.Stop()
		grace := time.AfterFunc(loginGrace, stream.abort)
		defer grace.Stop()
		config.PreAuthConnCallback = func(ssh.ServerPreAuthConn) { handshake.Stop() }
		started = joined(started, func() { grace.Stop() })
	}
	sshConn, channels, requests, err := ssh.NewServerConn(stream, config)
	if err != nil {
		if errors.Is(err, io.EOF) {
			return nil // somebody has looked whether there is a server
		}
		return fmt.Errorf("login: %w", err)
	}
	started()
	c := &connection{server: s, stream: stream, ssh: sshConn, grant: grantOf(sshConn.Permissions)}

	var tasks sync.WaitGroup
	tasks.Go(func() { c.handleRequests(requests) })
	tasks.Go(func() { c.acceptChannels(ctx, channels) })
	err = sshConn.Wait()
	cancel()
	tasks.Wait()
	return ignoreGoodbye(err)
}

// ignoreGoodbye drops the errors with which a connection ends as it should. For the message of RFC 4253 section 11.1
// x/crypto/ssh has no type; reason 11 is "by application".
func ignoreGoodbye(err error) error {
	if err == nil || errors.Is(err, io.EOF) || strings.HasPrefix(err.Error(), "ssh: disconnect, reason 11:") {
		return nil
	}
	return err
}

func joined(first, second func()) func() {
	return func() {
		first()
		second()
	}
}

// config is the configuration for one connection; ctx ends with it.
func (s *Server) config(ctx context.Context) (*ssh.ServerConfig, error) {
	key := s.options.HostKey
	if key == nil {
		var err error
		if key, err = ephemeralKey(); err != nil {
			return nil, err
		}
	}
	config := &ssh.ServerConfig{ServerVersion: version, MaxAuthTries: maxAuthTries}
	config.AddHostKey(key)
	if auth := s.options.Auth; auth != nil {
		auth.configure(ctx, config, s.options.Log)
	} else {
		config.NoClientAuth = true
	}
	return config, nil
}

// ephemeralKey makes a key that is forgotten with the process.
func ephemeralKey() (ssh.Signer, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a host key: %w", err)
	}
	return ssh.NewSignerFromSigner(private)
}

// handleRequests answers the global requests.
func (c *connection) handleRequests(requests <-chan *ssh.Request) {
	for request := range requests {
		answer, err := c.handleRequest(request)
		if err != nil && c.server.options.Auth == nil {
			answer = []byte(err.Error()) // which RFC 4254 has no room for, and x/crypto/ssh does
		}
		_ = request.Reply(err == nil, answer) // fails once the connection is gone, which ends this loop
	}
}

func (c *connection) handleRequest(request *ssh.Request) ([]byte, error) {
	name, ok := strings.CutSuffix(request.Type, requestSuffix)
	if !ok || c.server.options.Auth != nil || c.server.options.Handle == nil {
		return nil, errors.New("unknown request")
	}
	return c.server.options.Handle(name, request.Payload)
}

// acceptChannels serves the channels that the client opens, and waits for them.
func (c *connection) acceptChannels(ctx context.Context, channels <-chan ssh.NewChannel) {
	var serving sync.WaitGroup
	defer serving.Wait()
	for channel := range channels {
		switch channel.ChannelType() {
		case "session":
			limit := int32(maxSessions)
			if c.server.options.Auth != nil {
				limit = maxLoginSessions
			}
			c.accept(channel, &serving, &c.sessions, limit, func(ch ssh.Channel, requests <-chan *ssh.Request) {
				s := &session{conn: c, channel: ch, requests: requests, gone: make(chan struct{})}
				s.serve(ctx)
			})
		case "direct-tcpip":
			c.acceptForward(ctx, channel, &serving)
		default:
			_ = channel.Reject(ssh.UnknownChannelType, "not supported")
		}
	}
}

// accept accepts a channel, unless there are too many, and has it served. Errors mean that the connection is gone.
func (c *connection) accept(channel ssh.NewChannel, serving *sync.WaitGroup, count *atomic.Int32, limit int32,
	serve func(ssh.Channel, <-chan *ssh.Request),
) {
	if count.Add(1) > limit {
		count.Add(-1)
		_ = channel.Reject(ssh.ResourceShortage, fmt.Sprintf("more than %d at once", limit))
		return
	}
	accepted, requests, err := channel.Accept()
	if err != nil {
		count.Add(-1)
		return
	}
	serving.Go(func() {
		defer count.Add(-1)
		serve(accepted, requests)
	})
}

// account is whom shells and files are for: who has logged in, or, where nobody has to, the user that is asked for.
func (c *connection) account() (*user, error) {
	if c.grant.user != nil {
		return c.grant.user, nil
	}
	return c.server.accounts.byName(c.ssh.User())
}

// environment tells commands of a login where it came from (ssh(1)).
func (c *connection) environment() []string {
	theirs, ok := c.ssh.RemoteAddr().(*net.TCPAddr)
	ours, ok2 := c.ssh.LocalAddr().(*net.TCPAddr)
	if !ok || !ok2 {
		return nil
	}
	return []string{
		fmt.Sprintf("SSH_CLIENT=%s %d %d", theirs.IP, theirs.Port, ours.Port),
		fmt.Sprintf("SSH_CONNECTION=%s %d %s %d", theirs.IP, theirs.Port, ours.IP, ours.Port),
	}
}
