// Package tempfile makes files without a name: nothing is left of one when it is closed, whatever ends the process.
package tempfile

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// New makes a file in a directory, or in the one for such files (TMPDIR) if dir is "". Others open it, if at all, by its
// descriptor: /proc/self/fd/N.
func New(dir string) (*os.File, error) {
	if dir == "" {
		dir = os.TempDir()
	}
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), dir+"/(unnamed)"), nil
	}
	return removed(dir) // not every file system has O_TMPFILE
}

func removed(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, ".unnamed-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
