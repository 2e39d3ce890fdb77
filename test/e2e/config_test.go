package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// mountFiles makes a directory with these files and returns the option that mounts it, read-only.
func mountFiles(t *testing.T, at string, files map[string]string) (option string) {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir + ":" + at + ":ro"
}

// TestSecretFiles logs in with a password and with a key from mounted files; neither shows anywhere.
func TestSecretFiles(t *testing.T) {
	t.Parallel()
	signer, line := newKey(t)
	secrets := mountFiles(t, "/run/secrets", map[string]string{"password": "from a file\n", "keys": "# mine\n" + line + "\n"})
	c := start(t, "-p", "127.0.0.1::22", "-v", secrets, "-e", "ROOT_PASSWORD_FILE=/run/secrets/password",
		"-e", "SSH_AUTHORIZED_KEYS_FILE=/run/secrets/keys")
	c.ssh(passwordAuth("from a file"))
	c.ssh(publicKey(signer))
	if _, err := c.trySSH(passwordAuth(password)); err == nil {
		t.Errorf("the default password works although ROOT_PASSWORD_FILE is set")
	}
	if log := c.logs(); strings.Contains(log, "from a file") || strings.Contains(log, "ROOT_PASSWORD") {
		t.Errorf("the password, or a warning about the default one, in the log:\n%s", log)
	}
	if got := docker(t, "inspect", c.id); strings.Contains(got, "from a file") {
		t.Errorf("the password shows in docker inspect")
	}
}

func TestSecretFileProblems(t *testing.T) {
	t.Parallel()
	secrets := mountFiles(t, "/run/secrets", map[string]string{"password": "geheim\nund so\n"})
	stdout, stderr, code := run(t, "", "-v", secrets, "-e", "ROOT_PASSWORD_FILE=/run/secrets/password",
		"-e", "SSH_AUTHORIZED_KEYS=x", "-e", "SSH_AUTHORIZED_KEYS_FILE=/run/secrets/keys", "-e", "STOP_TIMEOUT=2h", "-e", "HOOKS=/none")
	if code != 2 || stdout != "" || strings.Count(stderr, "\n") != 4 || strings.Contains(stderr, "geheim") {
		t.Errorf("exit code %d, want 2; stdout %q; stderr, want four lines without the password:\n%s", code, stdout, stderr)
	}
}

// TestHooks has the guest's init find what hooks did before it, over the network too, and nothing of the hooks themselves.
func TestHooks(t *testing.T) {
	t.Parallel()
	hooks := mountFiles(t, "/docker-entrypoint.d", map[string]string{
		"10-first.sh":  "#!/bin/sh -e\necho first >/root/order; env >/root/env; cat /proc/1/comm >/root/init\n",
		"20-second.sh": "set -e\ncd \"$(dirname \"$0\")\" && ls -1 >>/root/order\nping -c 1 -W 10 10.0.2.2 >/root/ping\n",
		"30-bash.sh":   "#!/bin/bash\nwords=(one two); echo ${words[1]} on the console\nhostname >>/root/order; cat >>/root/order\n",
		"README":       "exit 1\n",
	})
	c := start(t, "-p", "127.0.0.1::22", "-v", hooks, "--hostname", "tester", "-e", "ROOT_PASSWORD=geheim", "--", "MINE=yes")
	client := c.ssh(passwordAuth("geheim"))
	if got, want := remote(t, client, "cat /root/order"), "first\n10-first.sh\n20-second.sh\n30-bash.sh\ntester"; got != want {
		t.Errorf("the hooks wrote\n%s\nwant\n%s", got, want)
	}
	if got := remote(t, client, "cat /root/env"); !strings.Contains(got, "HOME=/root") || !strings.Contains(got, "MINE=yes") ||
		!strings.Contains(got, "/usr/local/sbin:") || strings.Contains(got, "geheim") {
		t.Errorf("environment of a hook:\n%s", got)
	}
	remote(t, client, "grep -q guest /root/init || grep -q init /root/init; grep -q '1 received' /root/ping")
	if got := remote(t, client, "ls -d /hooks /dev/hooks; grep hooks /proc/mounts; systemctl is-system-running --wait"); got != "running" {
		t.Errorf("after the hooks: %s, want a running system and no trace of them", got)
	}
	log := c.logs()
	for _, want := range []string{"two on the console", "hook is ignored", "README"} {
		if !strings.Contains(log, want) {
			t.Errorf("no %q in the log:\n%s", want, log)
		}
	}
}

