package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestVolume writes from both sides of a directory mounted under /rootfs.
func TestVolume(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "host"), []byte("from the host\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	c := start(t, "-p", "127.0.0.1::22", "-v", dir+":/rootfs/data")
	client := c.ssh()
	if got := remote(t, client, "cat /data/host"); got != "from the host" {
		t.Errorf("/data/host = %q in the guest", got)
	}
	if got, want := remote(t, client, "stat -c %u:%g:%a /data/host"), fmt.Sprintf("%d:%d:640", os.Getuid(), os.Getgid()); got != want {
		t.Errorf("/data/host belongs to %s in the guest, want %s", got, want)
	}
	remote(t, client, "echo from the guest > /data/guest && chown 1234:5678 /data/guest && chmod 604 /data/guest && sync")
	got, err := os.ReadFile(filepath.Join(dir, "guest"))
	if err != nil || string(got) != "from the guest\n" {
		t.Errorf("guest's file = %q, %v", got, err)
	}
	info, err := os.Stat(filepath.Join(dir, "guest"))
	if err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*syscall.Stat_t); st.Uid != 1234 || st.Gid != 5678 || info.Mode() != 0o604 {
		t.Errorf("guest's file belongs to %d:%d, mode %v; want 1234:5678, 0604", st.Uid, st.Gid, info.Mode())
	}
}

// TestStop stops and starts a container: nothing synced is lost, and the guest had an orderly shutdown.
func TestStop(t *testing.T) {
	t.Parallel()
	c := start(t, "-p", "127.0.0.1::22")
	client := c.ssh()
	remote(t, client, "echo precious > /root/file && sync")
	remote(t, client, "systemctl is-system-running --wait")
	if code := c.stop(); code != "0" {
		t.Errorf("exit code %s after docker stop, want 0", code)
	}
	if log := c.logs(); strings.Contains(log, "rung=kill") || strings.Contains(log, "rung=halt") {
		t.Errorf("the guest did not power off by itself:\n%s", log)
	}
	docker(t, "start", c.id)
	client = c.ssh()
	if got := remote(t, client, "cat /root/file"); got != "precious" {
		t.Errorf("file after a restart = %q, want precious", got)
	}
	journal := remote(t, client, "journalctl -b -1 --no-pager -o cat")
	for _, want := range []string{"Stopped target multi-user.target", "Reached target umount.target", "Journal stopped"} {
		if !strings.Contains(journal, want) {
			t.Errorf("no %q in the journal of the boot before:\n%s", want, journal)
		}
	}
}

// TestStopShell stops a guest whose init does not listen. Like TestStop it ends with 0, not with the 143 or 137 of a
// program that dies of Docker's signals (tomcat#57).
func TestStopShell(t *testing.T) {
	t.Parallel()
	c := start(t, "-e", "LOG_LEVEL=debug", "--", "init=/bin/sh")
	c.waitLog("guest stage")
	if code := c.stop(); code != "0" {
		t.Errorf("exit code %s after docker stop, want 0", code)
	}
}

// TestStopAtOnce stops a guest that is only just starting.
func TestStopAtOnce(t *testing.T) {
	t.Parallel()
	c := start(t)
	if code := c.stop(); code != "0" {
		t.Errorf("exit code %s after docker stop, want 0", code)
	}
}

func TestPoweroffFromInside(t *testing.T) {
	t.Parallel()
	c := start(t, "-p", "127.0.0.1::22")
	client := c.ssh()
	_, _ = remoteErr(client, "echo 42 > /proc/exitcode; systemctl --no-block poweroff")
	if code := c.wait(); code != "42" {
		t.Errorf("exit code %s, want 42, which the guest wrote to /proc/exitcode", code)
	}
}

func TestPanic(t *testing.T) {
	t.Parallel()
	c := start(t, "-p", "127.0.0.1::22")
	client := c.ssh()
	_, _ = remoteErr(client, "echo c > /proc/sysrq-trigger & sleep 5")
	if code := c.wait(); code != "134" {
		t.Errorf("exit code %s after a panic, want 134", code)
	}
	if log := c.logs(); !strings.Contains(log, "sysrq triggered crash") {
		t.Errorf("the log does not say why:\n%s", log)
	}
}

// TestConsole logs in on the console of docker run -it, edits a line and interrupts a command. A PID 1 that does not see
// to its child's process group hangs there (tini#19).
func TestConsole(t *testing.T) {
	t.Parallel()
	needImage(t)
	id := name(t, "tty")
	term := newTerminal(t, "docker", "run", "--rm", "-it", "--name", id, image)
	defer exec.Command("docker", "rm", "-f", id).Run()
	term.expect("login: ")
	term.send("root\r")
	term.expect("Password: ")
	term.send(password + "\r")
	term.expect("# ")
	// \x7f is the backspace key.
	term.send("echo one$((1))twx\x7fo\r")
	term.expect("one1two\r\n")
	term.send("sleep 1000\r")
	time.Sleep(500 * time.Millisecond)
	term.send("\x03")
	term.expect("# ")
	term.send("stty size; tty\r")
	term.expect("33 111")
	term.send("poweroff\r")
	if code := term.wait(); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}
