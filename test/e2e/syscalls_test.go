package e2e

import (
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

	for _, options := range [][]string{
		{"-e", "CPUS=1"},
		{"-e", "CPUS=2"},
		// Fewer descriptors than processes: some have to do without notifications.
		{"-e", "CPUS=2", "--ulimit", "nofile=120:120"},
		{"-e", "USERSPACE=ptrace"},
	} {
		stdout, stderr, code := run(t, "", append(options, "-v", mount, "--", "run", "/syscalls")...)
		if code != 0 {
			t.Errorf("%q: exit code %d\n%s%s", options, code, stdout, stderr)
		}
	}

	c := start(t, "-v", mount, "-e", "PORTS=", "--", "seccomp=signals")
	c.mustExec("/syscalls")
}

// TestPause pauses a container whose guest does nothing but system calls: each is carried out, and once.
func TestPause(t *testing.T) {
	t.Parallel()
	c := start(t, "-v", syscalls(t), "-e", "CPUS=1", "-e", "PORTS=")
	c.mustExec("true")
	cmd := exec.CommandContext(t.Context(), "docker", "exec", c.id, "guest", "/syscalls", "8")
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
