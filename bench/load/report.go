//go:build linux

package main

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
)

// What stands in the table where there is no figure.
const (
	verdictStalls = "stalls"
	verdictFails  = "fails"
)

// row is a line of the table: one unit of one test.
type row struct {
	test, unit, title string
}

var rows = []row{
	{"tcp-up-1", "Gbit/s", "TCP guest → host, Gbit/s"},
	{"tcp-up-1", "first-Gbit/s", "TCP guest → host, first 2 s, Gbit/s"},
	{"tcp-up-8", "Gbit/s", "TCP guest → host, 8 streams, Gbit/s"},
	{"tcp-down-1", "Gbit/s", "TCP host → guest, Gbit/s"},
	{"tcp-down-1", "first-Gbit/s", "TCP host → guest, first 2 s, Gbit/s"},
	{"tcp-down-8", "Gbit/s", "TCP host → guest, 8 streams, Gbit/s"},
	{"tcp-up-1", "bridge-s/GiB", "CPU s per GiB guest → host, bridge"},
	{"tcp-up-1", "all-s/GiB", "CPU s per GiB guest → host, bridge and guest"},
	{"tcp-down-1", "bridge-s/GiB", "CPU s per GiB host → guest, bridge"},
	{"tcp-down-1", "all-s/GiB", "CPU s per GiB host → guest, bridge and guest"},
	{"rr", "median-us", "TCP round trip, median µs"},
	{"rr", "p99-us", "TCP round trip, 99th percentile µs"},
	{"conn-1", "conn/s", "connections/s guest → host"},
	{"conn-8", "conn/s", "connections/s guest → host, 8 at a time"},
	{"conn-in-1", "conn/s", "connections/s to a forwarded port"},
	{"conn-in-8", "conn/s", "connections/s to a forwarded port, 8 at a time"},
	{"udp-up-1", "datagrams/s", "UDP guest → host, 1 byte, datagrams/s"},
	{"udp-up-1400", "datagrams/s", "UDP guest → host, 1,400 bytes, datagrams/s"},
	{"udp-down-1", "datagrams/s", "UDP host → guest, 1 byte, datagrams/s"},
	{"udp-down-1400", "datagrams/s", "UDP host → guest, 1,400 bytes, datagrams/s"},
	{"idle", "rss-MiB", "bridge's memory at first, MiB"},
	{"idle", "anon-MiB", "bridge's own memory (RssAnon) at first, MiB"},
	{"after", "rss-MiB", "bridge's memory after all that, MiB"},
	{"after", "anon-MiB", "bridge's own memory (RssAnon) after all that, MiB"},
	{"idle", "s/start", "start to network up, s"},
	{"ports", "s/start", "start with 10,000 forwarded ports, s"},
	{"ports", "rss-MiB", "bridge's memory with 10,000 forwarded ports, MiB"},
}

// cell is where figures belong.
type cell struct {
	peer, mtu, test, unit string
}

// figures are the raw output of a run.
type figures struct {
	values   map[cell][]float64
	verdicts map[cell][]string // without a unit
	notes    []string          // of what is missing, in full
}

func readFigures(r io.Reader) (figures, error) {
	f := figures{map[cell][]float64{}, map[cell][]string{}, nil}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if err := f.add(lines.Text()); err != nil {
			return f, fmt.Errorf("%q: %w", lines.Text(), err)
		}
	}
	return f, lines.Err()
}

func (f *figures) add(line string) error {
	if note, ok := strings.CutPrefix(line, "# peer="); ok {
		where, verdict, _ := strings.Cut(note, ": ")
		fields := strings.Fields("peer=" + where)
		if len(fields) != 4 {
			return fmt.Errorf("%d fields before the colon, not 4", len(fields))
		}
		c := cellOf(fields[:3])
		f.verdicts[c] = append(f.verdicts[c], fields[3])
		f.notes = append(f.notes, fmt.Sprintf("%s, MTU %s, %s: %s", c.peer, c.mtu, c.test, verdict))
		return nil
	}
	fields := strings.Fields(line)
	if len(fields) < 2 || !strings.HasPrefix(fields[0], "BenchmarkNet/") {
		return nil
	}
	c := cellOf(strings.Split(fields[0], "/")[1:])
	for pairs := fields[2:]; len(pairs) >= 2; pairs = pairs[2:] {
		value, err := strconv.ParseFloat(pairs[0], 64)
		if err != nil {
			return err
		}
		c.unit = pairs[1]
		f.values[c] = append(f.values[c], value)
	}
	return nil
}

