package config

import (
	"errors"
	"fmt"
	"io"
	"os"
)

const (
	mendRootfs = "mount a root file system there, like docker run -v /path/to/rootfs:"
	mendFile   = "mount one there or correct the path"
)

// CheckFiles says whether Rootfs, Kernel and Initramfs exist and are what they have to be. Like Load it reports
// all problems at once. It passes over a path that Load has rejected.
func (c Config) CheckFiles() error {
	var problems []error
	for _, file := range []struct {
		setting, path string
		check         func(path string) error
	}{
		{"ROOTFS", c.Rootfs, checkRootfs},
		{"KERNEL", c.Kernel, checkKernel},
		{"INITRAMFS", c.Initramfs, func(path string) error { _, err := statFile(path); return err }},
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
