package supervisor

import (
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"

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
