package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"docker-usermode-linux/internal/uml/umltest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"uml": main,
		// Not os.Exit, which takes a second under the race detector.
		"fakekernel": func() { syscall.Exit(umltest.FakeKernel(os.Args[1:])) },
	})
}

// TestScripts runs the real main() against a fake kernel; the scripts read like a manual. Each has a place for guests of
// its own.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			// testscript puts its commands' directory first.
			bin, _, _ := strings.Cut(env.Getenv("PATH"), string(os.PathListSeparator))
			env.Setenv("KERNEL", filepath.Join(bin, "fakekernel"))
			env.Setenv("INITRAMFS", filepath.Join(env.WorkDir, "initramfs"))
			env.Setenv("UML", filepath.Join(bin, "uml"))
			// The fake guest is of our own user, who may not be root.
			env.Setenv("ME", fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid()))
			env.Setenv("PORTS", "")
			env.Setenv("OWNERSHIP", "plain") // whatever ids the user of the test has
			env.Setenv("GORACE", "atexit_sleep_ms=0")
			// The path of a socket has 107 bytes at most, and the script's directory has many of them.
			run, err := os.MkdirTemp("", "uml")
			if err != nil {
				return err
			}
			env.Setenv("XDG_RUNTIME_DIR", run)
			env.Setenv("XDG_STATE_HOME", filepath.Join(env.WorkDir, "state"))
			env.Defer(func() {
				if err := removeWhenEnded(run, filepath.Join(bin, "uml")); err != nil {
					t.Error(err)
				}
			})
			return os.WriteFile(filepath.Join(env.WorkDir, "initramfs"), nil, 0o600)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"waitfile": waitFile},
	})
}

// removeWhenEnded removes the place of a script's guests. None is to be left; one that a failure has left is killed.
func removeWhenEnded(run, uml string) error {
	left, err := filepath.Glob(filepath.Join(run, "uml", "[a-zA-Z0-9]*"))
	for _, dir := range left {
		kill := exec.Command(uml, "kill", filepath.Base(dir))
		kill.Env = []string{"XDG_RUNTIME_DIR=" + run}
		out, killErr := kill.CombinedOutput()
		err = errors.Join(err, fmt.Errorf("guest %s is left: %s", filepath.Base(dir), out), killErr)
	}
	return errors.Join(err, os.RemoveAll(run))
}

// waitFile is the script command "waitfile NAME": it waits until the file is there, and removes it.
func waitFile(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: waitfile NAME")
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		err := os.Remove(ts.MkAbs(args[0]))
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("waited in vain: %v", err)
		}
	}
}