// cellOf reads peer=… mtu=… test=….
func cellOf(pairs []string) cell {
	var c cell
	for _, pair := range pairs {
		key, value, _ := strings.Cut(pair, "=")
		switch key {
		case "peer":
			c.peer = value
		case "mtu":
			c.mtu = value
		case "test":
			c.test = value
		}
	}
	return c
}

// text is what stands in the table: the median, and the lowest and highest.
func (f figures) text(c cell) string {
	values := slices.Sorted(slices.Values(f.values[c]))
	c.unit = ""
	verdicts := f.verdicts[c]
	switch {
	case len(values) == 0 && len(verdicts) == 0:
		return "–"
	case len(values) == 0:
		return verdicts[0]
	}
	text := format(median(values))
	if low, high := format(values[0]), format(values[len(values)-1]); low != high {
		text += fmt.Sprintf(" (%s–%s)", low, high)
	}
	if len(verdicts) > 0 {
		text += fmt.Sprintf(", %s %d of %d times", verdicts[0], len(verdicts), len(verdicts)+len(values))
	}
	return text
}

// median of what is sorted and not empty.
func median(sorted []float64) float64 {
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// format writes two significant digits of small numbers and three of large ones, in full.
func format(v float64) string {
	switch {
	case v >= 1000:
		unit := math.Pow10(int(math.Log10(v)) - 2)
		return grouped(int64(math.Round(v/unit) * unit))
	case v >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}

// grouped writes a comma between thousands.
func grouped(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// table is the comparison as Markdown. A row that no peer has a figure for is left out.
func (f figures) table() string {
	var b strings.Builder
	b.WriteString("| |")
	for _, p := range peers {
		fmt.Fprintf(&b, " %s |", p.title)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(peers)) + "\n")
	for _, mtu := range bothMTUs {
		for _, r := range rows {
			var cells []string
			known := false
			for _, p := range peers {
				text := f.text(cell{p.name, strconv.Itoa(mtu), r.test, r.unit})
				known = known || text != "–"
				cells = append(cells, text)
			}
			if known {
				fmt.Fprintf(&b, "| MTU %d: %s | %s |\n", mtu, r.title, strings.Join(cells, " | "))
			}
		}
	}
	return b.String()
}

// The table in a page stands between these lines.
const (
	beginTable = "<!-- network: begin -->\n"
	endTable   = "<!-- network: end -->\n"
)

func reportMain(args []string) error {
	set := flag.NewFlagSet("report", flag.ContinueOnError)
	into := set.String("into", "", "a page with the lines of beginTable and endTable, to write the table between them")
	if err := set.Parse(args); err != nil {
		return err
	}
	if set.NArg() != 1 {
		return fmt.Errorf("report: %d files given, takes one", set.NArg())
	}
	raw, err := os.Open(set.Arg(0))
	if err != nil {
		return err
	}
	defer raw.Close()
	f, err := readFigures(raw)
	if err != nil {
		return err
	}
	table := f.table()
	fmt.Print(table)
	for _, note := range f.notes {
		fmt.Println("-", note)
	}
	if *into == "" {
		return nil
	}
	page, err := os.ReadFile(*into)
	if err != nil {
		return err
	}
	text, err := replaceTable(string(page), table)
	if err != nil {
		return fmt.Errorf("%s: %w", *into, err)
	}
	return os.WriteFile(*into, []byte(text), 0o644)
}

func replaceTable(page, table string) (string, error) {
	before, rest, ok1 := strings.Cut(page, beginTable)
	_, after, ok2 := strings.Cut(rest, endTable)
	if !ok1 || !ok2 {
		return "", fmt.Errorf("lacks the lines %q and %q", strings.TrimSpace(beginTable), strings.TrimSpace(endTable))
	}
	return before + beginTable + table + endTable + after, nil
}
