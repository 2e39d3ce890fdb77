package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// TestStopAsPID1 sends SIGTERM to a process 1 that has hardly begun, built as in the image. A signal that comes before
// Go's runtime or os/signal are ready must neither end it nor get lost.
func TestStopAsPID1(t *testing.T) {
	dir := t.TempDir()
	binary := buildAsImage(t, dir)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	kernel := filepath.Join(dir, "fakekernel") // a command of TestMain's
	passwd := filepath.Join(dir, "rootfs", "etc", "passwd")
	for _, err := range []error{
		os.Symlink(self, kernel), os.MkdirAll(filepath.Dir(passwd), 0o755), os.WriteFile(passwd, nil, 0o644),
		os.WriteFile(filepath.Join(dir, "initramfs"), nil, 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	delays := []time.Duration{300 * time.Millisecond} // the guest is up
	for delay := time.Duration(0); delay <= 10*time.Millisecond; delay += 500 * time.Microsecond {
		delays = append(delays, delay)
	}
	for _, delay := range delays {
		cmd := exec.CommandContext(t.Context(), binary)
		cmd.Env = append(os.Environ(), "KERNEL="+kernel, "ROOTFS="+filepath.Join(dir, "rootfs"), "PORTS=", "HOSTNAME=tester",
			"INITRAMFS="+filepath.Join(dir, "initramfs"), "XDG_RUNTIME_DIR="+dir, "GORACE=atexit_sleep_ms=0")
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		}
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Skipf("no pid namespace to be had: %v", err)
		}
		time.Sleep(delay)
		waitForHandler(t, cmd.Process.Pid)
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		watchdog := time.AfterFunc(10*time.Second, func() { cmd.Process.Kill() })
		_ = cmd.Wait()
		watchdog.Stop()
		if code := cmd.ProcessState.ExitCode(); code != 0 {
			t.Errorf("exit code %d after SIGTERM, %v after its start, want 0:\n%s", code, delay, &out)
		}
	}
}

// buildAsImage builds the program into dir, with the flags of the Dockerfile.
func buildAsImage(t *testing.T, dir string) string {
	t.Helper()
	dockerfile, err := os.ReadFile("../../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	flags := regexp.MustCompile(`-ldflags "([^"]*)" -o /image/entrypoint `).FindSubmatch(dockerfile)
	if flags == nil {
		t.Fatal("the Dockerfile does not build /image/entrypoint with -ldflags")
	}
	binary := filepath.Join(dir, "entrypoint")
	build := exec.Command("go", "build", "-ldflags", string(flags[1]), "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return binary
}

// waitForHandler waits for the first instructions of process pid: what is sent before them the kernel drops.
func waitForHandler(t *testing.T, pid int) {
	t.Helper()
	caught := regexp.MustCompile(`(?m)^SigCgt:\s*([0-9a-f]+)$`)
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			t.Fatal(err)
		}
		if set := caught.FindSubmatch(status); set != nil {
			if bits, err := strconv.ParseUint(string(set[1]), 16, 64); err == nil && bits&(1<<(syscall.SIGTERM-1)) != 0 {
				return
			}
		}
	}
	t.Fatalf("process %d has no handler for SIGTERM", pid)
}
