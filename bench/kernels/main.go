//go:build linux

// Command kernels is the guest's benchmark: what programs get from this project's guests, and from others that run a
// program on another kernel without the host's help.
//
//	kernels run [-rounds N] [-on a,b] [-tests a,b] [-force] …    measures; raw figures on stdout
//	kernels report [-into FILE] RAW                              the table of them, for people
//
// # Theory of operation
//
// There is one root file system, and every environment gets a copy of it, made anew for each of its turns, as a
// directory or as an image of a disk. In it is the program work (bench/work), which is the guest's init, or the only
// program in a sandbox: it measures, and says what came out on its console. So no environment's network, agent or user
// land takes part. Rounds are the outer loop and environments the inner one, so that whatever changes on the machine
// meanwhile meets all alike.
//
// An environment that is not there or fails costs its own figures only: a comment in the raw output says why.
//
// It runs wherever the paths are right that the flags name; their defaults are those of the container that bench/guest
// makes. It needs root with CAP_SYS_ADMIN, which the plain chroot and gVisor want, and no other environment.
package main

import (
	"fmt"
	"os"
)

func main() {
	if err := dispatch(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "kernels:", err)
		os.Exit(1)
	}
}

func dispatch(args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case "run":
			return runMain(args[1:])
		case "report":
			return reportMain(args[1:])
		}
	}
	return fmt.Errorf("usage: kernels run|report; what is %q?", args)
}
