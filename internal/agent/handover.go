package agent

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// requestStdout tells a Proxy that the next descriptor on its socket is the write end of a pipe, for the standard output
// of the command that the session is to run.
const requestStdout = "stdout" + requestSuffix

// handOver gives the Proxy a pipe of ours to write to: bulk data is then spared the second SSH connection, an eighth
// of the processor time that copying it takes in all. The pipe stays the client's too, which goes on writing what comes
// over the channel: all of it if the server is no Proxy and refuses the request, and the rest once the Proxy cannot
// write, so that it is the client that finds its pipe broken.
func (c *Client) handOver(file *os.File, request func(name string) (bool, error)) {
	if _, ok := c.stream.inner.(*net.UnixConn); !ok || !isPipe(file) {
		return
	}
	// Opened anew, as a pipe without O_NONBLOCK would hold up its writer even when the session is over, and our own end
	// may be other processes' too.
	again, err := openAgain(file)
	if err != nil {
		return
	}
	defer again.Close()
	c.handing.Lock() // the order of requests has to be that of descriptors
	defer c.handing.Unlock()
	c.stream.attach(again)
	_, _ = request(requestStdout) // refused or not
}

func isPipe(file *os.File) bool {
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeNamedPipe != 0
}

// openAgain opens a pipe a second time, to write to it without waiting (proc_pid_fd(5)).
func openAgain(file *os.File) (again *os.File, err error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, err
	}
	if controlErr := raw.Control(func(fd uintptr) {
		again, err = os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_WRONLY|unix.O_NONBLOCK, 0)
	}); controlErr != nil {
		return nil, controlErr
	}
	return again, err
}

// sendWith writes to a socket, with a file attached to the first byte (unix(7), SCM_RIGHTS).
func sendWith(conn *net.UnixConn, bytes []byte, file *os.File) (n int, err error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return 0, err
	}
	if controlErr := raw.Control(func(fd uintptr) {
		n, _, err = conn.WriteMsgUnix(bytes, unix.UnixRights(int(fd)), nil)
	}); controlErr != nil {
		return 0, controlErr
	}
	return n, err
}

// receiver is a socket over which files may come along with the bytes. One is kept until it is taken; more are closed.
type receiver struct {
	*net.UnixConn

	mu   sync.Mutex
	file *os.File // guarded by mu
}

// newReceiver is conn itself if no files can come over it.
func newReceiver(conn net.Conn) (net.Conn, *receiver) {
	socket, ok := conn.(*net.UnixConn)
	if !ok {
		return conn, &receiver{}
	}
	r := &receiver{UnixConn: socket}
	return r, r
}

func (r *receiver) Read(p []byte) (int, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := r.ReadMsgUnix(p, oob)
	if oobn > 0 {
		r.keep(oob[:oobn])
	}
	if errors.Is(err, io.EOF) {
		err = io.EOF // as a reader says it
	}
	return n, err
}

// keep takes the files out of a control message.
func (r *receiver) keep(oob []byte) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return // the kernel's own words
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue // not rights, and not asked for
		}
		for _, fd := range fds {
			// Writes are to wait for the file's turn, not in a system call.
			if err := unix.SetNonblock(fd, true); err != nil {
				_ = unix.Close(fd)
				continue
			}
			r.replace(os.NewFile(uintptr(fd), "client's stdout"))
		}
	}
}

func (r *receiver) replace(file *os.File) {
	r.mu.Lock()
	old := r.file
	r.file = file
	r.mu.Unlock()
	if old != nil {
		old.Close()
	}
}

// take returns the file that came last, unless it was taken or is no pipe.
func (r *receiver) take() *os.File {
	r.mu.Lock()
	file := r.file
	r.file = nil
	r.mu.Unlock()
	if file != nil && !isPipe(file) {
		file.Close()
		return nil
	}
	return file
}

// outlet is where a Proxy writes a command's standard output: to the client's pipe if that was handed over, or else to
// the channel.
type outlet struct {
	channel io.Writer
	pipe    atomic.Pointer[os.File]
}

// use has everything from now on written to a pipe, which is the outlet's; nil changes nothing.
func (o *outlet) use(pipe *os.File) {
	if pipe == nil {
		return
	}
	if old := o.pipe.Swap(pipe); old != nil {
		old.Close()
	}
}

// Write goes on with the channel once the pipe fails.
func (o *outlet) Write(p []byte) (n int, err error) {
	if pipe := o.pipe.Load(); pipe != nil {
		if n, err = pipe.Write(p); err == nil {
			return n, nil
		}
		o.close()
	}
	m, err := o.channel.Write(p[n:])
	return n + m, err
}

// close closes the pipe, which ends a Write that waits for it.
func (o *outlet) close() {
	if pipe := o.pipe.Swap(nil); pipe != nil {
		pipe.Close()
	}
}
