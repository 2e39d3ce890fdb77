package e2e

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestSystemCalls has a program look closely at what system calls do, in each of the ways in which they come to the guest's
// kernel: as notifications of the host's seccomp, where it has them, as signals, and by ptrace.
func TestSystemCalls(t *testing.T) {
	t.Parallel()
	mount := syscalls(t)

	const notifications = "Checking for seccomp notifications...OK"

	for _, c := range []struct {
		options  []string
		notified bool
	}{
		{[]string{"-e", "CPUS=1"}, true},
		{[]string{"-e", "CPUS=2"}, true},
		// Fewer descriptors than processes: some have to do without notifications.
		{[]string{"-e", "CPUS=2", "--ulimit", "nofile=120:120"}, true},
		{[]string{"-e", "USERSPACE=ptrace"}, false},
	} {
		stdout, stderr, code := run(t, "", append(c.options, "-v", mount, "-e", "LOG_LEVEL=debug", "--", "run", "/syscalls")...)
		if code != 0 {
			t.Errorf("%q: exit code %d\n%s%s", c.options, code, stdout, stderr)
		}
		if strings.Contains(stderr, notifications) != c.notified {
			t.Errorf("%q: with notifications: %v, want %v\n%s", c.options, !c.notified, c.notified, stderr)
		}
	}

	c := start(t, "-v", mount, "-e", "PORTS=", "-e", "LOG_LEVEL=debug", "--", "seccomp=signals")
	c.mustExec("/syscalls")
	if log := c.logs(); strings.Contains(log, notifications) {
		t.Errorf("seccomp=signals: with notifications\n%s", log)
	}
}

// TestPause pauses a container whose guest does nothing but system calls: each is carried out, and once.
func TestPause(t *testing.T) {
	t.Parallel()
	c := start(t, "-v", syscalls(t), "-e", "CPUS=1", "-e", "PORTS=")
	c.mustExec("true")
	ctx, cancel := context.WithTimeout(t.Context(), hangGuard)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", "exec", c.id, "guest", "/syscalls", "8")
	errs := &strings.Builder{}
	cmd.Stderr = errs
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// Docker begins nothing in a paused container.
	if _, err := stdout.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()

	pauses := 0
	for {
		select {
		case err := <-done:
			if err != nil || pauses == 0 {
				t.Errorf("after %d pauses: %v\n%s", pauses, err, errs)
			}
			return
		default:
			docker(t, "pause", c.id)
			docker(t, "unpause", c.id)
			pauses++
			time.Sleep(time.Duration(pauses%10) * time.Millisecond)
		}
	}
}

// syscalls builds the program in testdata, and returns the option that mounts it as /syscalls.
func syscalls(t *testing.T) (volume string) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "syscalls")
	out, err := exec.Command("gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-static", "-pthread", "-o", program, "testdata/syscalls.c").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return program + ":/rootfs/syscalls:ro"
}
