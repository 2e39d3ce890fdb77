package image

import (
	"archive/tar"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const inNamespace = "TEST_IMAGE_USER_NAMESPACE"

// TestUserNamespace runs itself once more as root of a user namespace that has a single id.
func TestUserNamespace(t *testing.T) {
	if os.Getenv(inNamespace) != "" {
		testInUserNamespace(t)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestUserNamespace$", "-test.v")
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}},
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Skipf("no user namespaces here: %v", err)
	}
	if err := cmd.Wait(); err != nil || !strings.Contains(out.String(), "--- PASS: TestUserNamespace") {
		t.Errorf("%v\n%s", err, &out)
	}
}

func testInUserNamespace(t *testing.T) {
	data := pack(t, newEntry(tar.TypeChar, "null", 0o666).device(1, 3), reg("a", "1").mode(0o4755), dirEntry("d").mode(0))
	dir, report := unpack(t, data, UnpackOptions{Owner: true})
	if want := (Report{Entries: 2, Bytes: 1, SkippedDevices: 1}); report != want {
		t.Errorf("Report = %+v, want %+v", report, want)
	}
	if info, err := os.Stat(filepath.Join(dir, "a")); err != nil || info.Mode() != 0o755|os.ModeSetuid {
		t.Errorf("mode = %v, %v", info.Mode(), err)
	}
	foreign := pack(t, reg("a", "").owner(5, 0))
	_, err := Unpack(t.Context(), bytes.NewReader(foreign), filepath.Join(t.TempDir(), "x"), UnpackOptions{Owner: true})
	checkError(t, err, `entry "a"`, "5:0", "/etc/subuid")
	testFullDisk(t)
}

// testFullDisk unpacks to a small file system, and to its mount point.
func testFullDisk(t *testing.T) {
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=1m"); err != nil {
		t.Logf("no tmpfs here: %v", err)
		return
	}
	defer func() {
		if err := unix.Unmount(disk, 0); err != nil {
			t.Error(err)
		}
	}()
	data := pack(t, reg("small", "1"), reg("dir/big", strings.Repeat("x", 2<<20)))
	target := filepath.Join(disk, "x")
	_, err := Unpack(t.Context(), bytes.NewReader(data), target, UnpackOptions{})
	checkError(t, err, "the file system of "+target+" is full", `entry "dir/big"`)
	if left := listTree(t, disk); len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
	_, err = Open(t.Context(), "-", Options{Stdin: bytes.NewReader(data), TempDir: disk})
	checkError(t, err, disk, "TMPDIR", "no space left")
	_, err = Unpack(t.Context(), bytes.NewReader(pack(t, reg("a", "1"))), disk, UnpackOptions{})
	checkError(t, err, disk+" is a mount point")
}
