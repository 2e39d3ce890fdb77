package disk

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// ErrInUse means that a guest, or someone else, has the image.
var ErrInUse = errors.New("is in use")

// Held is an image, or a directory, that is held, for as long as it is not released; the end of the process releases it, too.
type Held struct{ file *os.File }

// Lock holds an image for one who writes to it, and fails with ErrInUse where anyone else has it: with Lock or LockShared,
// or because a kernel has it as its disk.
//
// Who runs a guest should hold its image. The lock is flock(2)'s, which does not get into the way of the one that the
// kernel's ubd driver sets itself, with fcntl(2), when the guest opens the device (os_lock_file in
// arch/um/os-Linux/file.c), but on NFS: see OneLock.
func Lock(path string) (*Held, error) { return lock(path, os.O_RDWR, unix.LOCK_EX, unix.F_WRLCK) }

// LockShared holds an image for one who only reads it, and fails with ErrInUse where anyone writes to it.
func LockShared(path string) (*Held, error) {
	return lock(path, os.O_RDONLY, unix.LOCK_SH, unix.F_RDLCK)
}

// LockDir holds a directory with a root file system for one who writes to it, or with shared for one of several who only
// read it, and fails with ErrInUse where that cannot be. A file system that has no such locks (some of NFS) is nobody's:
// then there is nothing to release (nil), and no error.
func LockDir(path string, shared bool) (*Held, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	how := unix.LOCK_EX
	if shared {
		how = unix.LOCK_SH
	}
	err = unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
	if err == nil {
		return &Held{f}, nil
	}
	f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("directory %s %w", path, ErrInUse)
	}
	return nil, nil
}

func lock(path string, flag, how int, kind int16) (*Held, error) {
	f, err := os.OpenFile(path, flag, 0)
	if err != nil {
		return nil, err
	}
	if err := lockFile(f, how, kind); err != nil {
		f.Close()
		return nil, fmt.Errorf("disk %s %w", path, err)
	}
	return &Held{f}, nil
}

func lockFile(f *os.File, how int, kind int16) error {
	err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return ErrInUse
	}
	if err != nil {
		return fmt.Errorf("cannot be locked: %w", err)
	}
	// The kernel's lock is only asked for: it would be refused if we had it.
	theirs := unix.Flock_t{Type: kind, Whence: io.SeekStart}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &theirs); err != nil {
		return fmt.Errorf("cannot be locked: %w", err)
	}
	if theirs.Type != unix.F_UNLCK {
		return fmt.Errorf("%w by process %d", ErrInUse, theirs.Pid)
	}
	return nil
}

// OneLock says that the file system makes no difference between our lock and that of the kernel's driver, as NFS does: the
// driver would be refused, and has to be told to do without (ubd0c=image).
func (h *Held) OneLock() bool {
	var st unix.Statfs_t
	return unix.Fstatfs(int(h.file.Fd()), &st) == nil && st.Type == unix.NFS_SUPER_MAGIC
}

// Release lets it go.
func (h *Held) Release() {
	if h != nil {
		_ = h.file.Close()
	}
}
