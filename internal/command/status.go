package command

import (
	"fmt"
	"io"
	"text/tabwriter"

	"docker-usermode-linux/internal/supervisor"
)

// WriteStatus writes how the guest is as a table for people.
func WriteStatus(out io.Writer, s supervisor.Status) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(name, format string, a ...any) { fmt.Fprintf(w, "%s\t"+format+"\n", append([]any{name}, a...)...) }
	row("State", "%s, for %s", s.State, ShortTime(s.Uptime))
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
	row("On the host", "%s resident, %s given back so far, process %d", iec(s.HostResident), iec(s.HostReturned), s.PID)
	if s.Mode != "" {
		row("Mode", "%s", s.Mode)
	}
	row("Network", "%d forwards, %d flows", s.Forwards, s.Flows)
	return w.Flush()
}
