//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var someFilesystems = []filesystem{
	{"sysfs", true}, {"tmpfs", true}, {"ext4", false}, {"squashfs", false}, {"hostfs", true}, {"virtiofs", true},
}

func TestParseFilesystems(t *testing.T) {
	const text = "nodev\tsysfs\nnodev\ttmpfs\n\text4\n\tsquashfs\nnodev\thostfs\nnodev\tvirtiofs\n\nbroken\n"
	got, err := parseFilesystems(strings.NewReader(text))
	if err != nil || !slices.Equal(got, someFilesystems) {
		t.Errorf("parseFilesystems() = %v, %v, want %v", got, err, someFilesystems)
	}
}

func TestChooseRoot(t *testing.T) {
	tests := []struct {
		text   string
		types  string
		source string
		device bool   // waits for a block device
		err    string // part of the message
	}{
		{text: "", types: "hostfs", source: "hostfs"},
		{text: "root=98:0 rootflags=/sub", types: "hostfs", source: "hostfs"},
		{text: "root=/dev/root rootfstype=hostfs", types: "hostfs", source: "/dev/root"},
		{text: "rootfstype=hostfs", types: "hostfs", source: "none"},
		{text: "root=tag rootfstype=virtiofs", types: "virtiofs", source: "tag"},
		{text: "root=/dev/ubda", types: "ext4 squashfs", device: true},
		{text: "rootfstype=ext4 root=98:0", types: "ext4", source: "none", device: true},
		{text: "root=/dev/ubda rootfstype=squashfs,ext4", types: "squashfs ext4", source: "/dev/ubda", device: true},
		{text: "root=/dev/root", err: "needs a rootfstype="},
		{text: "root=/dev/ubda rootfstype=zfs", err: "rootfstype=zfs: this kernel has no such file system"},
	}
	for _, tt := range tests {
		types, source, err := chooseRoot(parseCmdline(tt.text), someFilesystems)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%q: chooseRoot() error = %v, want %q", tt.text, err, tt.err)
			}
			continue
		}
		if err != nil || strings.Join(types, " ") != tt.types || source != tt.source {
			t.Errorf("%q: chooseRoot() = %q, %q, %v, want %q, %q", tt.text, types, source, err, tt.types, tt.source)
		}
		if got := !allNodev(types, someFilesystems); got != tt.device {
			t.Errorf("%q: needs a device = %v, want %v", tt.text, got, tt.device)
		}
	}
}

func TestDescribe(t *testing.T) {
	tests := []struct{ source, fsType, flags, want string }{
		{"hostfs", hostfs, "", "directory ROOTFS"},
		{"none", hostfs, "/sub/dir", "directory ROOTFS/sub/dir"},
		{"/dev/ubda", "ext4", "data=journal", "/dev/ubda"},
	}
	for _, tt := range tests {
		if got := describe(tt.source, tt.fsType, cmdline{rootFlags: tt.flags}); got != tt.want {
			t.Errorf("describe(%q, %q) = %q, want %q", tt.source, tt.fsType, got, tt.want)
		}
	}
}

func TestDeviceMatcher(t *testing.T) {
	device := uevent{"MAJOR": "98", "MINOR": "1", "DEVNAME": "ubda1", "PARTUUID": "ab-01", "PARTNAME": "Linux"}
	plain := uevent{"MAJOR": "98", "MINOR": "0", "DEVNAME": "ubda"}
	for _, root := range []string{"/dev/ubda1", "98:1", "PARTUUID=AB-01", "PARTLABEL=Linux"} {
		match, err := deviceMatcher(root)
		if err != nil {
			t.Errorf("deviceMatcher(%q): %v", root, err)
			continue
		}
		if !match(device) || match(plain) {
			t.Errorf("deviceMatcher(%q) = %v, %v, want true, false", root, match(device), match(plain))
		}
	}
	for _, root := range []string{"PARTUUID=", "PARTLABEL="} {
		if match, err := deviceMatcher(root); err != nil || match(plain) {
			t.Errorf("deviceMatcher(%q) matches a device without one (%v)", root, err)
		}
	}
	for _, root := range []string{"LABEL=x", "UUID=1234", "mtd0", "0803", ":", "98:"} {
		if _, err := deviceMatcher(root); err == nil || !strings.Contains(err.Error(), "root="+root) {
			t.Errorf("deviceMatcher(%q) error = %v, want one that names it", root, err)
		}
	}
}

func TestBlockDevices(t *testing.T) {
	sys := t.TempDir()
	dir := filepath.Join(sys, "class/block/ubda1")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "uevent"), []byte("MAJOR=98\nMINOR=1\nDEVNAME=ubda1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := blockDevices(sys)
	want := []uevent{{"MAJOR": "98", "MINOR": "1", "DEVNAME": "ubda1"}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("blockDevices() = %v, %v, want %v", got, err, want)
	}
}

