package agent

import (
	"context"
	"net"
	"strconv"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

// dialTimeout bounds a connection that ssh -L asks for. It is what is left of loss and a busy guest.
const dialTimeout = 30 * time.Second

// directTCPIP is the payload of RFC 4254, section 7.2.
type directTCPIP struct {
	Host       string
	Port       uint32
	OriginHost string
	OriginPort uint32
}

// acceptForward connects a channel of ssh -L or -D. It is for logins only: others have better ways into the guest.
func (c *connection) acceptForward(ctx context.Context, channel ssh.NewChannel, serving *sync.WaitGroup) {
	var to directTCPIP
	switch {
	case ssh.Unmarshal(channel.ExtraData(), &to) != nil || to.Port > 65535:
		_ = channel.Reject(ssh.ConnectionFailed, "malformed request")
	case c.server.options.Auth == nil || c.grant.noForwarding:
		_ = channel.Reject(ssh.Prohibited, "port forwarding is not permitted")
	default:
		if c.forwards.Add(1) > maxForwards {
			c.forwards.Add(-1)
			_ = channel.Reject(ssh.ResourceShortage, "too many forwarded connections")
			return
		}
		serving.Go(func() {
			defer c.forwards.Add(-1)
			c.forward(ctx, channel, net.JoinHostPort(to.Host, strconv.Itoa(int(to.Port))))
		})
	}
}

// forward dials before it accepts, so that refused is refused.
func (c *connection) forward(ctx context.Context, channel ssh.NewChannel, address string) {
	dialer := net.Dialer{Timeout: dialTimeout}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		_ = channel.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	defer conn.Close()
	accepted, requests, err := channel.Accept()
	if err != nil {
		return
	}
	var copies sync.WaitGroup
	copies.Go(func() {
		_ = copyBuffered(conn, accepted)     // either end may go at any time
		_ = conn.(*net.TCPConn).CloseWrite() // fails if the other end has reset it
	})
	copies.Go(func() {
		if copyBuffered(throttled{accepted, c.stream}, conn) != nil {
			_ = accepted.Close() // reset: the other direction is over, too
		}
		_ = accepted.CloseWrite()
	})
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		ssh.DiscardRequests(requests) // until the channel is closed
		conn.Close()
	}()
	copies.Wait()
	_ = accepted.Close()
	<-closed
}
