package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestAgentSSH logs in to a guest without an SSH server, and without an init: an image of a distribution as it is. The
// agent is both.
func TestAgentSSH(t *testing.T) {
	t.Parallel()
	tag := buildUserland(t, "none")
	signer, line := newKey(t)
	c := startImage(t, tag, "-p", "127.0.0.1::22", "-e", "SSH_AUTHORIZED_KEYS="+line, "-e", "ROOT_PASSWORD="+password)
	client := c.ssh(publicKey(signer))
	if got := remote(t, client, "id -un; test -e /usr/sbin/sshd || echo no sshd"); got != "root\nno sshd" {
		t.Errorf("the session says %q", got)
	}
	c.ssh(passwordAuth(password))
	if _, err := c.trySSH(passwordAuth("wrong")); err == nil {
		t.Error("a wrong password is right")
	}
	out, errs, err := sshCommand(t, c, "from outside\n", "cat >/in; cat /in; echo to stderr >&2; exit 0")
	if err != nil || out != "from outside\n" || errs != "to stderr\n" {
		t.Errorf("ssh cat = %q, %q, %v", out, errs, err)
	}
	// The SFTP server behind scp.
	key := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(key, []byte(strings.Repeat("0123456789abcdef", 1<<16)), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := scp(t, c, key, "/copied"); err != nil {
		t.Fatalf("scp: %v\n%s", err, out)
	}
	if got := remote(t, client, "stat -c %s /copied"); got != "1048576" {
		t.Errorf("the copy has %s bytes", got)
	}
	// The same host key after a restart.
	before := remote(t, client, "cat /etc/ssh/ssh_host_ed25519_key.pub")
	if code := c.stop(); code != "0" {
		t.Errorf("exit code %s after docker stop, want 0", code)
	}
	docker(t, "start", c.id)
	if after := remote(t, c.ssh(publicKey(signer)), "cat /etc/ssh/ssh_host_ed25519_key.pub"); after != before || before == "" {
		t.Errorf("the host key was %q and is %q", before, after)
	}
}

// scp copies a file into the guest with OpenSSH's client and the default password.
func scp(t *testing.T, c *container, file, to string) (string, error) {
	t.Helper()
	host, port, _ := strings.Cut(c.address("22/tcp"), ":")
	cmd := exec.Command("scp", "-s", "-P", port, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
		"-o", "LogLevel=ERROR", "-o", "PreferredAuthentications=password", file, "root@"+host+":"+to)
	cmd.Env = askPassEnv(t)
	out, err := cmd.CombinedOutput()
	return string(out), err
}
