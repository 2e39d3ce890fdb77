// Package disk makes and keeps disk images that are a guest's root file system: an ext4 file system in a file, with files
// of any owner, made by a user who is not root. It needs the programs of e2fsprogs, from version 1.46 (2021) on.
//
// # Theory of operation
//
// mke2fs can fill a new file system from a directory (-d), but a plain user's directory has no files of other owners, and
// no devices. Since version 1.47.1 it also takes an archive, if it was built with libarchive; we do not wait for that, and
// have one way for all versions:
//
//  1. The archive is unpacked into a temporary directory. All files are the user's, with modes that let us write them;
//     devices are FIFOs for now. Each file's modification time becomes its number: 1, 2, …
//  2. mke2fs makes the file system from that. It takes care of names, contents, holes, hard and symbolic links.
//  3. The inode tables of the image are read. An inode's time tells which file it is.
//  4. debugfs gets a script that sets owner, mode, times, extended attributes and devices. It names files by their inode,
//     so that no name out of the archive gets into the script, but for devices': quote keeps it to one word.
//  5. e2fsck has to find nothing to complain about, and indexes large directories, which mke2fs does not.
//
// All of it happens in a directory beside the image, which is renamed when it is whole: there is never half an image.
//
// Package image unpacks archives, too, and hands us the ones that it has flattened; its way is another all the same. It makes
// a root file system, with every attribute that the host's can hold. Here each inode is a plain file of the user's, without
// attributes of the archive's, FIFOs stand for devices, and for each inode is noted what it is to become. Of what both owe a
// foreign archive, not to be led out of the directory, os.Root takes care here.
//
// The file system has the features that ext4 has had since Linux 4.4, named one by one, so that it depends on no
// mke2fs.conf, and an older e2fsprogs can check what a newer one has made. It is sparse: 2 GiB take a megabyte at first.
package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Options say what Create makes.
type Options struct {
	// Tar is an archive of a whole root file system, uncompressed, as docker export writes it. Owners are taken by number.
	Tar io.Reader
	// Size of the file system in bytes; 0 is twice the content, and 2 GiB at least.
	Size int64
}

// defaultSize is for a guest that gets a few packages. As the image is sparse, it costs nothing.
const defaultSize = 2 << 30

// features of the file system (ext4(5)). Not among them are those that mke2fs 1.47 would add and e2fsck 1.46 refuses:
// orphan_file and metadata_csum_seed.
const features = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file," +
	"huge_file,dir_nlink,extra_isize,metadata_csum"

const (
	blockSize = 4096
	inodeSize = 256
	// bytesPerInode is mke2fs's own ratio; a file system that grows keeps it.
	bytesPerInode = 16384
)

// Create makes an image, where nothing is. On an error there is none.
func Create(ctx context.Context, path string, o Options) error {
	if err := create(ctx, path, o); err != nil {
		return fmt.Errorf("create disk %s: %w", path, err)
	}
	return nil
}

func create(ctx context.Context, path string, o Options) error {
	t, err := findTools(createTools...)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(path); err == nil {
		return errExists // early, as place would at the end
	}
	work, err := os.MkdirTemp(filepath.Dir(path), ".disk-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)

	if err := t.build(ctx, work, o); err != nil {
		return err
	}
	return place(filepath.Join(work, imageName), path)
}

var errExists = errors.New("exists already")

// Names in the directory where an image is made. The programs run there and get these names, as e2fsprogs takes a "?"
// in a path for the start of options.
const (
	imageName  = "image"
	treeName   = "tree"
	scriptName = "script"
)

// build makes the image work/image.
func (t tools) build(ctx context.Context, work string, o Options) error {
	nodes, err := unpack(ctx, o.Tar, filepath.Join(work, treeName))
	if err != nil {
		return err
	}
	if err := nodes.number(); err != nil {
		return err
	}
	if err := t.makeFileSystem(ctx, work, o.Size); err != nil {
		return err
	}
	s := script{dir: work}
	if err := s.fromTree(nodes); err != nil {
		return err
	}
	if err := t.edit(ctx, work, &s); err != nil {
		return err
	}
	if _, err := t.run(ctx, work, "e2fsck", "-f", "-p", "-D", imageName); exitCode(err) > fsckCorrected {
		return fmt.Errorf("check what was made: %w", err)
	}
	return nil
}

// makeFileSystem runs mke2fs on the tree.
func (t tools) makeFileSystem(ctx context.Context, work string, size int64) error {
	use, err := measure(ctx, filepath.Join(work, treeName))
	if err != nil {
		return err
	}
	chosen := size
	if size == 0 {
		size = max(defaultSize, 2*use.bytes)
	}
	args := []string{
		"-q", "-F", "-t", "ext4", "-O", features, "-b", fmt.Sprint(blockSize), "-I", fmt.Sprint(inodeSize),
		"-m", "1", "-e", "remount-ro", "-E", "root_owner=0:0," + t.zeroed(ctx),
	}
	// Room for as many files again as there are, if they are small.
	if inodes := 2 * use.files; inodes > size/bytesPerInode {
		args = append(args, "-N", fmt.Sprint(inodes))
	} else {
		args = append(args, "-i", fmt.Sprint(bytesPerInode))
	}
	args = append(args, "-d", treeName, imageName, fmt.Sprintf("%dk", size/1024))
	if _, err := t.run(ctx, work, "mke2fs", args...); err != nil {
		if chosen != 0 && chosen < use.bytes*5/4+64<<20 {
			return fmt.Errorf("%d bytes may be too few for %d bytes in %d files: %w", chosen, use.bytes, use.files, err)
		}
		return err
	}
	return nil
}

// zeroed is the option that keeps mke2fs from filling tables and journal with zeros, which a new file reads as anyway, and
// from leaving that to the guest's kernel. Before 1.47.0 the tables, 1/64 of the size, have to be filled.
func (t tools) zeroed(ctx context.Context) string {
	if t.atLeast(ctx, 1, 47) {
		return "assume_storage_prezeroed=1"
	}
	return "lazy_itable_init=0,lazy_journal_init=1"
}

// place gives the image its name, once it is on the disk.
func place(image, path string) error {
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	// Password hashes and host keys of the guest are in it.
	if err := errors.Join(f.Chmod(0o600), f.Sync()); err != nil {
		return err
	}
	err = unix.Renameat2(unix.AT_FDCWD, image, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // not on every file system
		if _, err := os.Lstat(path); err == nil {
			return errExists
		}
		return os.Rename(image, path)
	}
	if errors.Is(err, unix.EEXIST) {
		return errExists
	}
	return err
}

// usage is what a file system needs for its content.
type usage struct{ bytes, files int64 }

// measure adds up what lies below a directory, in blocks as they will be, and holes left out.
func measure(ctx context.Context, dir string) (usage, error) {
	var u usage
	seen := map[uint64]bool{}
	err := filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err := errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		stat := statOf(info)
		if stat.Nlink > 1 && !info.IsDir() && seen[stat.Ino] {
			return nil
		}
		seen[stat.Ino] = true
		u.files++
		u.bytes += inodeSize
		switch {
		case info.Mode().IsRegular():
			u.bytes += roundUp(min(info.Size(), stat.Blocks*512), blockSize)
		case info.IsDir():
			u.bytes += roundUp(max(info.Size(), 1), blockSize)
		}
		return nil
	})
	return u, err
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }
