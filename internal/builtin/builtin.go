// Package builtin has the guest's kernel and its initramfs, where the program was built with them (make host, which
// sets the build tag embed), and puts them where they can be executed and read.
//
// # Theory of operation
//
// The kernel is executed from an anonymous file: nothing is written to a disk, nothing is left behind, and no directory
// has to allow it. It executes /proc/self/exe once more when it starts, which leads to the same file. Where the host
// forbids that (sysctl vm.memfd_noexec=2, or a security module), it is a file in the user's cache directory instead, named
// by its hash: made beside its place, renamed there, and its content compared before every use. Those of other versions
// are removed; a guest that runs one keeps it.
//
// Neither is compressed. The kernel has 10 MB: written to memory that takes some 3 ms of a start, unpacked from zstd or
// gzip 25 or 100 ms, for 6 MB less of a file that is downloaded compressed anyway.
package builtin

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Has says whether there is a kernel, and an initramfs, in this program.
func Has() bool { return len(kernel) > 0 }

// Kernel returns a path by which this process and its children execute the kernel, for as long as this process lives.
func Kernel() (string, error) {
	path, err := anonymous("linux", kernel, true)
	if err == nil {
		return path, nil
	}
	cached, cacheErr := cache("linux", kernel)
	if cacheErr != nil {
		return "", fmt.Errorf("no place to execute the kernel from: %w", errors.Join(err, cacheErr))
	}
	return cached, nil
}

// Initramfs returns a path by which this process reads the initramfs.
func Initramfs() (string, error) {
	path, err := anonymous("initramfs", initramfs, false)
	if err != nil {
		return "", fmt.Errorf("make a file of the initramfs: %w", err)
	}
	return path, nil
}

// firstFD is the lowest descriptor that a file gets here: those of a child's own files are below it, so that the path
// leads a child that is about to execute it to the same file.
const firstFD = 100

// anonymous makes a file in memory, which nobody can change. It closes on exec, after that has opened the kernel.
func anonymous(name string, data []byte, executable bool) (string, error) {
	flags := unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	kind := unix.MFD_NOEXEC_SEAL
	if executable {
		kind = unix.MFD_EXEC
	}
	fd, err := unix.MemfdCreate(name, flags|kind)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate(name, flags)
	}
	if err != nil {
		return "", fmt.Errorf("make an anonymous file: %w", err)
	}
	high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, firstFD)
	_ = unix.Close(fd)
	if err != nil {
		return "", fmt.Errorf("make an anonymous file: %w", err)
	}
	path := fmt.Sprintf("/proc/self/fd/%d", high)
	if err := fill(high, path, data, executable); err != nil {
		_ = unix.Close(high)
		return "", fmt.Errorf("make an anonymous file: %w", err)
	}
	return path, nil
}

func fill(fd int, path string, data []byte, executable bool) error {
	for len(data) > 0 {
		n, err := unix.Write(fd, data)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		data = data[max(n, 0):]
	}
	const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		return err
	}
	if executable {
		return unix.Access(path, unix.X_OK)
	}
	return nil
}

// idSize is how much of its hash a file is named by, in bytes.
const idSize = 8

// cache returns the path of an executable file with that content in the user's cache directory.
func cache(name string, data []byte) (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(data)
	dir := filepath.Join(base, "uml", hex.EncodeToString(sum[:idSize]))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	path := filepath.Join(dir, name)
	if verify(path, data) == nil {
		return path, nil
	}
	// Not there, damaged, or somebody else's: replaced, and that is only possible in a directory of our own.
	if err := replace(path, data); err != nil {
		return "", err
	}
	dropOthers(filepath.Dir(dir), filepath.Base(dir), name)
	return path, verify(path, data)
}

// dropOthers removes the files of that name in the directories beside keep. What cannot be removed is in nobody's way.
func dropOthers(base, keep, name string) {
	entries, _ := os.ReadDir(base)
	for _, e := range entries {
		if id, err := hex.DecodeString(e.Name()); err == nil && len(id) == idSize && e.Name() != keep {
			_ = os.Remove(filepath.Join(base, e.Name(), name))
			_ = os.Remove(filepath.Join(base, e.Name())) // if nothing else is in it
		}
	}
}

// verify is an error unless a file has that content, can be executed, and nobody but us can change it.
func verify(path string, data []byte) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	owner := int(info.Sys().(*syscall.Stat_t).Uid)
	if !info.Mode().IsRegular() || info.Mode().Perm() != 0o500 || owner != os.Geteuid() {
		return fmt.Errorf("%s is not a file that only user %d can change", path, os.Geteuid())
	}
	if err := unix.Access(path, unix.X_OK); err != nil {
		return fmt.Errorf("%s cannot be executed, as on a file system that is mounted noexec: %w", path, err)
	}
	have, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !bytes.Equal(have, data) {
		return fmt.Errorf("%s is damaged", path)
	}
	return nil
}

// replace puts a file at path, at once for all who look.
func replace(path string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(0o500), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
