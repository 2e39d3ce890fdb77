package image

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"docker-usermode-linux/internal/image/runconfig"
)

// UnpackOptions are for Unpack. The zero value is good.
type UnpackOptions struct {
	// Owner keeps the owners and device nodes, for root and for root of a user namespace, where device nodes are left out:
	// the guest's devtmpfs has its own. Without it all is the user's own: files and directories keep their modes, but the
	// user may read and write each.
	Owner bool
	// Total is what Progress gets as the total: Source.Size, 0 if nobody knows.
	Total    int64
	Progress Progress
}

// Report says what became of the archive's entries.
type Report struct {
	Entries        int   // made
	Bytes          int64 // content of files
	SkippedDevices int   // device nodes that were left out
	SkippedOthers  int   // entries of a type that no file system has
	LostOwners     int   // entries that belong to neither root nor the user, but do now
	LostXattrs     int   // extended attributes that could not be set
}

// stagingPattern names the directory beside the destination in which all is made. One that a crash has left may be removed.
const stagingPattern = ".uml-rootfs-*"

// Unpack makes the root file system dir of an uncompressed tar archive, and what is above dir where that is missing. dir
// must not exist or be empty. Nothing outside of it is touched, whatever is in the archive; on an error, and when ctx
// ends, nothing is left. The last of several entries by the same name counts. An archive without its end mark is taken as
// whole, as every tar does.
//
// Set-user-id bits are kept. So a directory above dir should be closed to other users of the host (mode 0700): they
// could run such a program as the user.
func Unpack(ctx context.Context, archive io.Reader, dir string, o UnpackOptions) (_ Report, err error) {
	target, err := prepareTarget(dir)
	if err != nil {
		return Report{}, err
	}
	staging, err := os.MkdirTemp(filepath.Dir(target), stagingPattern)
	if err != nil {
		return Report{}, fmt.Errorf("a root file system is made beside its place: %w", err)
	}
	defer func() {
		if err != nil {
			if left := Remove(staging); left != nil {
				err = fmt.Errorf("%w; and what was unpacked cannot be removed: %w", err, left)
			}
		}
	}()
	report, err := unpackInto(ctx, archive, staging, o)
	if err != nil {
		return Report{}, spaceError(err, target)
	}
	return report, moveInto(staging, target)
}

func unpackInto(ctx context.Context, archive io.Reader, dir string, o UnpackOptions) (Report, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Report{}, err
	}
	defer root.Close()
	total := o.Total
	if total == 0 {
		total = -1
	}
	u := &unpacker{
		ctx: ctx, options: o, root: root, meter: newMeter(o.Progress, total, "unpacking"), buf: make([]byte, copySize),
		dirs: map[string]*tar.Header{".": nil},
	}
	defer u.close()
	buffered := bufio.NewReaderSize(&contextReader{ctx: ctx, r: archive}, copySize)
	if err := scanTar(ctx, buffered, nil, u.add); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("the archive ends too early, it is not complete: %w", err)
		}
		return Report{}, err
	}
	if err := u.finishDirs(); err != nil {
		return Report{}, err
	}
	u.meter.finish()
	return u.report, nil
}

// spaceError says what a full disk needs.
func spaceError(err error, target string) error {
	for _, full := range []error{unix.ENOSPC, unix.EDQUOT} {
		if errors.Is(err, full) {
			return fmt.Errorf("the file system of %s is full, free some space or choose another place: %w", target, err)
		}
	}
	return err
}

// prepareTarget returns where dir leads to, once that is free.
func prepareTarget(dir string) (string, error) {
	target, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if real, err := filepath.EvalSymlinks(target); err == nil {
		target = real
	}
	if target == "/" {
		return "", errors.New("/ is no place for a root file system: name a directory of its own")
	}
	info, err := os.Lstat(target)
	if errors.Is(err, fs.ErrNotExist) {
		return target, os.MkdirAll(filepath.Dir(target), 0o755)
	}
	if err != nil {
		return "", err
	}
	if !info.IsDir() {
		return "", fmt.Errorf("%s is there and not a directory: name another one", dir)
	}
	if above, err := os.Lstat(filepath.Dir(target)); err == nil && device(above) != device(info) {
		return "", mountPointError(target)
	}
	empty, err := isEmpty(target)
	if err != nil {
		return "", err
	}
	if !empty {
		return "", fmt.Errorf("%s is not empty: name another directory", dir)
	}
	return target, nil
}

// device tells file systems apart.
func device(info fs.FileInfo) uint64 { return info.Sys().(*syscall.Stat_t).Dev }

func mountPointError(target string) error {
	return fmt.Errorf("%s is a mount point: name a directory in it", target)
}

func isEmpty(dir string) (bool, error) {
	list, err := os.Open(dir)
	if err != nil {
		return false, err
	}
	defer list.Close()
	_, err = list.Readdirnames(1)
	if errors.Is(err, io.EOF) {
		return true, nil
	}
	return false, err
}

// LooksLikeRoot keeps somebody's home from being removed by a mistake.
func LooksLikeRoot(dir string) bool {
	for _, all := range [][]string{{runconfig.File}, {"etc", "usr"}, {"etc", "bin"}} {
		if !slices.ContainsFunc(all, func(name string) bool {
			_, err := os.Lstat(filepath.Join(dir, name))
			return err != nil
		}) {
			return true
		}
	}
	return false
}

// moveInto puts the root file system to its place.
func moveInto(staging, target string) error {
	err := unix.Rename(staging, target) // unlike os.Rename in the place of an empty directory, too
	switch {
	case errors.Is(err, unix.EBUSY):
		return mountPointError(target) // of the same file system
	case err != nil:
		return fmt.Errorf("move the root file system to %s: %w", target, err)
	}
	return nil
}

// finishDirs gives the directories their attributes, the inner ones first: nothing is made in them any more.
func (u *unpacker) finishDirs() error {
	names := slices.Sorted(maps.Keys(u.dirs))
	slices.Reverse(names)
	names = append(slices.DeleteFunc(names, func(n string) bool { return n == "." }), ".")
	for _, name := range names {
		if err := u.ctx.Err(); err != nil {
			return err
		}
		if err := u.finishDir(name, u.dirs[name]); err != nil {
			return entryError(name, err)
		}
	}
	return nil
}

func (u *unpacker) finishDir(name string, h *tar.Header) error {
	d, err := u.root.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	if h == nil {
		return d.Chmod(0o755)
	}
	// Before the mode, with which it might be closed to us.
	if err := setTime(int(d.Fd()), ".", h); err != nil {
		return err
	}
	return u.attributes(d, h, 0o700)
}
