//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// kernelMount is one of the kernel's own file systems.
type kernelMount struct {
	path, fsType, data string
	flags              uintptr
}

// kernelMounts move along into the root file system.
var kernelMounts = []kernelMount{
	{"/proc", "proc", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	{"/sys", "sysfs", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	{"/dev", "devtmpfs", "mode=0755", unix.MS_NOSUID},
}

// terminals are for the agent, whatever init follows; they move along with /dev. An init leaves them as they are.
var terminals = kernelMount{"/dev/pts", "devpts", "gid=5,mode=620,ptmxmode=666", unix.MS_NOSUID | unix.MS_NOEXEC}

// mountKernelFilesystems mounts kernelMounts and terminals in the initramfs.
func mountKernelFilesystems() error {
	for _, m := range append(slices.Clone(kernelMounts), terminals) {
		if err := os.Mkdir(m.path, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		err := unix.Mount(m.fsType, m.path, m.fsType, m.flags, m.data)
		if err != nil && !errors.Is(err, unix.EBUSY) { // EBUSY: mounted already
			return fmt.Errorf("mount %s: %w", m.path, err)
		}
	}
	return nil
}

// openInRoot opens a path below the directory dir with the symbolic links in it, absolute ones too, resolved as they
// will be once dir is /.
func openInRoot(dir int, name string, flags int) (fd int, err error) {
	how := unix.OpenHow{Flags: uint64(flags) | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT}
	if flags&unix.O_CREAT != 0 {
		how.Mode = 0o644
	}
	for {
		// EAGAIN: something in the path was renamed meanwhile, which could hide a way out.
		fd, err = unix.Openat2(dir, name, &how)
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}

// bindOver mounts the file or directory source over what target refers to.
func bindOver(source string, target int) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	return unix.MoveMount(tree, "", target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// moveOver moves the mount at source to what target refers to.
func moveOver(source string, target int) error {
	return unix.MoveMount(unix.AT_FDCWD, source, target, "", unix.MOVE_MOUNT_T_EMPTY_PATH)
}
