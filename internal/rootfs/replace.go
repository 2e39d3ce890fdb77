package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"syscall"
)

// maxLinks bounds a chain of symbolic links, as the kernel's MAXSYMLINKS does.
const maxLinks = 40

// attr is what a replaced file keeps of the one before.
type attr struct {
	perm     fs.FileMode
	uid, gid int
}

// unowned leaves a new file to whoever made it. That is root in the guest, or, on the hostfs of a kernel process
// without privileges, that process's user, whom every file there belongs to.
const unowned = -1

// ours is a file of whoever makes it.
func ours(perm fs.FileMode) attr {
	return attr{perm: perm, uid: unowned, gid: unowned}
}

// attrOf returns the attributes of a file, after symbolic links.
func attrOf(root *os.Root, name string) (attr, error) {
	info, err := root.Stat(name)
	if err != nil {
		return attr{}, err
	}
	return attrOfInfo(info), nil
}

func attrOfInfo(info fs.FileInfo) attr {
	a := ours(info.Mode().Perm())
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		a.uid, a.gid = int(st.Uid), int(st.Gid)
	}
	return a
}

// private gives an existing file or directory to us, root in the guest, with the permissions perm.
func private(root *os.Root, name string, perm fs.FileMode) error {
	have, err := attrOf(root, name)
	if err != nil {
		return err
	}
	if have.perm != perm {
		if err := root.Chmod(name, perm); err != nil {
			return err
		}
	}
	if uid := os.Geteuid(); have.uid != uid {
		if err := root.Chown(name, uid, os.Getegid()); err != nil {
			return fmt.Errorf("belongs to user %d, the SSH server may refuse the keys: %w", have.uid, err)
		}
	}
	return nil
}

// replace puts a file with the given text and attributes in the place of name, atomically. A symbolic link stays and
// the file that it leads to is replaced.
func replace(root *os.Root, name string, text []byte, want attr) (err error) {
	name, err = followLinks(root, name)
	if err != nil {
		return err
	}
	// A fixed name: nobody else writes our files, and what a crash left behind is cleared away.
	temp := path.Dir(name) + "/." + path.Base(name) + ".docker-usermode-linux"
	if err := root.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	file, err := root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = fill(file, text, want)
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = root.Rename(temp, name)
	}
	if err != nil {
		_ = root.Remove(temp) // the first error tells more
	}
	return err
}

// fill writes text to a new file and gives it its attributes.
func fill(file *os.File, text []byte, want attr) error {
	if _, err := file.Write(text); err != nil {
		return err
	}
	info, err := file.Stat()
	if err != nil {
		return err
	}
	have := attrOfInfo(info)
	if want.uid != unowned && (have.uid != want.uid || have.gid != want.gid) {
		if err := file.Chown(want.uid, want.gid); err != nil {
			return err
		}
	}
	if have.perm != want.perm {
		if err := file.Chmod(want.perm); err != nil {
			return err
		}
	}
	return file.Sync()
}

// followLinks returns the name of the file that name leads to. Links in its directories are left to os.Root, which
// also refuses what leads out of the tree.
func followLinks(root *os.Root, name string) (string, error) {
	for range maxLinks {
		info, err := root.Lstat(name)
		if errors.Is(err, fs.ErrNotExist) || (err == nil && info.Mode().Type() != fs.ModeSymlink) {
			return name, nil
		}
		if err != nil {
			return "", err
		}
		target, err := root.Readlink(name)
		if err != nil {
			return "", err
		}
		if path.IsAbs(target) {
			return "", fmt.Errorf("%s is a symbolic link to the absolute path %s", name, target)
		}
		// Not path.Join: ".." after a symbolic link is not the directory before it.
		name = path.Dir(name) + "/" + target
	}
	return "", fmt.Errorf("%s: %w", name, syscall.ELOOP)
}
