package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// askPassEnv is the environment of an OpenSSH client that logs in with the default password.
func askPassEnv(t *testing.T) []string {
	t.Helper()
	ask := filepath.Join(t.TempDir(), "askpass")
	if err := os.WriteFile(ask, []byte("#!/bin/sh\necho "+password+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return append(os.Environ(), "SSH_ASKPASS="+ask, "SSH_ASKPASS_REQUIRE=force", "DISPLAY=none")
}

// sshCommand runs the real OpenSSH client against c with the default password.
func sshCommand(t *testing.T, c *container, stdin string, command ...string) (stdout, stderr string, err error) {
	t.Helper()
	host, port, _ := strings.Cut(c.address("22/tcp"), ":")
	args := []string{
		"-p", port, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
		"-o", "LogLevel=ERROR", "-o", "PreferredAuthentications=password", "root@" + host,
	}
	cmd := exec.Command("ssh", append(args, command...)...)
	cmd.Env = askPassEnv(t)
	var out, errs strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// TestSSH is what the README promises: run the image, log in with OpenSSH's client, find a whole system.
func TestSSH(t *testing.T) {
	t.Parallel()
	c := start(t, "-p", "127.0.0.1::22", "-e", "MEM=512M", "--hostname", "tester")
	client := c.ssh()

	out, errs, err := sshCommand(t, c, "", "id", "-un")
	if err != nil || strings.TrimSpace(out) != "root" || errs != "" {
		t.Errorf("ssh id -un = %q, %q, %v, want root", out, errs, err)
	}
	if got := remote(t, client, "uname -r"); !strings.HasPrefix(got, "7.2.") {
		t.Errorf("uname -r = %q, want 7.2.*", got)
	}
	if got := remote(t, client, "hostname; cat /etc/hostname"); got != "tester\ntester" {
		t.Errorf("hostname = %q, want tester, in the kernel and in /etc/hostname", got)
	}
	if got := remote(t, client, "systemctl is-system-running --wait || systemctl --failed"); got != "running" {
		t.Errorf("systemctl is-system-running = %q, want running", got)
	}
	if got := remote(t, client, "cat /proc/1/comm"); got != "systemd" {
		t.Errorf("PID 1 is %q, want systemd", got)
	}
	mem := remote(t, client, "sed -n 's/^MemTotal: *//p' /proc/meminfo")
	// Less the kernel's own 30 MB, and up to 16 MB for a hole in its address space that Docker's seccomp profile makes.
	if !regexp.MustCompile(`^(4[789]|5[01])\d{4} kB$`).MatchString(mem) {
		t.Errorf("MemTotal = %s with MEM=512M", mem)
	}
	if got := remote(t, client, "ip -o -4 addr show dev eth0"); !strings.Contains(got, "10.0.2.15/24") {
		t.Errorf("eth0: %q, want 10.0.2.15/24", got)
	}
	remote(t, client, "ping -c 2 -W 10 10.0.2.2")
	if got := remote(t, client, "nft add table ip t && nft list tables"); got != "table ip t" {
		t.Errorf("nft list tables = %q", got)
	}
	if got := remote(t, client, "systemctl list-units --state=failed --no-legend"); got != "" {
		t.Errorf("failed units: %s", got)
	}
	if log := c.logs(); !strings.Contains(log, "ROOT_PASSWORD") {
		t.Errorf("no warning about the default password in the log")
	}
}

// TestHostKeys wants no host key in the image, and a different one in each container.
func TestHostKeys(t *testing.T) {
	t.Parallel()
	needImage(t)
	var keys []string
	for range 2 {
		c := start(t, "-p", "127.0.0.1::22")
		keys = append(keys, remote(t, c.ssh(), "cat /etc/ssh/ssh_host_ed25519_key.pub"))
	}
	if keys[0] == keys[1] {
		t.Errorf("two containers have the same host key %s", keys[0])
	}
	id := docker(t, "create", image)
	defer docker(t, "rm", id)
	if err := exec.Command("sh", "-c", "docker export "+id+" | tar t | grep -q etc/ssh/ssh_host").Run(); err == nil {
		t.Errorf("the image has a host key in it")
	}
}

func TestAuthorizedKeys(t *testing.T) {
	t.Parallel()
	signer, line := newKey(t)
	c := start(t, "-p", "127.0.0.1::22", "-e", "SSH_AUTHORIZED_KEYS="+line)
	client := c.ssh(publicKey(signer))
	if got := remote(t, client, "id -un"); got != "root" {
		t.Errorf("id -un = %q, want root", got)
	}
	if _, err := c.trySSH(passwordAuth(password)); err == nil {
		t.Errorf("the default password works although keys are set")
	}
	if strings.Contains(c.logs(), "ROOT_PASSWORD") {
		t.Errorf("a warning about the default password although it is not in force")
	}
}

func TestRootPassword(t *testing.T) {
	t.Parallel()
	c := start(t, "-p", "127.0.0.1::22", "-e", "ROOT_PASSWORD=other than that")
	c.ssh(passwordAuth("other than that"))
	if _, err := c.trySSH(passwordAuth(password)); err == nil {
		t.Errorf("the default password works although ROOT_PASSWORD is set")
	}
	if strings.Contains(c.logs(), "other than that") {
		t.Errorf("the password is in the log")
	}
}

// TestQueries are the arguments that print something about the kernel.
func TestQueries(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ arg, want string }{
		{"--help", "User Mode Linux v7.2"},
		{"--version", "7.2."},
		{"--showconfig", "CONFIG_UML=y"},
	} {
		stdout, stderr, code := run(t, "", "--", test.arg)
		if code != 0 || !strings.Contains(stdout, test.want) || stderr != "" {
			t.Errorf("%s: exit code %d, stderr %q, stdout lacks %q:\n%.2000s", test.arg, code, stderr, test.want, stdout)
		}
	}
}

func TestRawArguments(t *testing.T) {
	t.Parallel()
	script := "cat /proc/cmdline; sed -n 's/MemTotal: *//p' /proc/meminfo; ls /etc/debian_version; " +
		"mkdir -p /x; sync; echo o > /proc/sysrq-trigger; sleep 60\n"
	stdout, stderr, code := run(t, script, "--", "quiet", "mem=128M", "init=/bin/sh")
	if code != 0 {
		t.Fatalf("exit code %d\n%s\n%s", code, stdout, stderr)
	}
	for _, want := range []string{"quiet", "init=/bin/sh", "/etc/debian_version"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in %s", want, stdout)
		}
	}
	// 131072 kB less what TestSSH says.
	if !regexp.MustCompile(`(?m)^(8[5-9]|9\d|1[0-3]\d)\d{3} kB`).MatchString(stdout) {
		t.Errorf("mem=128M does not show in MemTotal: %s", stdout)
	}
	if strings.Contains(stdout, "Linux version") {
		t.Errorf("quiet, and yet the kernel talks: %s", stdout)
	}
}

func TestBadEnvironment(t *testing.T) {
	t.Parallel()
	stdout, stderr, code := run(t, "", "-e", "MEM=abc", "-e", "PORTS=99999")
	lines := strings.Split(strings.TrimSpace(stderr), "\n")
	if code != 2 || stdout != "" || len(lines) != 2 {
		t.Fatalf("exit code %d, want 2; stderr, want two lines:\n%s\nstdout:\n%s", code, stderr, stdout)
	}
	for i, want := range []string{`MEM="abc"`, `99999`} {
		if !strings.Contains(lines[i], want) {
			t.Errorf("line %d is %q, want %s in it", i+1, lines[i], want)
		}
	}
}

// TestMemoryLimit runs where the guest's RAM does not fit.
func TestMemoryLimit(t *testing.T) {
	t.Parallel()
	c := start(t, "-m", "128m", "-e", "MEM=256M")
	c.waitLog("does not fit into the container's memory limit")
}

// TestReadOnlyContainer runs in a container that cannot write anywhere.
func TestReadOnlyContainer(t *testing.T) {
	t.Parallel()
	stdout, stderr, code := run(t, "mount; echo o > /proc/sysrq-trigger; sleep 60\n", "--read-only", "--",
		"quiet", "init=/bin/sh")
	if code != 0 || !strings.Contains(stdout, "hostfs on / type hostfs") || !strings.Contains(stdout, "devtmpfs on /dev ") {
		t.Errorf("exit code %d\n%s\n%s", code, stdout, stderr)
	}
}

// TestBootOrder asserts nothing but order: the figures are for the reader of the log (make bench has the real ones).
func TestBootOrder(t *testing.T) {
	t.Parallel()
	c := start(t, "-p", "127.0.0.1::22", "-e", "LOG_LEVEL=debug")
	began := time.Now()
	c.ssh()
	t.Logf("ssh session %.1f s after docker run", time.Since(began).Seconds())
	log := c.logs()
	last := -1
	for _, event := range []string{"kernel started", "management console is up", "guest stage"} {
		at := strings.Index(log, event)
		if at < last {
			t.Errorf("%q is missing or too early in the log:\n%s", event, log)
		}
		last = at
	}
}
