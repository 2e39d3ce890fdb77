package image

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// Remove deletes a root file system, whatever modes its directories have. Symbolic links are not followed. A directory
// that is not there is no error; one in which something is mounted is, and nothing is deleted then.
func Remove(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	parent, err := os.OpenRoot(filepath.Dir(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer parent.Close()
	if err := checkUnmounted(dir); err != nil {
		return err
	}
	base := filepath.Base(dir)
	if err := parent.RemoveAll(base); err == nil || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	if err := openUp(parent, base); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return parent.RemoveAll(base)
}

// openUp lets the owner of the directories from name on look into them and remove what is there.
func openUp(parent *os.Root, name string) error {
	info, err := parent.Lstat(name)
	if err != nil || !info.IsDir() {
		return err
	}
	if info.Mode().Perm()&0o700 != 0o700 {
		if err := parent.Chmod(name, 0o700); err != nil {
			return err
		}
	}
	dir, err := parent.OpenRoot(name)
	if err != nil {
		return err
	}
	defer dir.Close()
	list, err := dir.Open(".")
	if err != nil {
		return err
	}
	entries, err := list.ReadDir(-1)
	_ = list.Close() // only read
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := openUp(dir, e.Name()); err != nil {
				return err
			}
		}
	}
	return nil
}
