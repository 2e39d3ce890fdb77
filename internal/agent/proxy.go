package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/crypto/ssh"
)

// Proxy serves a client on conn with what upstream offers, until the client closes conn, which is no error, or ctx
// ends; conn is closed. Sessions and global requests named NAME@docker-usermode-linux pass through, with data, requests,
// replies, half-close and close in both directions. An SSH client can be any, as root.
//
// upstream is asked for each session and request, and its error reaches the client. If the Client that it returns dies,
// the sessions on it are closed without an exit code, which Run reports as ErrGone. A session that upstream is late to
// open delays the return.
func Proxy(ctx context.Context, conn net.Conn, upstream func() (*Client, error)) error {
	parent := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, files := newReceiver(conn)
	defer files.replace(nil)
	stream := newStream(conn)
	defer func() { <-stream.sent }()
	defer stream.abort()
	handshake, stopHandshake := context.WithTimeout(ctx, handshakeTimeout)
	defer stopHandshake()
	stop := context.AfterFunc(handshake, stream.abort)

	key, err := ephemeralKey()
	if err != nil {
		return err
	}
	config := &ssh.ServerConfig{
		ServerVersion: version,
		NoClientAuth:  true,
		NoClientAuthCallback: func(meta ssh.ConnMetadata) (*ssh.Permissions, error) {
			if meta.User() != "root" {
				return nil, errors.New("only root is served here") // the name would not reach the agent
			}
			return nil, nil
		},
	}
	config.AddHostKey(key)
	sshConn, channels, requests, err := ssh.NewServerConn(stream, config)
	if err != nil {
		if errors.Is(err, io.EOF) {
			return nil
		}
		return fmt.Errorf("serve a client: %w", err)
	}
	if !stop() {
		return context.Cause(handshake)
	}
	defer context.AfterFunc(ctx, stream.abort)()

	p := &proxy{upstream: upstream, stream: stream, files: files}
	var tasks sync.WaitGroup
	tasks.Go(func() { p.passRequests(requests) })
	tasks.Go(func() { p.acceptChannels(channels) })
	err = sshConn.Wait()
	tasks.Wait()
	if parent.Err() != nil {
		return context.Cause(parent)
	}
	return ignoreGoodbye(err)
}

// proxy is a client that is served with another one's connection.
type proxy struct {
	upstream func() (*Client, error)
	stream   *stream   // to the client
	files    *receiver // from the client
	sessions atomic.Int32
}

// passRequests passes global requests on, one after the other, as replies have no other order.
func (p *proxy) passRequests(requests <-chan *ssh.Request) {
	for request := range requests {
		ok, answer := p.passRequest(request)
		_ = request.Reply(ok, answer) // fails once the connection is gone, which ends this loop
	}
}

func (p *proxy) passRequest(request *ssh.Request) (ok bool, answer []byte) {
	if !strings.HasSuffix(request.Type, requestSuffix) {
		return false, nil
	}
	client, err := p.upstream()
	if err != nil {
		return false, []byte(err.Error())
	}
	ok, answer, err = client.conn.SendRequest(request.Type, request.WantReply, request.Payload)
	if err != nil {
		return false, []byte(ErrGone.Error())
	}
	return ok, answer
}

func (p *proxy) acceptChannels(channels <-chan ssh.NewChannel) {
	var serving sync.WaitGroup
	defer serving.Wait()
	for channel := range channels {
		if channel.ChannelType() != "session" {
			_ = channel.Reject(ssh.UnknownChannelType, "not supported")
			continue
		}
		if p.sessions.Add(1) > maxSessions {
			p.sessions.Add(-1)
			_ = channel.Reject(ssh.ResourceShortage, fmt.Sprintf("more than %d at once", maxSessions))
			continue
		}
		serving.Go(func() {
			defer p.sessions.Add(-1)
			p.pass(channel)
		})
	}
}

// pass opens the client's session upstream and passes all through until both ends have closed it.
func (p *proxy) pass(session ssh.NewChannel) {
	client, err := p.upstream()
	if err != nil {
		_ = session.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	up, upRequests, err := client.conn.OpenChannel("session", session.ExtraData())
	if err != nil {
		reason, message := ssh.ConnectionFailed, ErrGone.Error()
		if refusal, ok := errors.AsType[*ssh.OpenChannelError](err); ok {
			reason, message = refusal.Reason, refusal.Message
		}
		_ = session.Reject(reason, message)
		return
	}
	down, downRequests, err := session.Accept()
	if err != nil {
		_ = up.Close()
		ssh.DiscardRequests(upRequests)
		return
	}

	stdout := &outlet{channel: throttled{down, p.stream}}
	var tasks, fromUp sync.WaitGroup
	// The client's: data and its end; requests, until the client closes the channel.
	tasks.Go(func() {
		_ = copyBuffered(throttled{up, client.stream}, down) // the close of either end
		_ = up.CloseWrite()
	})
	tasks.Go(func() {
		passChannelRequests(up, downRequests, func(request *ssh.Request) (mine bool) {
			if request.Type != requestStdout {
				return false
			}
			pipe := p.files.take()
			stdout.use(pipe)
			_ = request.Reply(pipe != nil, nil)
			return true
		})
		_ = up.Close()
		stdout.close()
	})
	// The agent's, in the same way. The close comes last.
	fromUp.Go(func() {
		var outputs sync.WaitGroup
		outputs.Go(func() { _ = copyBuffered(stdout, up) })
		outputs.Go(func() { _ = copyBuffered(throttled{down.Stderr(), p.stream}, up.Stderr()) })
		outputs.Wait()
		stdout.close()
		_ = down.CloseWrite()
	})
	fromUp.Go(func() { passChannelRequests(down, upRequests, nil) })
	fromUp.Wait()
	_ = down.Close()
	tasks.Wait()
}

// passChannelRequests passes requests on until the channel that they come from is closed, but for those that own, unless
// it is nil, answers. Those that the other end does not get are refused.
func passChannelRequests(to ssh.Channel, requests <-chan *ssh.Request, own func(*ssh.Request) bool) {
	for request := range requests {
		if own != nil && own(request) {
			continue
		}
		ok, err := to.SendRequest(request.Type, request.WantReply, request.Payload)
		_ = request.Reply(ok && err == nil, nil)
	}
}
