//go:build linux

// Command load is the network benchmark: both ends of every measurement, and the program that runs the peers.
//
//	load run [-seconds N] [-rounds N] [-peers a,b] [-mtus 1500] [-tests a,b] [-force]
//	                                 boots a guest behind each bridge and measures; raw figures on stdout
//	load report [-into FILE] RAW...  the table of them, for people
//	load agent                       one end of a measurement on this host, as told on stdin
//	guest                            the other end: the same, as the init of a guest
//
// # Theory of operation
//
// Each measurement has two ends that are the same program: one is the guest's init, started from a directory that
// holds nothing else, the other a process beside the bridge. Both are told what to do, line by line, on stdin (the
// guest on its console) and answer on stdout, so that what is measured never shares the network with the orders, and
// a network that stalls cannot stall the run. agent.go has that protocol, stream.go, latency.go and udp.go the
// measurements; run.go the order of everything, peers.go what is compared, cpu.go what it costs, report.go the table.
//
// A guest's system call costs 10 to 50 times a host's. What stands for the guest's programs is therefore as close to
// the kernel as a C program would be: blocking sockets, one thread for each, and system calls of which Go's scheduler
// knows nothing (socket.go). Else the figures would be those of Go's network poller in User-Mode Linux.
package main

import (
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	if err := dispatch(os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func dispatch(args []string) error {
	if filepath.Base(args[0]) == guestName {
		return guestMain()
	}
	if len(args) > 1 {
		switch args[1] {
		case "agent":
			return serve(os.Stdin, os.Stdout)
		case "run":
			return runMain(args[2:])
		case "report":
			return reportMain(args[2:])
		}
	}
	return fmt.Errorf("usage: load run|report|agent; what is %q?", args[1:])
}
