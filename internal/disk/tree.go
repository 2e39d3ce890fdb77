package disk

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// tree is an archive that was unpacked. What the host's files cannot be told, the nodes know.
type tree struct {
	dir  string
	root *os.Root
	// nodes by inode number of the unpacked file. A file that is replaced by a later entry loses its number, which
	// the next one may get.
	nodes map[uint64]*node
	// numbered are the nodes in the order of their numbers; the first one is the root directory, number 0.
	numbered []*node
}

// node is one inode to be.
type node struct {
	mode         uint32 // as in stat(2), with the type
	uid, gid     uint32
	mtime, atime time.Time
	major, minor uint32
	xattrs       map[string]string
	// spare are extended attributes that the unpacked file has got from the host: SELinux's label, a directory's ACL.
	spare []string
	// names are all of a device's.
	names []deviceName
}

// deviceName is an entry of a directory.
type deviceName struct {
	parent *node
	name   string
}

func (n *node) isDevice() bool {
	return n.mode&unix.S_IFMT == unix.S_IFCHR || n.mode&unix.S_IFMT == unix.S_IFBLK
}

// unpack puts an archive into a new directory. An entry's path never leads out of it, not by symbolic links either.
func unpack(ctx context.Context, archive io.Reader, dir string) (*tree, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	t := &tree{dir: dir, root: root, nodes: map[uint64]*node{}}
	if err := t.register(".", newParent()); err != nil {
		return nil, err
	}
	for reader := tar.NewReader(archive); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return t, nil
		}
		if err := errors.Join(err, ctx.Err()); err != nil {
			return nil, fmt.Errorf("read archive: %w", err)
		}
		if err := t.add(header, reader); err != nil {
			return nil, fmt.Errorf("unpack %q: %w", header.Name, err)
		}
	}
}

// types of entries, as in stat(2). Whatever else there is describes other entries, and the reader has dealt with it.
var types = map[byte]uint32{
	tar.TypeReg: unix.S_IFREG, tar.TypeCont: unix.S_IFREG, tar.TypeGNUSparse: unix.S_IFREG, tar.TypeLink: 0,
	tar.TypeSymlink: unix.S_IFLNK, tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeDir: unix.S_IFDIR,
	tar.TypeFifo: unix.S_IFIFO,
}

func (t *tree) add(header *tar.Header, content io.Reader) error {
	kind, known := types[header.Typeflag]
	if !known {
		if header.Typeflag == tar.TypeXGlobalHeader {
			return nil
		}
		return fmt.Errorf("entry of unknown type %q", header.Typeflag)
	}
	name := inTree(header.Name)
	if name == "." && kind != unix.S_IFDIR {
		return errors.New("is the root of the archive, but no directory")
	}
	if err := t.makeParents(path.Dir(name)); err != nil {
		return err
	}
	if header.Typeflag == tar.TypeLink {
		return t.link(inTree(header.Linkname), name)
	}
	n, err := newNode(header, kind)
	if err != nil {
		return err
	}
	if err := t.make(name, n, header, content); err != nil {
		return err
	}
	return t.register(name, n)
}

// register makes n what is known of a file.
func (t *tree) register(name string, n *node) error {
	info, err := t.root.Lstat(name)
	if err != nil {
		return err
	}
	t.nodes[statOf(info).Ino] = n
	return nil
}

