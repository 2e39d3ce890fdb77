package mconsole

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// maxAnswer bounds the text of one answer in bytes, as a guest could go on replying for ever. The longest honest
// ones are dumps of all tasks (sysrq t).
const maxAnswer = 1 << 20

// maxSocketPath is the longest path of a Unix socket in bytes: sun_path (unix(7)) less the NUL, which the kernel
// under arch/um relies on.
const maxSocketPath = 107

// Error is the kernel's refusal of a command.
type Error struct {
	Command string
	Code    int32  // 1 or a negative errno
	Text    string // the kernel's reason, may be empty
}

func (e *Error) Error() string {
	if e.Text == "" {
		return fmt.Sprintf("mconsole %s: error %d", e.Command, e.Code)
	}
	return fmt.Sprintf("mconsole %s: %s", e.Command, e.Text)
}

// Client sends commands to one kernel. It keeps no state; any number of goroutines may use it.
type Client struct {
	path string
}

// NewClient is for the kernel whose socket is at path. The socket need not exist yet; it does once the kernel has
// sent a Socket notification.
func NewClient(path string) *Client { return &Client{path} }

// Command has the kernel execute one command ("cad", "sysrq s", "version"; "help" lists them) and returns the
// text that it answers, which is empty for most of them. A refusal is an *Error. With any other error comes the
// part of the answer that had arrived.
//
// The kernel answers from an interrupt handler or a kernel thread, so a dead or stopped guest answers never, and
// it drops replies that come faster than they are read: ctx needs a deadline.
//
// Every call has a socket of its own. The protocol does not number its datagrams, and so the late answer to a
// command that was given up cannot pass for the answer to the next one.
func (c *Client) Command(ctx context.Context, command string) (string, error) {
	answer, err := c.exchange(ctx, command)
	if _, refused := errors.AsType[*Error](err); err != nil && !refused {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return answer, fmt.Errorf("mconsole %s: %w", command, err)
	}
	return answer, err
}

func (c *Client) exchange(ctx context.Context, command string) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	request, err := Request{command}.MarshalBinary()
	if err != nil {
		return "", err
	}
	conn, err := connect(c.path)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	defer interrupt(ctx, conn)()

	if _, err := conn.Write(request); err != nil {
		return "", err
	}
	var (
		answer strings.Builder
		code   int32
		buf    [maxDatagram]byte
	)
	for {
		n, err := conn.Read(buf[:])
		if err != nil {
			return answer.String(), err
		}
		var reply Reply
		if err := reply.UnmarshalBinary(buf[:n]); err != nil {
			return answer.String(), err
		}
		if code == 0 {
			code = reply.Code
		}
		answer.WriteString(reply.Text)
		switch {
		case answer.Len() > maxAnswer:
			return answer.String(), fmt.Errorf("answer is longer than %d bytes", maxAnswer)
		case reply.More:
		case code != 0:
			return "", &Error{Command: command, Code: code, Text: answer.String()}
		default:
			return answer.String(), nil
		}
	}
}

// connect makes a socket with an address of the kernel's choice, for the replies, and connects it to path: from
// then on datagrams of anybody else are refused.
func connect(path string) (*net.UnixConn, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	// net.Dial leaves a socket unnamed that is given no address, and then the kernel cannot reply. Listening on
	// "" binds it to a free name in the abstract name space (autobind, unix(7)), which leaves no file behind. The
	// kernel must be able to send there: it has to be in our network namespace, and not in a Landlock domain with
	// LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET.
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		var connectErr error
		err = raw.Control(func(fd uintptr) {
			connectErr = unix.Connect(int(fd), &unix.SockaddrUnix{Name: path})
		})
		if connectErr != nil {
			err = fmt.Errorf("connect to %s: %w", path, connectErr)
		}
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// checkPath spares the user a bare "invalid argument".
func checkPath(path string) error {
	if path == "" {
		return errors.New("no path of a socket given")
	}
	if len(path) > maxSocketPath {
		return fmt.Errorf("path of a socket is %d bytes long, at most %d are possible; choose a shorter directory: %s",
			len(path), maxSocketPath, path)
	}
	return nil
}

// interrupt has the end of ctx end the reads and writes of conn. The function that it returns ends that, and
// leaves conn usable for another ctx.
func interrupt(ctx context.Context, conn *net.UnixConn) (release func()) {
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		_ = conn.SetDeadline(time.Unix(1, 0)) // fails on a closed conn only, whose reads have ended anyway
	})
	return func() {
		if !stop() {
			<-interrupted
			_ = conn.SetDeadline(time.Time{})
		}
	}
}

// removeStale removes the socket file at path if nobody listens there any more: a container that is started
// again finds the files of its last run. It says whether it did.
func removeStale(path string) bool {
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Type() != os.ModeSocket {
		return false
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Net: "unixgram", Name: path})
	if err == nil {
		conn.Close()
		return false
	}
	return errors.Is(err, unix.ECONNREFUSED) && os.Remove(path) == nil
}