func TestWaitForDeviceGivesUp(t *testing.T) {
	start := time.Now()
	_, err := waitForDevice(cmdline{root: "/dev/no such device", rootWait: 3 * pollInterval})
	if err == nil || !strings.Contains(err.Error(), "root=/dev/no such device: no such block device") {
		t.Errorf("waitForDevice() error = %v", err)
	}
	if took := time.Since(start); took < 3*pollInterval {
		t.Errorf("waitForDevice() gave up after %v", took)
	}
}

func TestIsEmpty(t *testing.T) {
	dir := t.TempDir()
	for _, step := range []struct {
		add  string
		want bool
	}{{"", true}, {"lost+found", true}, {"etc", false}} {
		if err := os.MkdirAll(filepath.Join(dir, step.add), 0o755); err != nil {
			t.Fatal(err)
		}
		if got, err := isEmpty(dir); got != step.want || err != nil {
			t.Errorf("isEmpty() with %q = %v, %v, want %v", step.add, got, err, step.want)
		}
	}
}

// TestCoverRoot writes below an overlay, in a mount namespace of its own: the directory under it stays as it was.
func TestCoverRoot(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	writeFile(t, filepath.Join(root, "file"), "old")
	if err := unix.Chmod(root, 0o1751); err != nil {
		t.Fatal(err)
	}
	cover := filepath.Join(t.TempDir(), "cover")
	inMountNamespace(t, func() error {
		if err := coverRoot(root, cover); err != nil {
			return err
		}
		var st unix.Stat_t
		err := unix.Stat(root, &st)
		if err == nil && st.Mode&0o7777 != 0o1751 {
			err = fmt.Errorf("mode of the covered root = %o, want 1751", st.Mode&0o7777)
		}
		return errors.Join(err, os.WriteFile(filepath.Join(root, "file"), []byte("new"), 0o600))
	})
	if data, err := os.ReadFile(filepath.Join(root, "file")); err != nil || string(data) != "old" {
		t.Errorf("the file below the overlay = %q, %v, want it as it was", data, err)
	}
}

// TestEnsureMountPoints looks for /proc, /sys and /dev in a root file system with /dev alone, writable and read-only.
func TestEnsureMountPoints(t *testing.T) {
	for _, readOnly := range []bool{false, true} {
		root := filepath.Join(t.TempDir(), "root")
		writeFile(t, filepath.Join(root, "dev/null"), "kept")
		cover := filepath.Join(t.TempDir(), "cover")
		inMountNamespace(t, func() error {
			if readOnly {
				if err := unix.Mount(root, root, "", unix.MS_BIND, ""); err != nil {
					return err
				}
				if err := unix.Mount("", root, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
					return err
				}
			}
			covered, err := ensureMountPoints(root, cover)
			if covered != readOnly || err != nil {
				return fmt.Errorf("ensureMountPoints() = %t, %v, want %t", covered, err, readOnly)
			}
			for _, m := range kernelMounts {
				if info, err := os.Stat(root + m.path); err != nil || !info.IsDir() {
					return fmt.Errorf("%s after it: %v, %v", m.path, info, err)
				}
			}
			if data, err := os.ReadFile(root + "/dev/null"); err != nil || string(data) != "kept" {
				return fmt.Errorf("what was there: %q, %v", data, err)
			}
			if err := os.WriteFile(root+"/file", nil, 0o600); errors.Is(err, unix.EROFS) != readOnly {
				return fmt.Errorf("write to the root file system: %v, read-only: %t", err, readOnly)
			}
			return nil
		})
		names, err := filepath.Glob(filepath.Join(root, "*"))
		if want := map[bool]int{false: 4, true: 1}[readOnly]; err != nil || len(names) != want {
			t.Errorf("below the overlay, if there is one: %q, %v, want %d", names, err, want)
		}
	}
}

// inMountNamespace runs f where its mounts are nobody else's.
func inMountNamespace(t *testing.T, f func() error) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	skip, err := "", error(nil)
	done := make(chan struct{})
	go func() { // on a thread that ends with it
		defer close(done)
		runtime.LockOSThread()
		if e := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); e != nil {
			skip = e.Error()
			return
		}
		if e := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); e != nil {
			skip = e.Error()
			return
		}
		if e := unix.Mount("probe", t.TempDir(), "tmpfs", 0, ""); e != nil {
			skip = e.Error()
			return
		}
		err = f()
	}()
	<-done
	if skip != "" {
		t.Skip("no mounts here: " + skip)
	}
	if err != nil {
		t.Fatal(err)
	}
}