// makeParents makes the directories that the archive has not said anything of, or not yet.
func (t *tree) makeParents(dir string) error {
	info, err := t.root.Stat(dir)
	switch {
	case err == nil && !info.IsDir():
		return fmt.Errorf("%s is no directory", dir)
	case err == nil || !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := t.makeParents(path.Dir(dir)); err != nil {
		return err
	}
	if err := t.root.Mkdir(dir, 0o700); err != nil {
		return err
	}
	return t.register(dir, newParent())
}

func newParent() *node {
	return &node{mode: unix.S_IFDIR | 0o755, mtime: time.Unix(0, 0), atime: time.Unix(0, 0)}
}

// inTree makes a path relative to the root, at which ".." ends as in a real one.
func inTree(name string) string {
	name = path.Clean("/" + name)[1:]
	if name == "" {
		return "."
	}
	return name
}

func newNode(header *tar.Header, kind uint32) (*node, error) {
	for _, id := range []int{header.Uid, header.Gid} {
		if id < 0 || id >= math.MaxUint32 {
			return nil, fmt.Errorf("owner %d:%d is none", header.Uid, header.Gid)
		}
	}
	n := &node{
		mode: kind | uint32(header.Mode)&0o7777, uid: uint32(header.Uid), gid: uint32(header.Gid),
		mtime: header.ModTime, atime: header.AccessTime,
	}
	if n.atime.IsZero() {
		n.atime = n.mtime
	}
	if n.isDevice() {
		// 12 and 20 bits (include/linux/kdev_t.h).
		if header.Devmajor < 0 || header.Devmajor >= 1<<12 || header.Devminor < 0 || header.Devminor >= 1<<20 {
			return nil, fmt.Errorf("device %d:%d is none", header.Devmajor, header.Devminor)
		}
		n.major, n.minor = uint32(header.Devmajor), uint32(header.Devminor)
	}
	for key, value := range header.PAXRecords {
		name, found := strings.CutPrefix(key, "SCHILY.xattr.") // star(1), and everyone since
		if !found || !isXattr(name) {
			continue
		}
		if n.xattrs == nil {
			n.xattrs = map[string]string{}
		}
		n.xattrs[name] = value
	}
	return n, nil
}

// isXattr tells whether Linux has such an attribute (xattr(7)): archives of other systems have other ones.
func isXattr(name string) bool {
	if name == "system.posix_acl_access" || name == "system.posix_acl_default" {
		return true
	}
	namespace, rest, _ := strings.Cut(name, ".")
	return slices.Contains([]string{"user", "trusted", "security"}, namespace) && rest != "" && len(name) <= unix.NAME_MAX
}

// make makes the file, in place of what is there.
func (t *tree) make(name string, n *node, header *tar.Header, content io.Reader) error {
	kind := n.mode & unix.S_IFMT
	if info, err := t.root.Lstat(name); err == nil {
		if kind == unix.S_IFDIR && info.IsDir() {
			return nil
		}
		if err := t.root.RemoveAll(name); err != nil {
			return err
		}
	}
	switch kind {
	case unix.S_IFDIR:
		return t.root.Mkdir(name, 0o700)
	case unix.S_IFLNK:
		return t.root.Symlink(header.Linkname, name)
	case unix.S_IFREG:
		return t.write(name, content)
	}
	// A FIFO, or a device, for which it keeps the place.
	parent, err := t.root.Open(path.Dir(name))
	if err != nil {
		return err
	}
	defer parent.Close()
	return unix.Mkfifoat(int(parent.Fd()), path.Base(name), 0o600)
}

func (t *tree) link(target, name string) error {
	old, err := t.root.Lstat(target)
	if err != nil {
		return fmt.Errorf("hard link: %w", err)
	}
	if old.IsDir() {
		return errors.New("hard link to a directory")
	}
	if present, err := t.root.Lstat(name); err == nil {
		if os.SameFile(old, present) {
			return nil
		}
		if err := t.root.RemoveAll(name); err != nil {
			return err
		}
	}
	return t.root.Link(target, name)
}

// write makes a file with holes where there are zeros: an archive may have a file of a terabyte of them.
func (t *tree) write(name string, content io.Reader) error {
	f, err := t.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	out := sparseWriter{file: f}
	if _, err := io.Copy(&out, content); err != nil {
		f.Close()
		return err
	}
	return errors.Join(f.Truncate(out.size), f.Close())
}

// sparseWriter leaves out blocks of zeros.
type sparseWriter struct {
	file io.WriterAt
	size int64 // so far
}

var zeros [blockSize]byte

func (w *sparseWriter) Write(p []byte) (int, error) {
	for done := 0; done < len(p); {
		block := p[done:min(len(p), done+blockSize-int(w.size%blockSize))]
		if !bytes.Equal(block, zeros[:len(block)]) {
			if _, err := w.file.WriteAt(block, w.size); err != nil {
				return done, err
			}
		}
		done += len(block)
		w.size += int64(len(block))
	}
	return len(p), nil
}

// number gives each file its number as modification time, and collects what else there is to know of it.
func (t *tree) number() error {
	seen := map[uint64]*node{}
	return filepath.WalkDir(t.dir, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		ino := statOf(info).Ino
		n := t.nodes[ino]
		if n == nil {
			return fmt.Errorf("%s: is not of the archive", name)
		}
		if n.isDevice() {
			parent, err := os.Lstat(filepath.Dir(name))
			if err != nil {
				return err
			}
			n.names = append(n.names, deviceName{t.nodes[statOf(parent).Ino], filepath.Base(name)})
		}
		if seen[ino] != nil {
			return nil
		}
		seen[ino] = n
		if n.spare, err = xattrsOf(name); err != nil {
			return err
		}
		stamp := unix.NsecToTimespec(int64(len(t.numbered)) * int64(time.Second))
		t.numbered = append(t.numbered, n)
		return unix.UtimesNanoAt(unix.AT_FDCWD, name, []unix.Timespec{stamp, stamp}, unix.AT_SYMLINK_NOFOLLOW)
	})
}

// xattrsOf lists the extended attributes that a file already has.
func xattrsOf(name string) ([]string, error) {
	var buffer [64 << 10]byte // XATTR_LIST_MAX
	n, err := unix.Llistxattr(name, buffer[:])
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "listxattr", Path: name, Err: err}
	}
	return strings.FieldsFunc(string(buffer[:n]), func(r rune) bool { return r == 0 }), nil
}

func statOf(info fs.FileInfo) *syscall.Stat_t { return info.Sys().(*syscall.Stat_t) }
