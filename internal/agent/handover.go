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

	"docker-usermode-linux/internal/scmrights"
)

// requestStdout tells a Proxy that the next descriptor on its socket is the write end of a pipe, for the standard output
// of the command that the session is to run.
const requestStdout = "stdout" + requestSuffix

// handOver gives the Proxy the pipe that is our standard output, if it is one, to write to: bulk data is then spared the
// second SSH connection, an eighth of the processor time that copying it takes in all. The pipe stays the client's too,
// which goes on writing what comes over the channel: all of it if the server is no Proxy and refuses the request, and the
// rest once the Proxy cannot write, so that it is the client that finds its pipe broken.
func (r *remote) handOver() {
	client := r.client
	file, ok := r.streams.Stdout.(*os.File)
	if !ok || !isPipe(file) {
		return
	}
	if _, ok := client.stream.inner.(*net.UnixConn); !ok {
		return
	}
	// Opened anew, as a pipe without O_NONBLOCK would hold up its writer even when the session is over, and our own end
	// may be other processes' too.
	again, err := openAgain(file)
	if err != nil {
		return
	}
	defer again.Close()
	client.handing.Lock() // the order of requests has to be that of descriptors
	defer client.handing.Unlock()
	client.stream.attach(again)
	_, _ = r.channel.SendRequest(requestStdout, true, nil) // refused or not
}

func isPipe(file *os.File) bool {
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeNamedPipe != 0
}

// widen has a pipe hold size bytes, unless it holds as many already (fcntl(2), F_SETPIPE_SZ). Each end then goes on for longer
// until it has to wake the other one. Where that may not be done, beyond a user's share of pipes for instance, the pipe stays
// as it is.
func widen(pipe *os.File, size int) {
	_ = control(pipe, func(fd int) error {
		if now, err := unix.FcntlInt(uintptr(fd), unix.F_GETPIPE_SZ, 0); err != nil || now >= size {
			return err
		}
		_, err := unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, size)
		return err
	})
}

// openAgain opens a pipe a second time, to write to it without waiting (proc_pid_fd(5)).
func openAgain(file *os.File) (again *os.File, err error) {
	err = control(file, func(fd int) (err error) {
		again, err = os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_WRONLY|unix.O_NONBLOCK, 0)
		return err
	})
	return again, err
}

// sendWith writes to a socket, with a file attached to the first byte (unix(7), SCM_RIGHTS).
func sendWith(conn *net.UnixConn, bytes []byte, file *os.File) (n int, err error) {
	err = control(file, func(fd int) (err error) {
		n, _, err = conn.WriteMsgUnix(bytes, unix.UnixRights(fd), nil)
		return err
	})
	return n, err
}

// receiver is a socket over which files may come along with the bytes. The last is kept until it is taken.
type receiver struct {
	*net.UnixConn
	oob [32]byte // of Read, which one goroutine calls: room for four descriptors; the kernel closes more

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
	n, oobn, _, _, err := r.ReadMsgUnix(p, r.oob[:])
	fds, _ := scmrights.Parse(r.oob[:oobn]) // the kernel's own words
	for _, fd := range fds {
		r.keep(fd)
	}
	if errors.Is(err, io.EOF) {
		err = io.EOF // as a reader says it
	}
	return n, err
}

// keep has writes to a descriptor wait in the runtime's poller, not in a system call.
func (r *receiver) keep(fd int) {
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return
	}
	r.replace(os.NewFile(uintptr(fd), "client's stdout"))
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
	widen(pipe, clientPipeSize)
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
