//go:build linux

package main

import (
	"os"
	"path/filepath"

	"github.com/cavaliergopher/cpio"
)

// writeInitramfs writes what a kernel needs to mount a disk: work as its /init, and the only module for that which
// Debian's kernel has not built in.
func writeInitramfs(path, work, kernelPackage string) error {
	module, err := findModule(kernelPackage, "kernel/drivers/block/virtio_blk.ko.xz")
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := cpio.NewWriter(f)
	for _, entry := range []struct {
		name, from string
		mode       cpio.FileMode
	}{
		{"dev", "", cpio.TypeDir | 0o755},
		{"root", "", cpio.TypeDir | 0o755},
		{"modules", "", cpio.TypeDir | 0o755},
		{"modules/" + filepath.Base(module), module, cpio.TypeReg | 0o644},
		{"init", work, cpio.TypeReg | 0o755},
	} {
		var data []byte
		if entry.from != "" {
			if data, err = os.ReadFile(entry.from); err != nil {
				return err
			}
		}
		if err := w.WriteHeader(&cpio.Header{Name: entry.name, Mode: entry.mode, Size: int64(len(data))}); err != nil {
			return err
		}
		if _, err := w.Write(data); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	return f.Close()
}

// findModule finds one in an unpacked package, whether or not it has a /usr.
func findModule(kernelPackage, name string) (string, error) {
	path, err := only(filepath.Join(kernelPackage, "usr/lib/modules/*", name))
	if err == nil {
		return path, nil
	}
	return only(filepath.Join(kernelPackage, "lib/modules/*", name))
}
