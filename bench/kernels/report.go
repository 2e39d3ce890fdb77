//go:build linux

package main

import (
	"fmt"
	"slices"
	"strings"

	"docker-usermode-linux/bench/figures"
)

// row is a line of the table.
type row struct{ test, unit, title string }

var rows = []row{
	{"system-call", "us", "system call (getppid), µs"},
	{"page-fault", "us", "first write to a page, µs"},
	{"pipe-round-trip", "us", "a byte to another process on the same CPU and back, µs"},
	{"fork-exec", "ms", "fork and exec of /bin/true by a small program, ms"},
	{"fork-exec-sh", "ms", "the same by sh, ms"},
	{"find", "us/file", "find over /usr, µs a file"},
	{"git-status", "ms", "git status of 10,000 files, ms"},
	{"compile", "ms", "gcc -O2, ms"},
	{"apt-install", "ms", "apt-get install of a small package, ms"},
	{"two-jobs", "x", "two jobs at once, times as fast as one after the other"},
	{"two-threads", "x", "the same in two threads of a program"},
	{testBoot, "ms", "start to the first instruction of the init, ms"},
	{testOff, "ms", "from its end until the command has ended, ms"},
}

// table is the comparison as Markdown. What was not measured has no column, or no line.
func table(f figures.Figures) string {
	var columns []string
	lines := make([][]string, len(rows))
	for i, r := range rows {
		lines[i] = []string{r.title}
	}
	for _, e := range environments {
		var cells []string
		for _, r := range rows {
			cells = append(cells, f.Text(e.measurement(r.test), r.unit))
		}
		if !slices.ContainsFunc(cells, func(c string) bool { return c != figures.None }) {
			continue
		}
		columns = append(columns, e.title)
		for i, c := range cells {
			lines[i] = append(lines[i], c)
		}
	}
	lines = slices.DeleteFunc(lines, func(line []string) bool {
		return !slices.ContainsFunc(line[1:], func(c string) bool { return c != figures.None })
	})
	return figures.Table(columns, lines)
}

// reasons says why figures are missing, each once.
func reasons(f figures.Figures) string {
	var b strings.Builder
	said := map[string]bool{}
	for _, m := range f.Missing {
		where := strings.NewReplacer("on=", "", "/test=", ", ").Replace(m.Name)
		if !said[where] {
			fmt.Fprintf(&b, "- %s: %s\n", where, m.Why)
		}
		said[where] = true
	}
	return b.String()
}

func reportMain(args []string) error {
	return figures.Report(args, benchmark, "guest", func(f figures.Figures) (page, more string) {
		page = table(f)
		if why := reasons(f); why != "" {
			page += "\n" + why
		}
		return page, ""
	})
}
