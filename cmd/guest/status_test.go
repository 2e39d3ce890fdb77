//go:build linux

package main

import (
	"os"
	"os/signal"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"docker-usermode-linux/internal/agent"
)

func TestParseListening(t *testing.T) {
	const text = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1234 1 0000000000000000
   1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1235 1 0000000000000000
   2: 0F02000A:0016 0202000A:D431 01 00000000:00000000 00:00000000 00000000     0        0 1236 1 0000000000000000
   3: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 0 0
   4: nonsense
`
	if got, want := parseListening([]byte(text)), []uint16{22, 8080, 80}; !slices.Equal(got, want) {
		t.Errorf("parseListening() = %v, want %v", got, want)
	}
}

// TestStatus asks this machine.
func TestStatus(t *testing.T) {
	s, err := (&requests{}).status(agent.StatusRequest{Ports: []uint16{1}})
	if err != nil || s.Kernel == "" || s.Uptime <= 0 || s.CPUs < 1 || s.MemTotal < s.MemAvailable || s.MemAvailable == 0 ||
		!slices.Equal(s.Silent, []uint16{1}) {
		t.Errorf("status() = %+v, %v", s, err)
	}
}

// TestJudgeAnswer has an init that is late to answer now and then.
func TestJudgeAnswer(t *testing.T) {
	var r requests
	for i, look := range []struct {
		up     bool
		detail string
		want   bool
	}{
		{false, noAnswer, false},
		{false, "starting", false},
		{false, noAnswer, false},
		{true, "running", true},
		{false, noAnswer, true},
		{true, "running", true},
		{false, noAnswer, true},
		{false, noAnswer, false},
		{true, "degraded", true},
		{false, "stopping", false},
		{false, noAnswer, false},
	} {
		s := agent.InitStatus{Up: look.up, Detail: look.detail}
		if r.judgeAnswer(&s); s.Up != look.want || s.Detail != look.detail {
			t.Errorf("look %d: %+v, want up %v", i, s, look.want)
		}
	}
}

func TestTakesSignal(t *testing.T) {
	const status = "Name:\tsystemd\nSigPnd:\tffffffffffffffff\nSigBlk:\t0000002000000000\nSigIgn:\tffffffffffffffff\n" +
		"SigCgt:\t0000000000000800\n"
	for sig, want := range map[unix.Signal]bool{signalRTMin + 4: true, unix.SIGUSR2: true, unix.SIGUSR1: false, unix.SIGTERM: false} {
		if got := takesSignal([]byte(status), sig); got != want {
			t.Errorf("takesSignal(%d) = %v, want %v", sig, got, want)
		}
	}
	signal.Notify(make(chan os.Signal, 1), unix.SIGUSR2)
	ours, err := os.ReadFile("/proc/self/status")
	if err != nil || !takesSignal(ours, unix.SIGUSR2) {
		t.Errorf("takesSignal() of this process = false, %v", err)
	}
}

func TestAnswer(t *testing.T) {
	r := &requests{}
	if _, err := r.handle("nosuch", nil); err == nil {
		t.Error("an unknown request is answered")
	}
	if _, err := r.handle(agent.RequestStatus, []byte("{")); err == nil {
		t.Error("half a request is answered")
	}
	if got, err := r.handle(agent.RequestStatus, nil); err != nil || len(got) == 0 {
		t.Errorf("handle(status) = %q, %v", got, err)
	}
}
