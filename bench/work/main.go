//go:build linux

// Command work times what a kernel does for programs, within the root file system that bench/kernels has made.
//
//	work [NAME]...        measures, in this process's own environment
//	WORK_INIT=all work    does so as process 1 of a guest, and powers off; or WORK_INIT=NAME,NAME
//	WORK_INIT=… /init     the same from the initramfs of a guest with a disk
//	work chroot DIR …     runs itself in that directory, with its own /proc and /dev
//	work tree DIR         makes a tree of files that git knows
//
// It says what it finds in lines that begin with marker, since on a console others speak too:
//
//	@work begin           the first instruction in the guest's root file system
//	@work NAME VALUE UNIT
//	@work NAME fails: WHY
//	@work end SECONDS     since begin, by the clock that all was measured with
//
// What is about a system call or two is the C program micro, which this one runs; here are the commands that people run.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

const marker = "@work "

// home is where bench/kernels has put this program, micro and the package to install.
const home = "/bench"

// workload is one measurement. Its figure is in the given unit.
type workload struct {
	name, unit string
	measure    func() (float64, error)
}

// workloads in the order of the output.
var workloads = []workload{
	micro("system-call", "us"),
	micro("pipe-round-trip", "us"),
	micro("page-fault", "us"),
	micro("fork-exec", "ms"),
	{"fork-exec-sh", "ms", forkExecSh},
	{"find", "us/file", find},
	{"git-status", "ms", gitStatus},
	{"compile", "ms", compile},
	{"apt-install", "ms", aptInstall},
	micro("two-jobs", "x"),
	micro("two-threads", "x"),
}

func main() {
	if err := dispatch(os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "work:", err)
		os.Exit(1)
	}
}

func dispatch(args []string) error {
	list := os.Getenv(initVariable)
	switch {
	case list != "" && args[0] == "/init":
		return stageMain()
	case list != "":
		return initMain(list)
	}
	if len(args) > 1 {
		switch args[1] {
		case "chroot":
			return chrootMain(args[2:])
		case "tree":
			return treeMain(args[2:])
		}
	}
	return measure(args[1:], func() error { return nil })
}

// measure runs the workloads of these names, or all, after prepare. One that fails does not keep the others from being
// measured.
func measure(names []string, prepare func() error) error {
	began := time.Now()
	say("begin")
	for _, name := range names {
		if !slices.ContainsFunc(workloads, func(w workload) bool { return w.name == name }) {
			return fmt.Errorf("no workload is called %q", name)
		}
	}
	if err := prepare(); err != nil {
		return err
	}
	if err := setEnvironment(); err != nil {
		return err
	}
	for _, w := range workloads {
		if len(names) > 0 && !slices.Contains(names, w.name) {
			continue
		}
		value, err := w.measure()
		if err != nil {
			say("%s fails: %s", w.name, strings.Join(strings.Fields(err.Error()), " "))
			continue
		}
		say("%s %.4g %s", w.name, value, w.unit)
	}
	say("end %.3f", time.Since(began).Seconds())
	return nil
}

// say writes one line in one write, and not behind another's unfinished one.
func say(format string, args ...any) {
	fmt.Fprintf(os.Stdout, "\n"+marker+format+"\n", args...)
}

// setEnvironment is what commands need of root's environment: an init has next to nothing.
func setEnvironment() error {
	for name, value := range map[string]string{
		"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8",
		"DEBIAN_FRONTEND": "noninteractive",
	} {
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	return nil
}

// micro is a workload of the C program.
func micro(name, unit string) workload {
	return workload{name, unit, func() (float64, error) {
		out, err := output(filepath.Join(home, "micro"), name)
		if err != nil {
			return 0, err
		}
		return strconv.ParseFloat(strings.TrimSpace(out), 64)
	}}
}

// output runs a command. Its error has what the command said.
func output(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s%s", name, err, out, stderr.String())
	}
	return string(out), err
}

// twice runs a command twice, and returns the time and the output of the second time: the first has read from the root
// file system what the kernel keeps.
func twice(name string, args ...string) (took time.Duration, out string, err error) {
	for range 2 {
		began := time.Now()
		if out, err = output(name, args...); err != nil {
			return 0, "", err
		}
		took = time.Since(began)
	}
	return took, out, nil
}
