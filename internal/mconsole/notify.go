package mconsole

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Notifications is the socket where a kernel reports. It has one receiver, which should be prompt: the kernel
// waits for room in the socket's queue, in the midst of a panic, too.
type Notifications struct {
	path string
	conn *net.UnixConn
}

// Listen creates the socket, for its owner only. A socket file at path that nobody listens on any more is
// replaced. path must fit the kernel's command line: at most 107 bytes, and no blanks.
func Listen(path string) (*Notifications, error) {
	if err := checkPath(path); err != nil {
		return nil, fmt.Errorf("listen for notifications: %w", err)
	}
	addr := &net.UnixAddr{Net: "unixgram", Name: path}
	conn, err := net.ListenUnixgram("unixgram", addr)
	if errors.Is(err, unix.EADDRINUSE) && removeStale(path) {
		conn, err = net.ListenUnixgram("unixgram", addr)
	}
	if err != nil {
		return nil, fmt.Errorf("listen for notifications: %w", err)
	}
	n := &Notifications{path: path, conn: conn}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("listen for notifications: %w", err), n.Close())
	}
	return n, nil
}

// Path of the socket, as Listen got it.
func (n *Notifications) Path() string { return n.path }

// Receive waits for the next notification. Datagrams that are none are passed over, so that an error always means
// the end: of ctx, or, with net.ErrClosed, of the socket.
func (n *Notifications) Receive(ctx context.Context) (Notification, error) {
	if err := ctx.Err(); err != nil {
		return Notification{}, context.Cause(ctx)
	}
	defer interrupt(ctx, n.conn)()
	var buf [maxDatagram]byte
	for {
		size, err := n.conn.Read(buf[:])
		if err != nil {
			if ctx.Err() != nil {
				return Notification{}, context.Cause(ctx)
			}
			return Notification{}, fmt.Errorf("receive notification: %w", err)
		}
		var notification Notification
		if notification.UnmarshalBinary(buf[:size]) == nil {
			return notification, nil
		}
	}
}

// Close ends Receive and removes the socket's file.
func (n *Notifications) Close() error {
	// The file goes first, so that it is gone when Receive returns.
	err := os.Remove(n.path)
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, n.conn.Close())
}
