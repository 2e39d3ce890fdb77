//go:build linux

package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"docker-usermode-linux/bench/figures"
)

// environment is one way to run a program.
type environment struct {
	name  string // in the raw output
	title string // in the table
	// command is what runs work, with environment variables before the program.
	command func(turn) ([]string, error)
	// disk says that the root file system is an image, at turn.disk(), and not a directory.
	disk bool
	// optional says that there is nothing to report where it is not asked for.
	optional func(paths) bool
	// version says what exactly was measured.
	version func(paths) string
}

// paths are where everything is.
type paths struct {
	root                          string
	entrypoint, kernel, initramfs string
	work                          string
	unpatched, classic            string
	runsc                         string
	qemu, qemuKernel              string
}

// turn is one environment's in one round.
type turn struct {
	paths
	dir   string   // for all its files
	tests []string // names of work's measurements; all where there are none
	// noDisk is why there is no image.
	noDisk error
}

func (t turn) rootDir() string { return filepath.Join(t.dir, "root") }
func (t turn) disk() string    { return filepath.Join(t.dir, "disk.img") }

// init is what tells work that it is one: an argument of the kernel that becomes a variable.
func (t turn) init() string {
	if len(t.tests) == 0 {
		return "WORK_INIT=all"
	}
	return "WORK_INIT=" + strings.Join(t.tests, ",")
}

// guestMem is every guest's RAM in MiB, guestWork where work is in the root file system.
const (
	guestMem  = "512"
	guestWork = "/bench/work"
)

// environments in the order of the columns.
var environments = []environment{
	{
		name: "native", title: "native",
		command: func(t turn) ([]string, error) {
			return append([]string{t.work, "chroot", t.rootDir()}, t.tests...), nil
		},
		version: func(p paths) string { return debianVersions(p.root, "libc6", "gcc", "git", "apt") },
	},
	ours("ours", "this project, CPUS=1", "CPUS=1"),
	ours("ours-cpus2", "CPUS=2", "CPUS=2"),
	ours("ours-unplaced", "CPUS=1, CPU_PLACEMENT=off", "CPUS=1", "CPU_PLACEMENT=off"),
	ours("ours-ptrace", "CPUS=1, USERSPACE=ptrace", "CPUS=1", "USERSPACE=ptrace"),
	oursOnDisk(),
	{
		name: "unpatched", title: "its kernel without patches",
		command: func(t turn) ([]string, error) {
			return append(plainUML(t, t.unpatched), "seccomp=on", "ncpus=1"), nil
		},
		optional: func(p paths) bool { return p.unpatched == "" },
		version:  func(p paths) string { return figures.ProgramVersion(p.unpatched) },
	},
	{
		name: "uml61", title: "UML 6.1",
		command: func(t turn) ([]string, error) { return plainUML(t, t.classic), nil },
		version: func(p paths) string {
			return figures.ProgramVersion(p.classic) + ", " + figures.DebianVersion("user-mode-linux")
		},
	},
	gvisor("systrap"),
	gvisor("ptrace"),
	{
		name: "qemu", title: "QEMU TCG", disk: true,
		command: qemu,
		version: func(p paths) string {
			return figures.ProgramVersion(p.qemu) + ", Linux " + bzImageVersion(filepath.Join(p.qemuKernel, "boot"))
		},
	},
}

// ours is this project with these settings. Everything else is as it comes, the network and the agent included.
func ours(name, title string, env ...string) environment {
	return environment{
		name: name, title: title,
		command: func(t turn) ([]string, error) { return slices.Concat(env, supervise(t)), nil },
		version: func(p paths) string {
			return fmt.Sprintf("%s, kernel %s", os.Getenv("VERSION"), figures.ProgramVersion(p.kernel))
		},
	}
}

func oursOnDisk() environment {
	e := ours("ours-disk", "CPUS=1, DISK=image")
	e.disk = true
	e.command = func(t turn) ([]string, error) {
		return append([]string{"CPUS=1", "DISK=" + t.disk()}, supervise(t)...), nil
	}
	return e
}

