package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	mendRootfs     = "mount a root file system there, like docker run -v /path/to/rootfs:"
	mendHostRootfs = "give one that holds a root file system, see uml rootfs"
	mendFile       = "mount one there or correct the path"
)

// CheckFiles says whether Rootfs, Kernel and Initramfs exist and are what they have to be, and whether NetPcap can be
// written. Like Load it reports all problems at once. It passes over a path that Load has rejected, or that is unset.
func (c Config) CheckFiles() error {
	var problems []error
	for _, file := range []struct {
		setting, path string
		check         func(path string) error
	}{
		{"ROOTFS", c.rootfs(), func(path string) error { return checkRootfs(path, c.Options.Host) }},
		{"DISK", c.Disk, func(path string) error { return checkDisk(path, c.Ephemeral) }},
		{"KERNEL", c.Kernel, checkKernel},
		{"INITRAMFS", c.Initramfs, func(path string) error { _, err := statFile(path); return err }},
		{"NET_PCAP", c.NetPcap, checkPcap},
	} {
		if file.path == "" {
			continue
		}
		if err := file.check(file.path); err != nil {
			problems = append(problems, fmt.Errorf("%s=%q: %w", c.Options.Names.Of(file.setting), file.path, err))
		}
	}
	return errors.Join(problems...)
}

// rootfs is the directory that is the guest's root file system, "" if that lies on a disk: an image has /rootfs all the
// same.
func (c Config) rootfs() string {
	if c.Disk != "" {
		return ""
	}
	return c.Rootfs
}

func checkRootfs(path string, host bool) error {
	mend := mendRootfs + path
	if host {
		mend = mendHostRootfs
	}
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("%w; %s", cause(err), mend)
	}
	if !info.IsDir() {
		return fmt.Errorf("not a directory; %s", mend)
	}
	dir, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("%w; make it readable for user %d", cause(err), os.Getuid())
	}
	defer dir.Close()
	switch _, err := dir.ReadDir(1); {
	case errors.Is(err, io.EOF):
		return fmt.Errorf("the directory is empty; %s", mend)
	case err != nil:
		return cause(err)
	}
	return nil
}

// checkDisk takes an image or a block device that can be written, unless nothing is to be.
func checkDisk(path string, readOnly bool) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("%w; %s", cause(err), mendFile)
	}
	if mode := info.Mode(); !mode.IsRegular() && mode&fs.ModeType != fs.ModeDevice {
		return fmt.Errorf("neither a file nor a block device; %s", mendFile)
	}
	access, what := uint32(unix.R_OK|unix.W_OK), "readable and writable"
	if readOnly {
		access, what = unix.R_OK, "readable"
	}
	if err := unix.Access(path, access); err != nil {
		return fmt.Errorf("%w; make it %s for user %d", err, what, os.Getuid())
	}
	return nil
}

func checkKernel(path string) error {
	info, err := statFile(path)
	if err != nil {
		return err
	}
	if info.Mode()&0o111 == 0 {
		return errors.New("not executable; run chmod +x on it")
	}
	return nil
}

// checkPcap takes whatever can be written to: a named pipe, too, which is how Wireshark watches, and which is opened for
// both so that nothing waits for a reader.
func checkPcap(path string) error {
	switch info, err := os.Stat(path); {
	case err == nil && info.IsDir():
		return fmt.Errorf("is a directory; name a file in it, like %s", filepath.Join(path, "guest.pcap"))
	case err == nil && info.Mode()&fs.ModeNamedPipe != 0:
		if err := unix.Access(path, unix.R_OK|unix.W_OK); err != nil {
			return fmt.Errorf("%w; make the pipe readable and writable for user %d", err, os.Getuid())
		}
	case err == nil:
		if err := unix.Access(path, unix.W_OK); err != nil {
			return fmt.Errorf("%w; make it writable for user %d", err, os.Getuid())
		}
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w; correct the path", cause(err))
	default:
		dir := filepath.Dir(path)
		if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
			return fmt.Errorf("%s: %w; mount a directory there that user %d can write to", dir, err, os.Getuid())
		}
	}
	return nil
}

func statFile(path string) (os.FileInfo, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("%w; %s", cause(err), mendFile)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("not a regular file; %s", mendFile)
	}
	return info, nil
}
