//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// mounts are what commands expect to find. What a kernel, or whoever started us, has mounted already is not an error.
var mounts = []struct{ dir, kind string }{
	{"/proc", "proc"},
	{"/sys", "sysfs"},
	{"/dev", "devtmpfs"},
	{"/dev/pts", "devpts"},
}

// initVariable makes this program process 1 of a guest, and names the workloads, separated by commas, or all. A variable,
// since UML's kernels do not agree on how they hand arguments to the init.
const (
	initVariable = "WORK_INIT"
	initAll      = "all"
)

func initMain(list string) error {
	quietConsole()
	var names []string
	if list != initAll {
		names = strings.Split(list, ",")
	}
	err := measure(names, mountAll)
	if err != nil {
		say("init fails: %v", err)
	}
	return errors.Join(err, powerOff())
}

// powerOff leaves a disk as it should be found the next time. hostfs has nothing to leave, and says no.
func powerOff() error {
	unix.Sync()
	_ = unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
	return os.NewSyscallError("reboot", unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
}

// quietConsole leaves lines as they are written.
func quietConsole() {
	if t, err := unix.IoctlGetTermios(1, unix.TCGETS); err == nil {
		t.Oflag &^= unix.OPOST
		_ = unix.IoctlSetTermios(1, unix.TCSETS, t)
	}
}

func mountAll() error {
	for _, m := range mounts {
		_ = os.Mkdir(m.dir, 0o755) // where it is missing, and else the mount says why not
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	return nil
}

// chrootMain runs this program in a directory, in a mount namespace of its own.
func chrootMain(args []string) error {
	runtime.LockOSThread() // whose mount namespace it is
	if len(args) < 1 {
		return errors.New("chroot: a directory is missing")
	}
	root, rest := args[0], args[1:]
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("a mount namespace (needs CAP_SYS_ADMIN): %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts from others: %w", err)
	}
	for _, dir := range []string{"/proc", "/sys", "/dev"} {
		if err := unix.Mount(dir, filepath.Join(root, dir), "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("bind %s: %w", dir, err)
		}
	}
	if err := unix.Chroot(root); err != nil {
		return fmt.Errorf("chroot %s: %w", root, err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	return execute(rest)
}

// The initramfs of a guest with a disk has the modules for it in modulesDir, to be loaded in the order of their names.
const (
	modulesDir = "/modules"
	disk       = "/dev/vda"
	diskKind   = "ext4"
)

// stageMain loads the modules, mounts the disk, and goes on in there as its init.
func stageMain() error {
	quietConsole()
	err := stage()
	say("init fails: %v", err)
	return errors.Join(err, powerOff())
}

func stage() error {
	modules, err := os.ReadDir(modulesDir)
	if err != nil {
		return err
	}
	for _, m := range modules {
		if err := loadModule(filepath.Join(modulesDir, m.Name())); err != nil {
			return err
		}
	}
	if err := unix.Mount("devtmpfs", "/dev", "devtmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount /dev: %w", err)
	}
	if err := unix.Mount(disk, "/root", diskKind, 0, ""); err != nil {
		return fmt.Errorf("mount %s: %w", disk, err)
	}
	if err := os.Chdir("/root"); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return execute(nil)
}

// loadModule takes a file as Debian compresses it: the kernel can undo that.
func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", unix.MODULE_INIT_COMPRESSED_FILE); err != nil {
		return fmt.Errorf("load %s: %w", path, err)
	}
	return nil
}

// execute goes on as the program in the root file system.
func execute(args []string) error {
	self := filepath.Join(home, "work")
	return fmt.Errorf("execute %s: %w", self, syscall.Exec(self, append([]string{self}, args...), os.Environ()))
}
