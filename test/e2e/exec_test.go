package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// exec runs a command in the guest and returns its output.
func (c *container) exec(args ...string) (string, error) {
	return dockerErr(append([]string{"exec", c.id, "entrypoint", "exec"}, args...)...)
}

// mustExec is exec for a command that has to succeed.
func (c *container) mustExec(args ...string) string {
	c.t.Helper()
	out, err := c.exec(args...)
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

// status is what "entrypoint status --json" says, as far as the tests look at it.
type status struct {
	State    string
	Mode     string
	Healthy  bool
	Problems []string
	Guest    *struct {
		Kernel string
		Init   struct {
			Name string
			Up   bool
		}
	}
	HostResident uint64 `json:"host_resident"`
	HostReturned uint64 `json:"host_returned"`
	Forwards     int
}

// status asks the supervisor.
func (c *container) status() (status, error) {
	var s status
	out, err := dockerErr("exec", c.id, "entrypoint", "status", "--json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &s)
	}
	return s, err
}

// waitUp waits until the guest runs, under an init of that name.
func (c *container) waitUp(init string) {
	c.t.Helper()
	waitFor(c.t, "a guest that is up", func() error {
		s, err := c.status()
		switch {
		case err != nil:
			return err
		case s.State != "running" || s.Guest == nil || !s.Guest.Init.Up:
			return fmt.Errorf("%s: %q", s.State, s.Problems)
		case s.Guest.Init.Name != init:
			c.t.Fatalf("the guest's init is %q, want %s", s.Guest.Init.Name, init)
		}
		return nil
	})
}

// execCode runs a command in the guest, by either name, and returns all that there is to see.
func (c *container) execCode(stdin io.Reader, command ...string) (stdout, stderr string, code int) {
	c.t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.Command("docker", append([]string{"exec", "-i", c.id}, command...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &errs
	err := cmd.Run()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		c.t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// TestExec runs commands in the guest from outside.
func TestExec(t *testing.T) {
	t.Parallel()
	c := start(t, "-e", "PORTS=")
	// At once: it waits for the guest.
	if got := c.mustExec("cat", "/proc/sys/kernel/osrelease"); !strings.HasPrefix(got, "7.2.") {
		t.Errorf("the command ran under kernel %q, want the guest's", got)
	}
	for _, test := range []struct {
		args           []string
		stdout, stderr string
		code           int
	}{
		{[]string{"guest", "sh", "-c", "echo out; echo err >&2; exit 7"}, "out\n", "err\n", 7},
		{[]string{"guest", "printf", "%s|", "a b", "$HOME", "*", ""}, "a b|$HOME|*||", "", 0},
		{[]string{"guest", "sh", "-c", "kill -9 $$"}, "", "", 137},
		{[]string{"guest", "sh", "-c", "kill -TERM $$"}, "", "", 143},
		{[]string{"guest", "nosuch"}, "", "guest: nosuch: not found\n", 127},
		{[]string{"guest", "/etc/passwd"}, "", "guest: /etc/passwd: permission denied\n", 126},
		{[]string{"guest", "-u", "nobody:games", "-w", "/var", "-e", "A=b c", "sh", "-c", "id -un; id -gn; pwd; echo $A"}, "nobody\ngames\n/var\nb c\n", "", 0},
		{[]string{"guest", "-u", "65534", "id", "-u"}, "65534\n", "", 0},
		{[]string{"guest", "-u", "nosuch", "id"}, "", "nosuch", 125},
		{[]string{"guest", "-w", "/nosuch", "id"}, "", "/nosuch", 125},
		{[]string{"guest", "--nosuch"}, "", "flag provided but not defined: -nosuch", 2},
		{[]string{"entrypoint", "exec", "sh", "-c", "cat; echo $HOME $USER $SHELL $TERM"}, "input\n/root root /bin/bash\n", "", 0},
	} {
		stdout, stderr, code := c.execCode(strings.NewReader("input\n"), test.args...)
		if stdout != test.stdout || code != test.code || !strings.Contains(stderr, test.stderr) ||
			(test.stderr == "") != (stderr == "") {
			t.Errorf("%q: exit code %d, stdout %q, stderr %q; want %d, %q, %q",
				test.args, code, stdout, stderr, test.code, test.stdout, test.stderr)
		}
	}
}

// TestExecBinary sends bytes of all values there and back, and looks how fast.
func TestExecBinary(t *testing.T) {
	t.Parallel()
	c := start(t, "-e", "PORTS=")
	c.mustExec("true")
	const size = 64 << 20
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i ^ i>>8 ^ i>>16)
	}
	began := time.Now()
	stdout, stderr, code := c.execCode(bytes.NewReader(data), "guest", "cat")
	t.Logf("%.0f MB/s there and back", size/1e6/time.Since(began).Seconds())
	if code != 0 || stderr != "" || sha256.Sum256([]byte(stdout)) != sha256.Sum256(data) {
		t.Errorf("%d bytes came back of %d, exit code %d, stderr %q", len(stdout), size, code, stderr)
	}
}

// TestExecTerminal is docker exec -it C guest: a login shell with job control on a terminal that follows the window.
func TestExecTerminal(t *testing.T) {
	t.Parallel()
	c := start(t, "-e", "PORTS=")
	c.mustExec("true")
	term := newTerminal(t, "docker", "exec", "-it", c.id, "guest")
	term.expect("# ")
	term.send("stty size; tty; shopt -q login_shell && echo a login\\ shell\r")
	term.expect("33 111")
	term.expect("/dev/pts/")
	term.expect("a login shell")
	term.resize(20, 70)
	waitFor(t, "the new size in the guest", func() error {
		term.send("stty size\r")
		time.Sleep(100 * time.Millisecond)
		if !strings.Contains(term.text(), "20 70") {
			return errors.New("not yet")
		}
		return nil
	})
	term.send("sleep 1000; echo $((40+2))\r")
	time.Sleep(500 * time.Millisecond)
	term.send("\x03")
	term.expect("# ")
	term.send("exit 9\r")
	if code := term.wait(); code != 9 {
		t.Errorf("exit code %d, want 9", code)
	}
}

// TestExecGone has clients that go away, by a signal and by being killed: the command in the guest notices.
func TestExecGone(t *testing.T) {
	t.Parallel()
	c := start(t, "-e", "PORTS=", "-v", self(t)+":/peer:ro")
	c.mustExec("true")
	for signal, want := range map[string]string{"15": "TERM", "2": "INT", "9": "HUP"} {
		// A shell that tells of its child's end where nobody reads any more dies of that.
		script := fmt.Sprintf(`exec 2>/dev/null; for s in TERM INT HUP; do trap "echo $s > /%s; exit" $s; done; echo > /ready; while :; do sleep 0.05; done`, want)
		cmd := exec.Command("docker", "exec", c.id, "/guest", "sh", "-c", script)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "the command", func() error {
			_, err := c.exec("rm", "/ready")
			return err
		})
		docker(t, "exec", c.id, "/peer", "kill", "guest", signal)
		_ = cmd.Wait()
		waitFor(t, "what the command heard of signal "+signal, func() error {
			out, err := c.exec("cat", "/"+want)
			if err == nil && out != want {
				t.Fatalf("the command heard %q, want %s", out, want)
			}
			return err
		})
	}
}

// TestRun is docker run IMAGE run: a command in a guest of its own.
func TestRun(t *testing.T) {
	t.Parallel()
	needImage(t)
	for _, test := range []struct {
		stdin          string
		options        []string
		stdout, stderr string
		code           int
	}{
		{"", []string{"--", "run", "echo", "hello"}, "hello\n", "", 0},
		{"", []string{"--", "run", "sh", "-c", "echo err >&2; exit 3"}, "", "err\n", 3},
		{"", []string{"--", "run", "sh", "-c", "kill -9 $$"}, "", "", 137},
		{"", []string{"--", "run", "nosuch"}, "", "guest: nosuch: not found\n", 127},
		{"nft add table ip t; nft list ruleset\n", []string{"--", "run", "sh"}, "table ip t {\n}\n", "", 0},
		{"", []string{"--init", "--", "run", "cat", "/proc/1/comm"}, "init\n", "", 0},
		{"", []string{"--", "run", "--init", "systemctl", "is-system-running"}, "running\n", "", 0},
		{"", []string{"-e", "MEM=x", "--", "run", "true"}, "", `MEM="x"`, 2},
		{"", []string{"--", "run", "sh", "-c", "echo 5 > /proc/exitcode; poweroff -f; sleep 10"}, "", "", 5},
		{"", []string{"--", "run", "sh", "-c", "sleep 1000 & (setsid sleep 1000 &) ; exit 4"}, "", "", 4},
	} {
		t.Run(fmt.Sprint(test.options), func(t *testing.T) {
			t.Parallel()
			stdout, stderr, code := run(t, test.stdin, test.options...)
			if stdout != test.stdout || code != test.code || !strings.Contains(stderr, test.stderr) {
				t.Errorf("exit code %d, stdout %q, stderr %q; want %d, %q, %q",
					code, stdout, stderr, test.code, test.stdout, test.stderr)
			}
		})
	}
}

// TestRunTerminal is docker run -it IMAGE run sh.
func TestRunTerminal(t *testing.T) {
	t.Parallel()
	needImage(t)
	term := newTerminal(t, "docker", "run", "--rm", "-it", "--name", name(t, "run"), image, "run", "bash")
	term.expect("# ")
	term.send("stty size; echo $((6*7))\r")
	term.expect("33 111")
	term.expect("42")
	term.send("exit 6\r")
	if code := term.wait(); code != 6 {
		t.Errorf("exit code %d, want 6", code)
	}
}

// TestRunStop sends docker stop's signal to the command, which may do with it what it likes.
func TestRunStop(t *testing.T) {
	t.Parallel()
	needImage(t)
	for script, want := range map[string]string{
		"echo ready; exec sleep 1000": "143",
		`trap "echo heard; exit 5" TERM; echo ready; while :; do sleep 0.1; done`: "5",
	} {
		c := start(t, "--", "run", "sh", "-c", script)
		c.waitLog("ready")
		if code := c.stop(); code != want {
			t.Errorf("%s: exit code %s after docker stop, want %s", script, code, want)
		}
	}
}

// TestHealth follows Docker's health state of the image's HEALTHCHECK.
func TestHealth(t *testing.T) {
	t.Parallel()
	// Nobody listens on 9: the guest counts as starting for ten seconds longer, so that the test surely sees it so.
	c := start(t, "-e", "PORTS=22 9", "-p", "127.0.0.1::22", "--health-interval=1s", "--health-start-period=60s")
	health := func() string { return docker(t, "inspect", "-f", "{{.State.Health.Status}}", c.id) }
	if got := health(); got != "starting" {
		t.Errorf("health at the start is %q, want starting", got)
	}
	waitFor(t, "a healthy guest", func() error {
		if got := health(); got != "healthy" {
			return errors.New(got)
		}
		return nil
	})
	client := c.ssh() // it listens, by now
	// A busy host may have the guest's init not answer in time, twice in a row.
	waitFor(t, "status", func() error {
		var s status
		out := docker(t, "exec", c.id, "entrypoint", "status", "--json")
		if err := json.Unmarshal([]byte(out), &s); err != nil {
			t.Fatal(err)
		}
		if s.State != "running" || !s.Healthy || s.Guest == nil || !strings.HasPrefix(s.Guest.Kernel, "7.2.") ||
			s.Guest.Init.Name != "systemd" || s.HostResident < 20<<20 || s.Forwards != 2 {
			return errors.New(out)
		}
		if table := docker(t, "exec", c.id, "entrypoint", "status"); !strings.Contains(table, "running, for ") {
			return errors.New(table)
		}
		return nil
	})
	// A guest whose agent is stopped is one that hangs, as far as can be seen.
	remote(t, client, "kill -STOP $(pgrep -f ^@guest-agent)")
	waitFor(t, "an unhealthy guest", func() error {
		if got := health(); got != "unhealthy" {
			return errors.New(got)
		}
		return nil
	})
	if _, err := dockerErr("exec", c.id, "entrypoint", "healthcheck"); err == nil {
		t.Error("healthcheck of a guest that hangs succeeds")
	}
}

// TestReboot has the guest boot again in its container, by its own reboot command.
func TestReboot(t *testing.T) {
	t.Parallel()
	c := start(t, "-p", "127.0.0.1::22")
	client := c.ssh()
	remote(t, client, "echo here > /stays; echo gone > /run/goes")
	_, _ = remoteErr(client, "systemctl reboot")
	c.waitLog("the guest reboots")
	client = c.ssh()
	if got := remote(t, client, "cat /stays; cat /run/goes 2>/dev/null || echo no"); got != "here\nno" {
		t.Errorf("after a reboot: %q", got)
	}
	if code := c.stop(); code != "0" {
		t.Errorf("exit code %s after docker stop, want 0", code)
	}
}
