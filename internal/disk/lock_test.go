package disk

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLock(t *testing.T) {
	image := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(image, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	locks := map[string]func(string) (*Held, error){"Lock": Lock, "LockShared": LockShared}
	for _, test := range []struct {
		first, second string
		want          error
	}{
		{"Lock", "Lock", ErrInUse},
		{"Lock", "LockShared", ErrInUse},
		{"LockShared", "Lock", ErrInUse},
		{"LockShared", "LockShared", nil},
	} {
		first, err := locks[test.first](image)
		if err != nil {
			t.Fatal(err)
		}
		second, err := locks[test.second](image)
		if !errors.Is(err, test.want) {
			t.Errorf("%s while another has %s = %v, want %v", test.second, test.first, err, test.want)
		}
		if err == nil {
			second.Release()
		}
		first.Release()
	}
	if _, err := Lock(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Lock of no image = %v", err)
	}
}

// lockEnv has TestLockOfKernel, in a process of its own, lock the file as the kernel does.
const lockEnv = "TEST_DISK_LOCK"

// TestLockOfKernel has another process lock an image as UML's ubd driver does.
func TestLockOfKernel(t *testing.T) {
	if image := os.Getenv(lockEnv); image != "" {
		lockAsKernel(image, map[string]int16{"write": unix.F_WRLCK, "read": unix.F_RDLCK}[os.Getenv(lockEnv+"_KIND")])
		return
	}
	image := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(image, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		kind              string
		exclusive, shared error
	}{
		{"write", ErrInUse, ErrInUse},
		{"read", ErrInUse, nil},
	} {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestLockOfKernel$")
		cmd.Env = append(os.Environ(), lockEnv+"="+image, lockEnv+"_KIND="+test.kind)
		stdin, inErr := cmd.StdinPipe()
		stdout, outErr := cmd.StdoutPipe()
		if err := errors.Join(inErr, outErr, cmd.Start()); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "locked\n" {
			t.Fatalf("the other process says %q, %v", line, err)
		}
		if held, err := Lock(image); !errors.Is(err, test.exclusive) {
			t.Errorf("Lock while a kernel has a lock to %s = %v, %v, want %v", test.kind, held, err, test.exclusive)
		}
		held, err := LockShared(image)
		if !errors.Is(err, test.shared) {
			t.Errorf("LockShared while a kernel has a lock to %s = %v, want %v", test.kind, err, test.shared)
		}
		if err == nil {
			held.Release()
		}
		_ = stdin.Close()
		_ = cmd.Wait()
	}
	// Ours does not get into the kernel's way.
	held, err := Lock(image)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Release()
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		t.Errorf("the kernel could not lock an image that Lock holds: %v", err)
	}
}

// lockAsKernel keeps the lock until standard input ends.
func lockAsKernel(image string, kind int16) {
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err == nil {
		defer f.Close()
		err = unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: kind, Whence: io.SeekStart})
	}
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("locked")
	_, _ = io.Copy(io.Discard, os.Stdin)
}
