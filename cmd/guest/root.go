//go:build linux

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const hostfs = "hostfs"

// pollInterval is how often a root device that is not there yet is looked for.
const pollInterval = 10 * time.Millisecond

// mountRoot mounts the root file system that the command line asks for on newRoot.
//
// Without root= that is hostfs. The kernel's own hostfs= argument confines every hostfs to one directory of the
// host; rootflags= is a path below it.
//
// With ephemeral nothing is written to it: an overlay keeps that in RAM.
func mountRoot(c cmdline, ephemeral bool) error {
	c.readOnly = c.readOnly || ephemeral
	for _, param := range c.unreadable {
		note(fmt.Errorf("ignored kernel argument %q: not a number of seconds", param))
	}
	if err := os.Mkdir(newRoot, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	all, err := readFilesystems()
	if err != nil {
		return err
	}
	types, source, err := chooseRoot(c, all)
	if err != nil {
		return err
	}
	if !allNodev(types, all) {
		if source, err = waitForDevice(c); err != nil {
			return err
		}
	}
	if err := mountFirst(source, types, c); err != nil {
		return err
	}
	empty, err := isEmpty(newRoot)
	if err != nil {
		return err
	}
	if empty {
		return fmt.Errorf("%s is empty: put the root file system of a Linux distribution there",
			describe(source, types[0], c))
	}
	if ephemeral {
		return coverRoot(newRoot, coverDir)
	}
	return nil
}

// coverDir is where the file system that takes the changes is put together.
const coverDir = "/cover"

// coverRoot mounts an overlay over root, whose upper part is a tmpfs: half of the guest's RAM at most. dir is a directory
// that does not exist; what is made there stays reachable for the overlay alone.
func coverRoot(root, dir string) error {
	var st unix.Stat_t
	if err := unix.Stat(root, &st); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount a tmpfs for changes: %w", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	upper, work := filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	for _, d := range []string{upper, work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	// The overlay's root directory is the upper one.
	if err := errors.Join(os.Chown(upper, int(st.Uid), int(st.Gid)), unix.Chmod(upper, st.Mode&0o7777)); err != nil {
		return err
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", root, upper, work)
	if err := unix.Mount("overlay", root, "overlay", 0, options); err != nil {
		return fmt.Errorf("mount an overlay for changes: %w", err)
	}
	return nil
}

// ensureMountPoints makes those directories for the kernel's own file systems that are missing in root, as Docker does. A
// read-only root file system is covered by an overlay that has them, and that is read-only too; dir is coverRoot's. Any
// other reason is left to moveKernelMounts, which has the guest go without.
func ensureMountPoints(root, dir string) (covered bool, err error) {
	if !errors.Is(makeMountPoints(root), unix.EROFS) {
		return false, nil
	}
	if err := coverRoot(root, dir); err != nil {
		return false, err
	}
	if err := makeMountPoints(root); err != nil {
		return true, err
	}
	if err := unix.Mount("", root, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return true, fmt.Errorf("make the overlay read-only: %w", err)
	}
	return true, nil
}

func makeMountPoints(root string) error {
	for _, m := range kernelMounts {
		if err := os.Mkdir(root+m.path, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

// chooseRoot returns the file system types to try and, for those without a block device, the source to name.
func chooseRoot(c cmdline, all []filesystem) (types []string, source string, err error) {
	switch {
	case len(c.rootTypes) > 0:
		for _, t := range c.rootTypes {
			if !slices.ContainsFunc(all, func(f filesystem) bool { return f.name == t }) {
				return nil, "", fmt.Errorf("rootfstype=%s: this kernel has no such file system", t)
			}
		}
		source = c.root
		if source == "" {
			source = "none"
		}
		return c.rootTypes, source, nil
	case c.root == "":
		return []string{hostfs}, hostfs, nil
	case c.root == "/dev/root":
		return nil, "", errors.New("root=/dev/root: needs a rootfstype=, such as hostfs")
	}
	for _, f := range all {
		if !f.nodev {
			types = append(types, f.name)
		}
	}
	return types, "", nil
}

// mountFirst mounts source with the first of types that takes it: read-write if that is asked for and possible with
// any of them, else read-only.
func mountFirst(source string, types []string, c cmdline) error {
	flags := []uintptr{unix.MS_SILENT, unix.MS_SILENT | unix.MS_RDONLY}
	if c.readOnly {
		flags = flags[1:]
	}
	var reason error
	for _, flag := range flags {
		for _, fsType := range types {
			err := unix.Mount(source, newRoot, fsType, flag, c.rootFlags)
			if err == nil {
				return nil
			}
			// EINVAL is how a type says "not mine"; whatever else one of them says tells more.
			if reason == nil || errors.Is(reason, unix.EINVAL) {
				reason = fmt.Errorf("%s as %s: %w", describe(source, fsType, c), fsType, err)
			}
		}
	}
	if errors.Is(reason, unix.EINVAL) {
		return fmt.Errorf("%s: no file system that this kernel knows, or refuses rootflags=%q; tried %s",
			describe(source, types[0], c), c.rootFlags, strings.Join(types, " "))
	}
	return reason
}

// describe names the root file system to the user, who knows the directory of hostfs by the variable ROOTFS.
func describe(source, fsType string, c cmdline) string {
	if fsType == hostfs {
		return strings.TrimSuffix("directory ROOTFS/"+strings.TrimPrefix(c.rootFlags, "/"), "/")
	}
	return source
}

// filesystem is a line of /proc/filesystems.
type filesystem struct {
	name  string
	nodev bool // needs no block device
}

func readFilesystems() ([]filesystem, error) {
	file, err := os.Open("/proc/filesystems")
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return parseFilesystems(file)
}

func parseFilesystems(r io.Reader) ([]filesystem, error) {
	var all []filesystem
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		attribute, name, ok := strings.Cut(lines.Text(), "\t")
		if ok && name != "" {
			all = append(all, filesystem{name: name, nodev: attribute == "nodev"})
		}
	}
	return all, lines.Err()
}

// allNodev says that none of types needs a block device.
func allNodev(types []string, all []filesystem) bool {
	return !slices.ContainsFunc(all, func(f filesystem) bool { return !f.nodev && slices.Contains(types, f.name) })
}

// waitForDevice returns the path of the block device that root= names, as soon as it is there.
func waitForDevice(c cmdline) (string, error) {
	root := c.root
	if root == "" {
		root = umlDefaultRoot // rootfstype= alone: the kernel's default device
	}
	match, err := deviceMatcher(root)
	if err != nil {
		return "", err
	}
	for deadline := time.Now().Add(c.rootWait); ; time.Sleep(pollInterval) {
		devices, err := blockDevices("/sys")
		if err != nil {
			return "", err
		}
		var names []string
		for _, d := range devices {
			if match(d) {
				return "/dev/" + d["DEVNAME"], nil
			}
			names = append(names, "/dev/"+d["DEVNAME"])
		}
		if time.Now().After(deadline) {
			if len(names) == 0 {
				names = []string{"none"}
			}
			return "", fmt.Errorf("root=%s: no such block device; there are: %s", root, strings.Join(names, " "))
		}
	}
}

// deviceMatcher returns the test for the block device that a value of root= names.
func deviceMatcher(root string) (func(uevent) bool, error) {
	kind, value, _ := strings.Cut(root, "=")
	switch {
	case kind == "PARTUUID":
		return func(d uevent) bool { return d["PARTUUID"] != "" && strings.EqualFold(d["PARTUUID"], value) }, nil
	case kind == "PARTLABEL":
		return func(d uevent) bool { return d["PARTNAME"] != "" && d["PARTNAME"] == value }, nil
	case kind == "LABEL" || kind == "UUID":
		return nil, fmt.Errorf("root=%s: file system labels are not supported, name the device: root=/dev/ubda", root)
	case strings.HasPrefix(root, "/dev/"):
		name := strings.TrimPrefix(root, "/dev/")
		return func(d uevent) bool { return d["DEVNAME"] == name }, nil
	}
	major, minor, ok := strings.Cut(root, ":")
	if ok && isNumber(major) && isNumber(minor) {
		return func(d uevent) bool { return d["MAJOR"] == major && d["MINOR"] == minor }, nil
	}
	return nil, fmt.Errorf("root=%s: not supported, allowed are /dev/NAME, MAJOR:MINOR, PARTUUID= and PARTLABEL=", root)
}

func isNumber(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// uevent is what the kernel tells of a device in its file of that name.
type uevent map[string]string

func parseUevent(text string) uevent {
	u := uevent{}
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		u[key] = value
	}
	return u
}

// blockDevices lists disks and partitions.
func blockDevices(sys string) ([]uevent, error) {
	files, err := filepath.Glob(filepath.Join(sys, "class/block/*/uevent"))
	if err != nil {
		return nil, err
	}
	var all []uevent
	for _, file := range files {
		data, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue // unplugged since
		}
		if err != nil {
			return nil, err
		}
		all = append(all, parseUevent(string(data)))
	}
	return all, nil
}

// isEmpty says that a directory has no entry but what mkfs(8) makes.
func isEmpty(dir string) (bool, error) {
	file, err := os.Open(dir)
	if err != nil {
		return false, err
	}
	defer file.Close()
	names, err := file.Readdirnames(2)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	return len(names) == 0 || (len(names) == 1 && names[0] == "lost+found"), nil
}
