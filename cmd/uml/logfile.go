package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// maxLog is when a log is put aside for a new one, in bytes; one such is kept. What a guest says when nothing is wrong is
// some 10 KB at each boot.
const maxLog = 10 << 20

// oldSuffix is what the log that was put aside is called.
const oldSuffix = ".1"

// logFile is the log of a detached guest, of bounded size. It is also this process's stderr, for the last words of a
// crash.
type logFile struct {
	path string
	max  int64
	// asStderr says that stderr follows.
	asStderr bool

	file *os.File
	size int64

	// Set by stream.
	in, out *os.File
	copying sync.WaitGroup
}

// openLog begins the log of a guest. That of an earlier guest of that name is gone then.
func openLog(path string, limit int64, asStderr bool) (*logFile, error) {
	for _, old := range []string{path, path + oldSuffix} {
		if err := os.Remove(old); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("remove the log of an earlier guest: %w", err)
		}
	}
	l := &logFile{path: path, max: limit, asStderr: asStderr}
	return l, l.next()
}

// next puts the log aside, if there is one, and begins a new one.
func (l *logFile) next() error {
	if err := os.Rename(l.path, l.path+oldSuffix); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("put the log aside: %w", err)
	}
	file, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	if l.file != nil {
		_ = l.file.Close()
	}
	l.file, l.size = file, 0
	if l.asStderr {
		if err := unix.Dup2(int(file.Fd()), int(os.Stderr.Fd())); err != nil {
			return fmt.Errorf("open the log: %w", err)
		}
	}
	return nil
}

// Write implements io.Writer. A log that cannot be written is no reason for a guest to stand still.
func (l *logFile) Write(p []byte) (int, error) {
	if l.size > 0 && l.size+int64(len(p)) > l.max {
		_ = l.next() // else it grows on
	}
	n, _ := l.file.Write(p)
	l.size += int64(n)
	return len(p), nil
}

// stream returns a file whose content goes to the log, until close.
func (l *logFile) stream() (*os.File, error) {
	var err error
	if l.out, l.in, err = os.Pipe(); err != nil {
		return nil, err
	}
	l.copying.Go(func() { _, _ = io.Copy(l, l.out) })
	return l.in, nil
}

// close ends the stream, when all of it is in the log.
func (l *logFile) close() {
	_ = l.in.Close()
	l.copying.Wait()
	_ = l.out.Close()
	_ = l.file.Close()
}
