package boot

import (
	"fmt"
	"io"
	"os"
	"path"

	"github.com/cavaliergopher/cpio"
	"golang.org/x/sys/unix"
)

// HooksDir is where the guest stage finds the user's scripts in the initramfs, in a directory for each Stage. Without any
// it does not exist.
const HooksDir = "/hooks"

// ModulesDir is where the guest stage finds the kernel's modules in the initramfs. Without any it does not exist.
const ModulesDir = "/modules"

// Stage is when a hook runs; it is also the name of its directory.
type Stage string

const (
	StageStart Stage = "start" // before the guest's init
	StageStop  Stage = "stop"  // when the guest is to stop
)

// Hook is a script, or a program, of the user's that runs in the guest as root.
type Hook struct {
	Stage Stage
	// Name is that of a file, without a directory.
	Name   string
	Script []byte
}

// Initramfs returns an anonymous file with what the kernel unpacks at boot: base, the archive that holds the
// guest binary, followed by one with the settings, the hooks, and copies of the files that are kernel modules, in the order
// in which they are to be loaded. Archives in the cpio "newc" format may simply follow one
// another (Linux Documentation/driver-api/early-userspace/buffer-format.rst).
func Initramfs(base string, s Settings, modules []string, hooks ...Hook) (*os.File, error) {
	in, err := os.Open(base)
	if err != nil {
		return nil, fmt.Errorf("read initramfs: %w", err)
	}
	defer in.Close()
	fd, err := unix.MemfdCreate("initramfs", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create initramfs: %w", err)
	}
	out := os.NewFile(uintptr(fd), "initramfs")
	if err := writeInitramfs(out, in, s, modules, hooks); err != nil {
		out.Close()
		return nil, fmt.Errorf("write initramfs: %w", err)
	}
	return out, nil
}

func writeInitramfs(out io.Writer, base io.Reader, s Settings, modules []string, hooks []Hook) error {
	n, err := io.Copy(out, base)
	if err != nil {
		return err
	}
	// An archive starts at a multiple of four bytes.
	if _, err := out.Write(make([]byte, -n&3)); err != nil {
		return err
	}
	for _, file := range modules {
		s.Modules = append(s.Modules, path.Base(file))
	}
	data, err := s.Marshal()
	if err != nil {
		return err
	}
	archive := cpio.NewWriter(out)
	if err := writeFile(archive, SettingsPath, 0o600, data); err != nil {
		return err
	}
	if err := writeModules(archive, modules); err != nil {
		return err
	}
	if err := writeHooks(archive, hooks); err != nil {
		return err
	}
	return archive.Close()
}

func writeModules(archive *cpio.Writer, files []string) error {
	if len(files) == 0 {
		return nil
	}
	if err := writeDir(archive, ModulesDir); err != nil {
		return err
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err == nil {
			err = writeFile(archive, path.Join(ModulesDir, path.Base(file)), 0o600, data)
		}
		if err != nil {
			return fmt.Errorf("kernel module: %w", err)
		}
	}
	return nil
}

// writeHooks adds the hooks, and before each the directory that it lies in: the kernel makes none of itself.
func writeHooks(archive *cpio.Writer, hooks []Hook) error {
	made := map[string]bool{}
	for _, hook := range hooks {
		dir := path.Join(HooksDir, string(hook.Stage))
		for _, dir := range []string{HooksDir, dir} {
			if made[dir] {
				continue
			}
			made[dir] = true
			if err := writeDir(archive, dir); err != nil {
				return err
			}
		}
		if err := writeFile(archive, path.Join(dir, hook.Name), 0o700, hook.Script); err != nil {
			return err
		}
	}
	return nil
}

func writeDir(archive *cpio.Writer, name string) error {
	return archive.WriteHeader(&cpio.Header{Name: name[1:], Mode: cpio.TypeDir | 0o700})
}

func writeFile(archive *cpio.Writer, name string, mode cpio.FileMode, data []byte) error {
	if err := archive.WriteHeader(&cpio.Header{
		Name: name[1:],
		Mode: cpio.TypeReg | mode,
		Size: int64(len(data)),
	}); err != nil {
		return err
	}
	_, err := archive.Write(data)
	return err
}
