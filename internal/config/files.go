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
	mendRootfs = "mount a root file system there, like docker run -v /path/to/rootfs:"
	mendFile   = "mount one there or correct the path"
)

// CheckFiles says whether Rootfs, Kernel and Initramfs exist and are what they have to be, and whether NetPcap can be
// written. Like Load it reports all problems at once. It passes over a path that Load has rejected, or that is unset.
func (c Config) CheckFiles() error {
	var problems []error
	for _, file := range []struct {
		setting, path string
		check         func(path string) error
	}{
		{"ROOTFS", c.Rootfs, checkRootfs},
		{"KERNEL", c.Kernel, checkKernel},
		{"INITRAMFS", c.Initramfs, func(path string) error { _, err := statFile(path); return err }},
		{"NET_PCAP", c.NetPcap, checkPcap},
	} {
		if file.path == "" {
			continue
		}
		if err := file.check(file.path); err != nil {
			problems = append(problems, fmt.Errorf("%s=%q: %w", file.setting, file.path, err))
		}
	}
	return errors.Join(problems...)
}

func checkRootfs(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("%w; %s%s", cause(err), mendRootfs, path)
	}
	if !info.IsDir() {
		return fmt.Errorf("not a directory; %s%s", mendRootfs, path)
	}
	dir, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("%w; make it readable for user %d", cause(err), os.Getuid())
	}
	defer dir.Close()
	switch _, err := dir.ReadDir(1); {
	case errors.Is(err, io.EOF):
		return fmt.Errorf("the directory is empty; %s%s", mendRootfs, path)
	case err != nil:
		return cause(err)
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
