package main

import (
	"os"
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
		"entrypoint": main,
		// Not os.Exit, which takes a second under the race detector.
		"fakekernel": func() { syscall.Exit(umltest.FakeKernel(os.Args[1:])) },
	})
}

// TestScripts runs the real main() against a fake kernel; the scripts read like a manual.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			// testscript puts its commands' directory first.
			bin, _, _ := strings.Cut(env.Getenv("PATH"), string(os.PathListSeparator))
			env.Setenv("KERNEL", filepath.Join(bin, "fakekernel"))
			env.Setenv("ROOTFS", filepath.Join(env.WorkDir, "rootfs"))
			env.Setenv("INITRAMFS", filepath.Join(env.WorkDir, "initramfs"))
			env.Setenv("HOSTNAME", "tester")
			env.Setenv("PORTS", "")
			env.Setenv("GORACE", "atexit_sleep_ms=0")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"waitfile": waitFile},
	})
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
