package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// unpacker makes the entries of one archive. Until the end, directories are the user's own with mode 0700.
type unpacker struct {
	ctx     context.Context
	options UnpackOptions
	root    *os.Root
	meter   *meter
	report  Report
	buf     []byte
	// dirs has all directories that there are, by their path without symbolic links, "." for the root; nil as the header of
	// one that no entry told of.
	dirs map[string]*tar.Header
	// at is the directory of the last entry, open: archives have what is in a directory together.
	at     *os.File
	atPath string
}

// place is where an entry goes: a name in an open directory. The name has no slash and is not "..", so no system call that
// takes both, and does not follow a link, leads out of the directory.
type place struct {
	dir  *os.File
	base string
	path string // for unpacker.dirs
}

func (p place) fd() int { return int(p.dir.Fd()) }

func (u *unpacker) close() {
	if u.at != nil {
		_ = u.at.Close() // a directory
		u.at = nil
	}
}

// add makes an entry.
func (u *unpacker) add(h *tar.Header, _ int, content io.Reader, _ int64) error {
	typ, ok := fileType(h)
	if !ok {
		if h.Typeflag != tar.TypeXGlobalHeader {
			u.report.SkippedOthers++
		}
		return nil
	}
	if err := checkHeader(h); err != nil {
		return err
	}
	elems, err := elements(h.Name)
	if err != nil {
		return err
	}
	if len(elems) == 0 {
		if typ != tar.TypeDir {
			return errors.New("the root is no directory in it")
		}
		u.dirs["."] = h
		u.count(h)
		return nil
	}
	at, err := u.place(elems, true)
	if err != nil {
		return err
	}
	made, err := u.make(typ, at, h, content)
	if made && typ != tar.TypeLink {
		u.count(h)
	} else if made {
		u.report.Entries++
	}
	return err
}

// count takes note of an entry that was made.
func (u *unpacker) count(h *tar.Header) {
	u.report.Entries++
	if !u.options.Owner && (h.Uid != 0 && h.Uid != os.Geteuid() || h.Gid != 0 && h.Gid != os.Getegid()) {
		u.report.LostOwners++
	}
}

func (u *unpacker) make(typ byte, at place, h *tar.Header, content io.Reader) (made bool, err error) {
	switch typ {
	case tar.TypeDir:
		return true, u.makeDir(at, h)
	case tar.TypeReg:
		return true, u.makeFile(at, h, content)
	case tar.TypeLink:
		return true, u.makeLink(at, h)
	case tar.TypeSymlink:
		err := u.create(at, func() error { return unix.Symlinkat(h.Linkname, at.fd(), at.base) })
		if err != nil {
			return true, err
		}
		return true, u.attributesAt(at, h)
	default:
		return u.makeNode(typ, at, h)
	}
}

// place finds the directory of an entry.
func (u *unpacker) place(elems []string, make bool) (place, error) {
	dir, err := resolve(u, ".", elems[:len(elems)-1], make)
	if err != nil {
		return place{}, err
	}
	base := elems[len(elems)-1]
	fd, err := u.open(dir)
	return place{fd, base, path.Join(dir, base)}, err
}

// open returns a directory of u.dirs. It is good until the next call.
func (u *unpacker) open(dir string) (*os.File, error) {
	if u.at != nil && u.atPath == dir {
		return u.at, nil
	}
	d, err := u.root.Open(dir)
	if err != nil {
		return nil, err
	}
	u.close()
	u.at, u.atPath = d, dir
	return d, nil
}

// look implements tree.
func (u *unpacker) look(dir, base string) (kind, string, string, error) {
	full := path.Join(dir, base)
	if _, ok := u.dirs[full]; ok {
		return directory, full, "", nil
	}
	d, err := u.open(dir)
	if err != nil {
		return 0, "", "", err
	}
	n, err := unix.Readlinkat(int(d.Fd()), base, u.buf[:maxPath+1])
	switch {
	case errors.Is(err, unix.ENOENT):
		return missing, "", "", nil
	case errors.Is(err, unix.EINVAL):
		return other, "", "", nil
	case err != nil:
		return 0, "", "", err
	}
	return symlink, "", string(u.buf[:n]), nil
}