// TestHookFails ends the container with the exit code of a hook; what comes after it does not run.
func TestHookFails(t *testing.T) {
	t.Parallel()
	for script, want := range map[string]struct {
		code int
		log  string
	}{
		"#!/bin/sh\nexit 3\n":     {3, "guest: hook 10-a.sh: exit status 3"},
		"kill -TERM $$\n":         {143, "guest: hook 10-a.sh: signal: terminated"},
		"#!/usr/bin/no-such -x\n": {126, "its interpreter is missing: /usr/bin/no-such -x"},
	} {
		hooks := mountFiles(t, "/hooks", map[string]string{"10-a.sh": script, "20-b.sh": "echo went on\n"})
		stdout, stderr, code := run(t, "", "-e", "HOOKS=/hooks", "-v", hooks)
		if code != want.code || !strings.Contains(stdout, want.log) || strings.Contains(stdout, "went on") {
			t.Errorf("hook %q: exit code %d, want %d and %q\n%s\n%s", script, code, want.code, want.log, stdout, stderr)
		}
	}
}

// TestQuiet has docker logs show what someone has to know, and nothing of a boot that goes well.
func TestQuiet(t *testing.T) {
	t.Parallel()
	c := start(t)
	c.waitLog(greeting)
	log := c.logs()
	for _, unwanted := range []string{"Linux version", "Started ", "Reached target", "Run /init"} {
		if strings.Contains(log, unwanted) {
			t.Errorf("%q in the log of a quiet boot:\n%s", unwanted, log)
		}
	}
	c = start(t, "-e", "LOG_LEVEL=debug")
	c.waitLog("Linux version")
	c.waitLog("Started ")
}

// TestStopTimeout stops a guest whose init does not come to an end, once with and once without being asked.
func TestStopTimeout(t *testing.T) {
	t.Parallel()
	for timeout, asked := range map[string]bool{"0": false, "1500ms": true} {
		hooks := mountFiles(t, "/docker-entrypoint.d", map[string]string{
			"slow.sh": "printf '[Service]\\nExecStart=sleep inf\\nExecStop=sleep 3600\\nTimeoutStopSec=3600\\n' >/etc/systemd/system/slow.service\n" +
				"mkdir -p /etc/systemd/system/multi-user.target.wants\n" +
				"ln -sf ../slow.service /etc/systemd/system/multi-user.target.wants/\n",
		})
		c := start(t, "-p", "127.0.0.1::22", "-v", hooks, "-e", "STOP_TIMEOUT="+timeout)
		remote(t, c.ssh(), "systemctl start slow") // SSH is there before the init has started all
		if code := c.stop(); code != "0" {
			t.Errorf("STOP_TIMEOUT=%s: exit code %s, want 0", timeout, code)
		}
		log := c.logs()
		if strings.Contains(log, `rung="power off"`) != asked || !strings.Contains(log, "rung=halt") {
			t.Errorf("STOP_TIMEOUT=%s: asked the init: want %v, and a halt:\n%s", timeout, asked, log)
		}
	}
}

// TestLogJSON wants every line of both outputs to be JSON, and the guest's words on stdout alone.
func TestLogJSON(t *testing.T) {
	t.Parallel()
	stdout, stderr, code := run(t, "printf '\\033[1m\"a\\\\b\"\\303\\050\\n'; head -c 5000 /dev/zero | tr '\\0' x; echo; echo o > /proc/sysrq-trigger; sleep 60\n",
		"-e", "LOG_FORMAT=json", "--", "init=/bin/sh")
	if code != 0 {
		t.Errorf("exit code %d", code)
	}
	var text strings.Builder
	for stream, output := range map[string]string{"console": stdout, "supervisor": stderr} {
		for line := range strings.Lines(output) {
			var object struct {
				Time                         time.Time
				Level, Stream, Line, Message string
				Partial                      bool
			}
			if err := json.Unmarshal([]byte(line), &object); err != nil || object.Stream != stream || object.Level == "" || object.Time.IsZero() {
				t.Errorf("%s: %q: %v", stream, line, err)
			}
			text.WriteString(object.Line)
			if stream == "console" && !object.Partial {
				text.WriteByte('\n')
			}
		}
	}
	for _, want := range []string{"\x1b[1m\"a\\b\"\ufffd(\n", strings.Repeat("x", 5000) + "\n"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in the console's lines:\n%s", want, stdout)
		}
	}
}
