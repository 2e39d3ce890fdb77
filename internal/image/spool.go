package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"docker-usermode-linux/internal/tempfile"
)

// spool copies r to a temporary file that has no name, so that it is gone when it is closed or the process dies.
func spool(ctx context.Context, r io.Reader, dir string, m *meter) (*os.File, error) {
	if dir == "" {
		dir = os.TempDir()
	}
	file, err := tempfile.New(dir)
	if err != nil {
		return nil, spoolError(dir, err)
	}
	if err := fillSpool(ctx, file, dir, r, m); err != nil {
		_ = file.Close() // the first error tells more
		return nil, err
	}
	return file, nil
}

func fillSpool(ctx context.Context, file *os.File, dir string, r io.Reader, m *meter) error {
	source := &contextReader{ctx: ctx, r: r}
	_, err := io.Copy(file, io.TeeReader(source, m))
	if err != nil && source.err == nil {
		return spoolError(dir, err)
	}
	return err
}

func spoolError(where string, err error) error {
	return fmt.Errorf("temporary copy in %s (the variable TMPDIR names another directory): %w", where, err)
}

// contextReader ends with the context's error. A pipe is waited for in a way that the context can end, too.
type contextReader struct {
	ctx context.Context
	r   io.Reader
	err error // of r or the context, but for io.EOF
}

func (c *contextReader) Read(p []byte) (n int, err error) {
	if file, ok := c.r.(*os.File); ok {
		err = waitReadable(c.ctx, file)
	} else {
		err = c.ctx.Err()
	}
	if err == nil {
		n, err = c.r.Read(p)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		c.err = err
	}
	return n, err
}

// waitReadable returns once a read would not block, or the context ends.
func waitReadable(ctx context.Context, file *os.File) error {
	const poll = 100 // ms; how late the end of the context may be seen
	for ctx.Err() == nil {
		fds := []unix.PollFd{{Fd: int32(file.Fd()), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, poll); n > 0 || (err != nil && !errors.Is(err, unix.EINTR)) {
			return nil // whatever is wrong, the read says it
		}
	}
	return ctx.Err()
}
