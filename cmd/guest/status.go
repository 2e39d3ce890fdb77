//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"docker-usermode-linux/internal/agent"
)

const (
	// initQuery bounds a question to the guest's init. The supervisor's requests are answered one after the other, so that
	// its power-off waits for that long: its agentTimeout has room for two.
	initQuery = 500 * time.Millisecond
	// initQueryKill is for the end of what was asked, beyond that.
	initQueryKill = 50 * time.Millisecond
)

// noAnswer is the state of an init that takes longer than initQuery.
var noAnswer = fmt.Sprintf("no answer within %v", initQuery)

// status is the guest's state.
func (r *requests) status(q agent.StatusRequest) (agent.Status, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return agent.Status{}, fmt.Errorf("uname: %w", err)
	}
	s := agent.Status{Kernel: unix.ByteSliceToString(uts.Release[:])}
	// /proc may be missing in a guest of one program; then there is less to tell.
	if fields := procFields("/proc/uptime"); len(fields) > 0 {
		s.Uptime, _ = strconv.ParseFloat(fields[0], 64)
	}
	if fields := procFields("/proc/loadavg"); len(fields) > 0 {
		s.Load, _ = strconv.ParseFloat(fields[0], 64)
	}
	s.CPUs = max(1, onlineCPUs())
	memory := procTable("/proc/meminfo")
	s.MemTotal, s.MemAvailable = memory["MemTotal"]<<10, memory["MemAvailable"]<<10
	s.OOMKills = procTable("/proc/vmstat")["oom_kill"]
	s.Init = r.initStatus()
	if len(q.Ports) > 0 {
		listening := listeningPorts()
		for _, port := range q.Ports {
			if !slices.Contains(listening, port) {
				s.Silent = append(s.Silent, port)
			}
		}
	}
	return s, nil
}

func (r *requests) initStatus() agent.InitStatus {
	if !r.ownInit && ownInit() {
		return agent.InitStatus{Name: "init"} // which is still to be executed
	}
	system := findInit()
	s := agent.InitStatus{Name: system.name, Up: true}
	if system.up != nil {
		s.Up, s.Detail = system.up()
	}
	r.judgeAnswer(&s)
	return s
}

// judgeAnswer has one question that was not answered in time, as may happen on a busy host, count as what the last answer
// was; not the next one in a row.
func (r *requests) judgeAnswer(s *agent.InitStatus) {
	if s.Detail == noAnswer {
		s.Up = r.up.Swap(false)
		return
	}
	r.up.Store(s.Up)
}

func procFields(path string) []string {
	data, _ := os.ReadFile(path)
	return strings.Fields(string(data))
}

// procTable reads lines of a name and a number, as of meminfo and vmstat.
func procTable(path string) map[string]uint64 {
	data, _ := os.ReadFile(path)
	table := map[string]uint64{}
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) >= 2 {
			if n, err := strconv.ParseUint(fields[1], 10, 64); err == nil {
				table[strings.TrimSuffix(fields[0], ":")] = n
			}
		}
	}
	return table
}

// onlineCPUs counts the processors of /proc/stat.
func onlineCPUs() (n int) {
	data, _ := os.ReadFile("/proc/stat")
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(line, "cpu") && len(line) > 3 && '0' <= line[3] && line[3] <= '9' {
			n++
		}
	}
	return n
}

// tcpListen is the state of a listening socket in /proc/net/tcp (include/net/tcp_states.h).
const tcpListen = "0A"

// listeningPorts are the TCP ports on which somebody in the guest listens.
func listeningPorts() []uint16 {
	var ports []uint16
	for _, path := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		data, _ := os.ReadFile(path)
		ports = append(ports, parseListening(data)...)
	}
	return ports
}

// parseListening reads /proc/net/tcp (proc_net_tcp(5)): a number, the local address, the remote one, the state.
func parseListening(data []byte) (ports []uint16) {
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 4 || fields[3] != tcpListen {
			continue
		}
		_, port, _ := strings.Cut(fields[1], ":")
		if n, err := strconv.ParseUint(port, 16, 16); err == nil {
			ports = append(ports, uint16(n))
		}
	}
	return ports
}

// systemdUp asks systemd. Its states are those of systemctl(1), is-system-running.
func systemdUp() (bool, string) {
	ctx, cancel := context.WithTimeout(context.Background(), initQuery)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, "systemctl", "is-system-running")
	cmd.WaitDelay = initQueryKill
	cmd.Stdout = &out
	_ = runUnprotected(cmd) // exit code 1 for most states
	state := strings.TrimSpace(out.String())
	if ctx.Err() != nil {
		state = noAnswer
	}
	return state == "running" || state == "degraded", state
}

// openrcUp looks for the runlevel that is reached last.
func openrcUp() (bool, string) {
	data, _ := os.ReadFile("/run/openrc/softlevel")
	level := strings.TrimSpace(string(data))
	return level != "" && level != "sysinit" && level != "boot" && !exists("/run/openrc/rc.starting"), level
}

// busyboxUp is that of OpenRC, where busybox runs it. Of its own inittab nobody knows.
func busyboxUp() (bool, string) {
	if exists("/run/openrc") {
		return openrcUp()
	}
	return true, ""
}

// sysvUp looks whether the scripts of a runlevel still run: init's child rc does that.
func sysvUp() (bool, string) {
	if exists("/run/openrc") {
		return openrcUp()
	}
	return !processRuns("rc"), ""
}

// processRuns says whether a process of that name runs.
func processRuns(name string) bool {
	names, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, path := range names {
		if data, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(data)) == name {
			return true
		}
	}
	return false
}