func supervise(t turn) []string {
	return []string{
		"ROOTFS=" + t.rootDir(), "KERNEL=" + t.kernel, "INITRAMFS=" + t.initramfs, "MEM=" + guestMem + "M", "PORTS=",
		"LOG_LEVEL=error", t.entrypoint, "supervise", "init=" + guestWork, "quiet", t.init(),
	}
}

// plainUML is a UML kernel without anybody who looks after it. It is pinned, as our supervisor does it with ours: a
// guest's system call is a hand-over between two processes, which costs a multiple on two CPUs.
func plainUML(t turn, kernel string) []string {
	first, _, _ := strings.Cut(strings.ReplaceAll(figures.CPUs(), "-", ","), ",")
	return []string{
		"TMPDIR=" + t.dir, // for the RAM
		"taskset", "-c", first, kernel, "mem=" + guestMem + "M", "root=/dev/root", "rootfstype=hostfs",
		"rootflags=" + t.rootDir(), "rw", "init=" + guestWork, "con0=null,fd:1", "con=null", "noreboot", "quiet",
		"lpj=20000000", "uml_dir=" + t.dir, "umid=guest", t.init(),
	}
}

// gvisor is its runsc, with what is written kept in the sandbox's memory, as do has it.
func gvisor(platform string) environment {
	return environment{
		name: "runsc-" + platform, title: "gVisor " + platform,
		command: func(t turn) ([]string, error) {
			return append([]string{
				t.runsc, "--root=" + filepath.Join(t.dir, "state"), "--platform=" + platform, "--network=none",
				"--ignore-cgroups", "do", "-root", t.rootDir(), "--", guestWork,
			}, t.tests...), nil
		},
		version: func(p paths) string { return figures.ProgramVersion(p.runsc) },
	}
}

// qemu translates the guest's instructions: what there is without KVM. Its kernel is Debian's for clouds, which can mount
// no directory of the host's.
func qemu(t turn) ([]string, error) {
	kernel, err := only(filepath.Join(t.qemuKernel, "boot", "vmlinuz-*"))
	if err != nil {
		return nil, err
	}
	initramfs := filepath.Join(t.dir, "initramfs")
	if err := writeInitramfs(initramfs, t.work, t.qemuKernel); err != nil {
		return nil, err
	}
	return []string{
		t.qemu, "-accel", "tcg", "-smp", "1", "-m", guestMem, "-nodefaults", "-no-user-config", "-no-reboot",
		"-display", "none", "-serial", "stdio", "-kernel", kernel, "-initrd", initramfs,
		"-drive", "format=raw,if=virtio,cache=unsafe,file=" + t.disk(),
		"-append", "console=ttyS0 quiet panic=-1 " + t.init(),
	}, nil
}

// only returns the only file that a pattern matches.
func only(pattern string) (string, error) {
	files, err := filepath.Glob(pattern)
	if err == nil && len(files) != 1 {
		err = fmt.Errorf("%d files match %s, not one", len(files), pattern)
	}
	if err != nil {
		return "", err
	}
	return files[0], nil
}

// bzImageVersion is what a kernel for PCs says of itself: Linux Documentation/arch/x86/boot.rst, kernel_version.
func bzImageVersion(dir string) string {
	const pointer, base = 0x20e, 0x200
	path, err := only(filepath.Join(dir, "vmlinuz-*"))
	if err != nil {
		return err.Error()
	}
	image, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	if len(image) < pointer+2 {
		return path + " is too short for a kernel"
	}
	at := int(binary.LittleEndian.Uint16(image[pointer:])) + base
	if at >= len(image) {
		return path + " says no version"
	}
	text, _, _ := bytes.Cut(image[at:], []byte(" "))
	return string(text)
}

// debianVersions are those of packages in a root file system.
func debianVersions(root string, packages ...string) string {
	return figures.DebianVersion(append([]string{"--admindir=" + filepath.Join(root, "var/lib/dpkg")}, packages...)...)
}
