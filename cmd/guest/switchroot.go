//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// switchRoot makes newRoot the root directory and gives the memory of the initramfs back.
func switchRoot() error {
	if err := moveKernelMounts(); err != nil {
		return err
	}
	if err := emptyInitramfs(); err != nil {
		return err
	}
	if err := unix.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move %s to /: %w", newRoot, err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return unix.Chdir("/")
}

// moveKernelMounts moves /proc, /sys and /dev into the new root. Where a directory could not be made the guest goes
// without.
func moveKernelMounts() error {
	root, err := unix.Open(newRoot, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	for _, m := range kernelMounts {
		target, err := openInRoot(root, m.path[1:], unix.O_PATH|unix.O_DIRECTORY)
		if err == nil {
			err = moveOver(m.path, target)
			unix.Close(target)
		}
		if err != nil {
			note(fmt.Errorf("no %s in the root file system: %w", m.path, err))
			if err := unix.Unmount(m.path, unix.MNT_DETACH); err != nil {
				return fmt.Errorf("unmount %s: %w", m.path, err)
			}
		}
	}
	return nil
}

// emptyInitramfs deletes everything on the file system of /, provided that it is one that lives in memory.
func emptyInitramfs() error {
	var fs unix.Statfs_t
	if err := unix.Statfs("/", &fs); err != nil {
		return err
	}
	if fs.Type != unix.RAMFS_MAGIC && fs.Type != unix.TMPFS_MAGIC {
		return fmt.Errorf("/ is no initramfs (file system type %#x)", fs.Type)
	}
	var st unix.Stat_t
	if err := unix.Lstat("/", &st); err != nil {
		return err
	}
	return deleteBelow("/", st.Dev)
}

// deleteBelow deletes what is in a directory and on the device dev. It enters no mount point.
func deleteBelow(dir string, dev uint64) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		name := dir + "/" + entry.Name()
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err != nil {
			return fmt.Errorf("lstat %s: %w", name, err)
		}
		if st.Dev != dev {
			continue
		}
		if entry.IsDir() {
			if err := deleteBelow(name, dev); err != nil {
				return err
			}
		}
		// EBUSY, ENOTEMPTY: a mount point, or a directory above one.
		err := os.Remove(name)
		if err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
			return err
		}
	}
	return nil
}
