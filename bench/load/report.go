//go:build linux

package main

import (
	"fmt"
	"strings"

	"docker-usermode-linux/bench/figures"
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

// table is the comparison as Markdown. A row that no peer has a figure for is left out.
func table(f figures.Figures) string {
	var columns []string
	for _, p := range peers {
		columns = append(columns, p.title)
	}
	var lines [][]string
	for _, mtu := range bothMTUs {
		for _, r := range rows {
			line := []string{fmt.Sprintf("MTU %d: %s", mtu, r.title)}
			known := false
			for _, p := range peers {
				text := f.Text(p.measurement(mtu, r.test), r.unit)
				known = known || text != figures.None
				line = append(line, text)
			}
			if known {
				lines = append(lines, line)
			}
		}
	}
	return figures.Table(columns, lines)
}

func reportMain(args []string) error {
	return figures.Report(args, benchmark, "network", func(f figures.Figures) (page, more string) {
		var why strings.Builder
		for _, m := range f.Missing {
			fmt.Fprintf(&why, "- %s: %s\n", strings.NewReplacer("peer=", "", "/mtu=", ", MTU ", "/test=", ", ").Replace(m.Name), m.Why)
		}
		return table(f), why.String()
	})
}
