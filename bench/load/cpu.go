//go:build linux

package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// clockTick is the unit of times in /proc (USER_HZ, the same on every architecture that counts).
const clockTick = time.Second / 100

// process is a line of /proc/PID/stat.
type process struct {
	pid, parent int
	name        string
	// own is the processor time of all its threads, reaped that of its children that have ended.
	own, reaped time.Duration
}

// parseStat reads /proc/PID/stat, see proc_pid_stat(5).
func parseStat(stat []byte) (process, error) {
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || end < open {
		return process{}, fmt.Errorf("no name in brackets in %q", stat)
	}
	// The name may hold anything; the third field follows it.
	const third, ppid, utime, cstime = 3, 4, 14, 17
	fields := strings.Fields(string(stat[end+1:]))
	if len(fields) <= cstime-third {
		return process{}, fmt.Errorf("%d fields after the name in %q", len(fields), stat)
	}
	p := process{name: string(stat[open+1 : end])}
	var err error
	if p.pid, err = strconv.Atoi(strings.TrimSpace(string(stat[:open]))); err != nil {
		return process{}, err
	}
	if p.parent, err = strconv.Atoi(fields[ppid-third]); err != nil {
		return process{}, err
	}
	var ticks [4]time.Duration
	for i := range ticks {
		n, err := strconv.ParseInt(fields[utime-third+i], 10, 64)
		if err != nil {
			return process{}, err
		}
		ticks[i] = time.Duration(n) * clockTick
	}
	p.own, p.reaped = ticks[0]+ticks[1], ticks[2]+ticks[3]
	return p, nil
}

// processes returns all that there are.
func processes() (map[int]process, error) {
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	all := map[int]process{}
	for _, file := range files {
		stat, err := os.ReadFile(file)
		if err != nil {
			continue // has ended since
		}
		p, err := parseStat(stat)
		if err != nil {
			return nil, err
		}
		all[p.pid] = p
	}
	return all, nil
}

// below returns those of all that descend from one of roots, and these.
func below(all map[int]process, roots ...int) []process {
	var found []process
	for pid, p := range all {
		for up, ok := p, true; ok; up, ok = all[up.parent] {
			if slices.Contains(roots, up.pid) {
				found = append(found, all[pid])
				break
			}
		}
	}
	return found
}

// usage is processor time up to a moment.
type usage struct {
	at     time.Time
	bridge time.Duration // of the bridge's process
	all    time.Duration // of the bridge, the kernel and the processes of the guest's programs
}

// load is the number of processors that were busy from u to v, with the bridge and with all.
func (u usage) load(v usage) (bridge, all float64) {
	d := v.at.Sub(u.at)
	return float64(v.bridge-u.bridge) / float64(d), float64(v.all-u.all) / float64(d)
}

// memory of a process, in bytes.
type memory struct{ rss, anon int64 }

// parseMemory reads /proc/PID/status.
func parseMemory(status string) memory {
	var m memory
	for line := range strings.Lines(status) {
		key, value, _ := strings.Cut(line, ":")
		kib, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		switch key {
		case "VmRSS":
			m.rss = kib << 10
		case "RssAnon":
			m.anon = kib << 10
		}
	}
	return m
}
