package main

import (
	"flag"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"docker-usermode-linux/internal/supervisor"
)

// statusCommand shows how the guest that runs here is.
func statusCommand(args []string) int {
	var s supervisor.Status
	asJSON := false
	code, ok := askGuest("status", args, func(flags *flag.FlagSet) {
		flags.BoolVar(&asJSON, "json", false, "print everything as JSON")
	}, "/status", &s)
	if !ok {
		return code
	}
	return show("status", asJSON, s, func(w io.Writer) error { return writeStatus(w, s) })
}

// healthcheckCommand is what Docker's HEALTHCHECK runs: its exit code says whether the guest is healthy, what it prints
// why not.
func healthcheckCommand(args []string) int {
	var s supervisor.Status
	code, ok := askGuest("healthcheck", args, func(*flag.FlagSet) {}, "/status", &s)
	if !ok {
		return code
	}
	if !s.Healthy {
		fmt.Printf("%s: %s\n", s.State, strings.Join(s.Problems, "; "))
		return exitFailed
	}
	fmt.Println(s.State)
	return 0
}

// writeStatus writes the table for people.
func writeStatus(out io.Writer, s supervisor.Status) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(name, format string, a ...any) { fmt.Fprintf(w, "%s\t"+format+"\n", append([]any{name}, a...)...) }
	row("State", "%s, for %s", s.State, shortTime(s.Uptime))
	for _, p := range s.Problems {
		row("Problem", "%s", p)
	}
	if g := s.Guest; g != nil {
		init := g.Init.Name
		if g.Init.Detail != "" {
			init += " (" + g.Init.Detail + ")"
		}
		row("Kernel", "%s", g.Kernel)
		row("Init", "%s", init)
		row("CPUs", "%d, load %.2f", g.CPUs, g.Load)
		row("Memory", "%s of %s used", iec(g.MemTotal-min(g.MemAvailable, g.MemTotal)), iec(g.MemTotal))
	}
	row("On the host", "%s resident, process %d", iec(s.HostResident), s.PID)
	if s.Mode != "" {
		row("Mode", "%s", s.Mode)
	}
	row("Network", "%d forwards, %d flows", s.Forwards, s.Flows)
	return w.Flush()
}
