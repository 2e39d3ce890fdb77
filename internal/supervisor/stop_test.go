package supervisor

import (
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"docker-usermode-linux/internal/mconsole"
)

// fakeConsole is a management console that answers all commands but those to be left unanswered, and returns what it got.
func fakeConsole(t *testing.T, unanswered ...string) (*mconsole.Client, func() []string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mconsole")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var got []string
	done := make(chan struct{})
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			var request mconsole.Request
			if err := request.UnmarshalBinary(buf[:n]); err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			got = append(got, request.Command)
			mu.Unlock()
			if !slices.Contains(unanswered, request.Command) {
				_, _ = conn.WriteTo(make([]byte, 12+512), from) // code 0, no text
			}
		}
	}()
	return mconsole.NewClient(path), func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(got)
	}
}

// TestLateSyncAnswer has a guest that is too busy to answer the sync: Ctrl-Alt-Del has to follow all the same.
func TestLateSyncAnswer(t *testing.T) {
	client, got := fakeConsole(t, "sysrq s")
	g := &guest{client: client, link: noAgent(t, t.TempDir()), log: zerolog.Nop()}
	if err := g.askForPowerOff(); err != nil {
		t.Errorf("askForPowerOff() = %v", err)
	}
	if want := []string{"sysrq s", "cad"}; !slices.Equal(got(), want) {
		t.Errorf("commands = %q, want %q", got(), want)
	}
}

// TestRunStopsWithinTimeout adds up what docker stop takes at most with run, where Docker kills after 10 s: the command and
// the power-off have STOP_TIMEOUT together.
func TestRunStopsWithinTimeout(t *testing.T) {
	for _, timeout := range []time.Duration{0, time.Second, 6500 * time.Millisecond, time.Minute} {
		g := &guest{booted: true, stopTimeout: timeout, log: zerolog.Nop()}
		if got := g.powerOffGrace(); got != timeout {
			t.Errorf("STOP_TIMEOUT=%v: %v for the power-off without a command", timeout, got)
		}
		g.stopBy = time.Now().Add(timeout)
		if got := g.powerOffGrace(); got > timeout || got < timeout-time.Second {
			t.Errorf("STOP_TIMEOUT=%v: %v for the power-off after a command that ended at once", timeout, got)
		}
		share := shareOf(timeout)
		g.stopBy = time.Now().Add(share) // the command took all that it has
		if got := g.powerOffGrace(); timeout-share+got > timeout {
			t.Errorf("STOP_TIMEOUT=%v: %v for the command and %v for the power-off", timeout, timeout-share, got)
		}
		if got := g.goneGrace(); got > 0 {
			t.Errorf("STOP_TIMEOUT=%v: %v without an agent when the time is up", timeout, got)
		}
		var rungs time.Duration
		for _, r := range newStopLadder(g).rungs[1:3] {
			rungs += r.grace
		}
		if rungs != remountGrace+haltGrace {
			t.Errorf("the rungs below the power-off take %v", rungs)
		}
	}
}
