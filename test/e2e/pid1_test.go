package e2e

import (
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// What tini and dumb-init promise of a PID 1, held against ours: under docker run, with a terminal (-it), and with
// Docker's own init in between (--init), where the entrypoint is not PID 1. A shell as the guest's init keeps a boot
// short.

// shell runs the guest with a shell as its init.
var shell = []string{"--", "quiet", "init=/bin/sh"}

// powerOff ends a guest whose init is a shell. The sleep is for what the kernel needs to act on it.
const powerOff = "echo o > /proc/sysrq-trigger; sleep 60\n"

// TestExitCodes has the guest's exit code come out as docker run's.
func TestExitCodes(t *testing.T) {
	t.Parallel()
	needImage(t)
	for _, test := range []struct {
		options []string
		codes   []int
	}{
		{nil, []int{0, 1, 2, 42, 125, 126, 127, 128, 130, 137, 143, 254, 255}},
		{[]string{"--init"}, []int{0, 42, 143, 255}},
		{[]string{"-t"}, []int{0, 42, 143, 255}},
	} {
		for _, want := range test.codes {
			t.Run(fmt.Sprintf("%v %d", test.options, want), func(t *testing.T) {
				t.Parallel()
				script := fmt.Sprintf("echo %d > /proc/exitcode; %s", want, powerOff)
				if len(test.options) > 0 && test.options[0] == "-t" {
					term := newTerminal(t, append([]string{"docker", "run", "--rm", "-it", "--name", name(t, "t"), image}, shell[1:]...)...)
					term.expect("# ")
					term.send(strings.ReplaceAll(script, "\n", "\r"))
					if code := term.wait(); code != want {
						t.Errorf("exit code %d, want %d:\n%s", code, want, term.all)
					}
					return
				}
				stdout, stderr, code := run(t, script, append(test.options, shell...)...)
				if code != want {
					t.Errorf("exit code %d, want %d\n%s\n%s", code, want, stdout, stderr)
				}
			})
		}
	}
}

// TestKernelKilled kills the kernel's process from outside: 128 and the signal, as from a shell.
func TestKernelKilled(t *testing.T) {
	t.Parallel()
	needImage(t)
	for _, test := range []struct {
		options []string
		signal  int
	}{{nil, 6}, {nil, 9}, {[]string{"--init"}, 9}} {
		signal := test.signal
		t.Run(fmt.Sprintf("%v %d", test.options, signal), func(t *testing.T) {
			t.Parallel()
			c := start(t, append(append(test.options, "-e", "LOG_LEVEL=debug", "-v", self(t)+":/peer:ro"), shell...)...)
			c.waitLog("guest stage")
			docker(t, "exec", c.id, "/peer", "kill", "linux", fmt.Sprint(signal))
			if got, want := c.wait(), fmt.Sprint(128+signal); got != want {
				t.Errorf("exit code %s, want %s", got, want)
			}
			if log, want := c.logs(), fmt.Sprintf("killed by signal %d", signal); !strings.Contains(log, want) {
				t.Errorf("no %q in the log:\n%s", want, log)
			}
		})
	}
}

// TestStopSignals ends a guest in order by whatever stands for that with some init: docker stop's SIGTERM, a terminal's
// signals, and what images of other inits name as their STOPSIGNAL.
func TestStopSignals(t *testing.T) {
	t.Parallel()
	needImage(t)
	for _, init := range []string{"", "--init"} {
		signals := []string{"TERM", "INT", "HUP", "QUIT", "PWR", "RTMIN+3"}
		if init != "" {
			signals = []string{"TERM", "RTMIN+3"}
		}
		for _, signal := range signals {
			t.Run(init+signal, func(t *testing.T) {
				t.Parallel()
				options := []string{"-e", "LOG_LEVEL=debug"}
				if init != "" {
					options = append(options, init)
				}
				c := start(t, append(options, shell...)...)
				c.waitLog("guest stage")
				docker(t, "kill", "-s", signal, c.id)
				if code := c.wait(); code != "0" {
					t.Errorf("exit code %s after SIG%s, want 0", code, signal)
				}
				if log := c.logs(); !strings.Contains(log, "stopping the guest") {
					t.Errorf("no orderly end:\n%s", log)
				}
			})
		}
	}
}

// TestHarmlessSignals are those that ask for nothing that a guest could do.
func TestHarmlessSignals(t *testing.T) {
	t.Parallel()
	c := start(t, append([]string{"-e", "LOG_LEVEL=debug"}, shell...)...)
	c.waitLog("guest stage")
	for _, signal := range []string{"WINCH", "USR1", "USR2", "CONT", "CHLD", "URG", "PIPE", "ALRM", "RTMIN+5"} {
		docker(t, "kill", "-s", signal, c.id)
	}
	if log := c.logs(); strings.Contains(log, "stopping the guest") {
		t.Errorf("a signal without a meaning stops the guest:\n%s", log)
	}
	if code := c.stop(); code != "0" {
		t.Errorf("exit code %s after docker stop, want 0: a signal before has done harm", code)
	}
}

// TestSignalAgain goes a rung down the ladder with each signal, in a guest that does not listen.
func TestSignalAgain(t *testing.T) {
	t.Parallel()
	needImage(t)
	id := name(t, "again")
	// Without its agent, which the shell kills with all else, the guest is asked by Ctrl-Alt-Del, and that is a signal to
	// init then, which a shell without a trap does not even get.
	term := newTerminal(t, append([]string{"docker", "run", "-it", "--name", id, "-e", "LOG_FORMAT=json", image}, shell[1:]...)...)
	c := &container{t: t, id: id}
	defer docker(t, "rm", "-f", id)
	term.expect("# ")
	term.send("kill -9 -1; echo 0 > /proc/sys/kernel/ctrl-alt-del; echo rea''dy\r")
	term.expect("ready")
	for _, rung := range []string{"power off", "remount read-only", "halt"} {
		docker(t, "kill", "-s", "TERM", id)
		c.waitLog(`"rung":"` + rung + `"`)
	}
	if code := c.wait(); code != "0" {
		t.Errorf("exit code %s, want 0 from a kernel that was halted:\n%s", code, term.all)
	}
}

// TestTerminal wants a job-control shell on the terminal of docker run -it, its Ctrl-C in the guest, and the terminal
// given back as it was.
func TestTerminal(t *testing.T) {
	t.Parallel()
	needImage(t)
	term := newTerminal(t, append([]string{
		"docker", "run", "--rm", "-it", "--name", name(t, "tty"), "-v", self(t) + ":/peer:ro", "--entrypoint", "/peer",
		image, "restores", "/entrypoint",
	}, shell[1:]...)...)
	term.expect("# ")
	term.send("stty size\r")
	term.expect("33 111")
	term.send("sleep 1000; echo inter''rupted\r")
	term.expect("sleep 1000")
	term.send("\x03")
	term.expect("# ")
	term.send("echo 7 > /proc/exitcode; " + strings.ReplaceAll(powerOff, "\n", "\r"))
	term.expect("the terminal is as before")
	if code := term.wait(); code != 7 {
		t.Errorf("exit code %d, want 7", code)
	}
}

// TestSupervisorKilled kills our own second process: PID 1 must not sit there alone.
func TestSupervisorKilled(t *testing.T) {
	t.Parallel()
	c := start(t, "-e", "LOG_LEVEL=debug", "-v", self(t)+":/peer:ro")
	c.waitLog("Linux version")
	top := docker(t, "top", c.id, "-eo", "pid,args")
	pid := regexp.MustCompile(`(?m)^\s*(\d+)\s+\S*entrypoint supervise`).FindStringSubmatch(top)
	if pid == nil {
		t.Fatalf("no supervisor in\n%s", top)
	}
	if out, err := exec.Command("kill", "-9", pid[1]).CombinedOutput(); err != nil {
		t.Fatalf("kill: %v %s", err, out)
	}
	if code := c.wait(); code != "125" {
		t.Errorf("exit code %s, want 125", code)
	}
}

// TestOrphans leaves 200 processes without a parent in the container.
func TestOrphans(t *testing.T) {
	t.Parallel()
	needImage(t)
	for _, options := range [][]string{nil, {"--init"}} {
		t.Run(fmt.Sprint(options), func(t *testing.T) {
			t.Parallel()
			c := start(t, append(append(options, "-v", self(t)+":/peer:ro"), shell...)...)
			docker(t, "exec", c.id, "/peer", "orphans", "200")
			waitFor(t, "the end of all orphans", func() error {
				top := docker(t, "top", c.id, "-eo", "pid,stat,comm")
				if n := strings.Count(top, " Z"); n > 0 || strings.Contains(top, "peer") {
					return fmt.Errorf("%d zombies:\n%s", n, top)
				}
				return nil
			})
			if got := docker(t, "inspect", "-f", "{{.State.Running}}", c.id); got != "true" {
				t.Errorf("the container is gone")
			}
		})
	}
}

// TestInit stops the default guest, with systemd, under docker run --init.
func TestInit(t *testing.T) {
	t.Parallel()
	c := start(t, "--init", "-p", "127.0.0.1::22")
	c.ssh()
	if code := c.stop(); code != "0" {
		t.Errorf("exit code %s after docker stop, want 0", code)
	}
}