// mkdir implements tree.
func (u *unpacker) mkdir(dir, base string) (string, error) {
	d, err := u.open(dir)
	if err != nil {
		return "", err
	}
	if err := unix.Mkdirat(int(d.Fd()), base, 0o700); err != nil {
		return "", err
	}
	full := path.Join(dir, base)
	u.dirs[full] = nil
	return full, nil
}

// create makes something, in the place of what an earlier entry has made.
func (u *unpacker) create(at place, make func() error) error {
	err := make()
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	if _, ok := u.dirs[at.path]; !ok {
		err = unix.Unlinkat(at.fd(), at.base, 0)
	} else if err = unix.Unlinkat(at.fd(), at.base, unix.AT_REMOVEDIR); err == nil {
		delete(u.dirs, at.path)
	} else if errors.Is(err, unix.ENOTEMPTY) {
		err = errors.New("in its place is a directory with something in it")
	}
	if err != nil {
		return err
	}
	return make()
}

func (u *unpacker) makeDir(at place, h *tar.Header) error {
	if _, ok := u.dirs[at.path]; !ok {
		if err := u.create(at, func() error { return unix.Mkdirat(at.fd(), at.base, 0o700) }); err != nil {
			return err
		}
	}
	u.dirs[at.path] = h
	return nil
}

func (u *unpacker) makeFile(at place, h *tar.Header, content io.Reader) error {
	fd := -1
	err := u.create(at, func() (err error) {
		fd, err = unix.Openat(at.fd(), at.base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(fd), at.path)
	n, err := copySparse(file, content, u.buf, func(n int) { u.meter.add(int64(n)) })
	u.report.Bytes += n
	if err == nil && n != h.Size {
		err = io.ErrUnexpectedEOF
	}
	if err == nil {
		err = u.attributes(file, h, 0o600)
	}
	if err == nil {
		err = setTime(at.fd(), at.base, h)
	}
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	return err
}

// makeLink makes a hard link to an earlier entry.
func (u *unpacker) makeLink(at place, h *tar.Header) error {
	wrap := func(err error) error { return fmt.Errorf("it is a hard link to %.200q: %w", h.Linkname, err) }
	elems, err := elements(h.Linkname)
	if err != nil {
		return wrap(err)
	}
	if len(elems) == 0 {
		return wrap(errors.New("a directory"))
	}
	to := at
	// Opens the target's directory beside that of the entry.
	at.dir, u.at = u.at, nil
	defer at.dir.Close()
	if to, err = u.place(elems, false); err != nil {
		return wrap(err)
	}
	if to.path == at.path {
		return nil
	}
	if _, ok := u.dirs[to.path]; ok {
		return wrap(errors.New("a directory"))
	}
	// Before what is in the way goes: it may be the target's other name, but then the target stays.
	if err := unix.Faccessat(to.fd(), to.base, unix.F_OK, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return wrap(errors.New("which is not there"))
	}
	err = u.create(at, func() error { return unix.Linkat(to.fd(), to.base, at.fd(), at.base, 0) })
	if err != nil {
		return wrap(err)
	}
	return nil
}

// makeNode makes a named pipe or a device node. Only root can make the latter, and not in a user namespace.
func (u *unpacker) makeNode(typ byte, at place, h *tar.Header) (made bool, err error) {
	mode, dev := uint32(unix.S_IFIFO), 0
	if typ != tar.TypeFifo {
		if !u.options.Owner {
			u.report.SkippedDevices++
			return false, nil
		}
		mode, dev = unix.S_IFCHR, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))
		if typ == tar.TypeBlock {
			mode = unix.S_IFBLK
		}
	}
	err = u.create(at, func() error { return unix.Mknodat(at.fd(), at.base, mode|0o600, dev) })
	if typ != tar.TypeFifo && errors.Is(err, unix.EPERM) {
		u.report.SkippedDevices++
		return false, nil
	}
	if err != nil {
		return true, err
	}
	return true, u.attributesAt(at, h)
}
