package mconsole

import (
	"context"
	"encoding"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// timeout ends a test that hangs.
const timeout = 10 * time.Second

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	t.Cleanup(cancel)
	return ctx
}

// socketPath is short enough for a socket, which the path of t.TempDir may not be.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "mc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

func send(t *testing.T, conn *net.UnixConn, to *net.UnixAddr, message encoding.BinaryMarshaler) {
	t.Helper()
	b, err := message.MarshalBinary()
	if err != nil {
		t.Error(err)
		return
	}
	if _, err := conn.WriteToUnix(b, to); err != nil {
		t.Error(err)
	}
}

// startKernel is the kernel's end of the console: it gives these replies to every command. commands gets what was
// asked.
func startKernel(t *testing.T, replies ...Reply) (client *Client, commands <-chan string) {
	t.Helper()
	path := socketPath(t)
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	asked, done := make(chan string, 1), make(chan struct{})
	go func() {
		defer close(done)
		var buf [maxDatagram]byte
		for {
			n, from, err := conn.ReadFromUnix(buf[:])
			if err != nil {
				return
			}
			var request Request
			if err := request.UnmarshalBinary(buf[:n]); err != nil {
				t.Errorf("kernel got %q: %v", buf[:n], err)
				return
			}
			asked <- request.Command
			for _, reply := range replies {
				send(t, conn, from, reply)
			}
		}
	}()
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
	return NewClient(path), asked
}

func TestCommand(t *testing.T) {
	long := strings.Repeat("x", maxData-1)
	for _, test := range []struct {
		name    string
		replies []Reply
		want    string
		wantErr string
	}{
		{"empty answer", []Reply{{}}, "", ""},
		{"short answer", []Reply{{Text: "Linux"}}, "Linux", ""},
		{"answer in parts", []Reply{{Text: long, More: true}, {Text: "y", More: true}, {Text: "z"}}, long + "yz", ""},
		{"refusal", []Reply{{Code: 1, Text: "Unknown command"}}, "", "mconsole proc x: Unknown command"},
		{"refusal without a reason", []Reply{{Code: -16}}, "", "mconsole proc x: error -16"},
		// The kernel clears err after the first datagram.
		{"refusal in parts", []Reply{{Code: 1, Text: "no", More: true}, {Text: "pe"}}, "", "mconsole proc x: nope"},
	} {
		t.Run(test.name, func(t *testing.T) {
			client, commands := startKernel(t, test.replies...)
			got, err := client.Command(testContext(t), "proc x")
			text := ""
			if err != nil {
				text = err.Error()
			}
			if got != test.want || text != test.wantErr {
				t.Errorf("Command() = %q, %v, want %q, %q", got, err, test.want, test.wantErr)
			}
			if asked := <-commands; asked != "proc x" {
				t.Errorf("kernel was asked %q, want %q", asked, "proc x")
			}
		})
	}
}

func TestCommandErrorIsTyped(t *testing.T) {
	client, _ := startKernel(t, Reply{Code: -16, Text: "Device is currently open"})
	_, err := client.Command(testContext(t), "remove ubda")
	refusal, ok := errors.AsType[*Error](err)
	if want := (Error{"remove ubda", -16, "Device is currently open"}); !ok || *refusal != want {
		t.Errorf("Command() = %v, want %v", err, want)
	}
}

func TestCommandEndsWithContext(t *testing.T) {
	client, commands := startKernel(t, Reply{Text: "part", More: true})
	ctx, cancel := context.WithCancel(testContext(t))
	go func() {
		<-commands
		time.Sleep(50 * time.Millisecond)
		cancel()
	}()
	got, err := client.Command(ctx, "sysrq t")
	if got != "part" || !errors.Is(err, context.Canceled) {
		t.Errorf("Command() = %q, %v, want the part that came and %v", got, err, context.Canceled)
	}

	ctx, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := client.Command(ctx, "cad"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Command() = %v, want %v", err, context.DeadlineExceeded)
	}
	<-commands
}

func TestCommandBoundsAnswer(t *testing.T) {
	reply := Reply{Text: strings.Repeat("x", maxData-1), More: true}
	path := socketPath(t)
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		var buf [maxDatagram]byte
		_, from, err := conn.ReadFromUnix(buf[:])
		b, _ := reply.MarshalBinary()
		for err == nil { // until the client hangs up
			_, err = conn.WriteToUnix(b, from)
		}
	}()
	got, err := NewClient(path).Command(testContext(t), "sysrq t")
	if err == nil || !strings.Contains(err.Error(), "longer than 1048576 bytes") || len(got) > maxAnswer+maxData {
		t.Errorf("Command() = %d bytes, %v, want an error soon after %d bytes", len(got), err, maxAnswer)
	}
	<-done
}

func TestCommandRefusesStrangers(t *testing.T) {
	client, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: socketPath(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close() // stands for the kernel
	conn, err := connect(client.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stranger, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	to := conn.LocalAddr().(*net.UnixAddr)
	if _, err := stranger.WriteToUnix([]byte("x"), to); !errors.Is(err, os.ErrPermission) {
		t.Errorf("WriteToUnix() by a stranger = %v, want %v", err, os.ErrPermission)
	}
	if _, err := client.WriteToUnix([]byte("x"), to); err != nil {
		t.Errorf("WriteToUnix() by the kernel = %v", err)
	}
}

func TestCommandErrors(t *testing.T) {
	gone := socketPath(t)
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: gone})
	if err != nil {
		t.Fatal(err)
	}
	conn.Close() // leaves the file
	for _, test := range []struct{ path, command, want string }{
		{socketPath(t), "cad", "no such file or directory"},
		{gone, "cad", "connection refused"},
		{"", "cad", "no path of a socket given"},
		{strings.Repeat("x", 108), "cad", "108 bytes long, at most 107 are possible; choose a shorter directory"},
		{gone, "", "empty mconsole command"},
		{gone, strings.Repeat("x", 512), "longer than 511"},
	} {
		_, err := NewClient(test.path).Command(testContext(t), test.command)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("Command(%q) at %q = %v, want error with %q", test.command, test.path, err, test.want)
		}
	}
}

func TestNotifications(t *testing.T) {
	path := socketPath(t)
	notifications, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := notifications.Path(); got != path {
		t.Errorf("Path() = %q, want %q", got, path)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("Stat(socket) = %v, %v, want mode 0600", info, err)
	}
	kernel, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Net: "unixgram", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer kernel.Close()
	want := []Notification{{Socket, "/run/uml/mconsole"}, {UserNotify, "hi\n"}, {Panic, "Attempted to kill init!"}}
	for _, n := range want {
		b, err := n.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		for _, datagram := range [][]byte{[]byte("nonsense"), nil, b} {
			if _, err := kernel.Write(datagram); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := notifications.Receive(testContext(t)); err != nil || got != n {
			t.Errorf("Receive() = %v, %v, want %v", got, err, n)
		}
	}

	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	for range 2 {
		if got, err := notifications.Receive(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Receive() = %v, %v, want %v", got, err, context.DeadlineExceeded)
		}
	}
	// The deadline of one call must not be that of the next.
	time.AfterFunc(20*time.Millisecond, func() { notifications.Close() })
	if got, err := notifications.Receive(testContext(t)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Receive() = %v, %v, want %v", got, err, net.ErrClosed)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Stat(socket) after Close() = %v, want %v", err, os.ErrNotExist)
	}
}

func TestListenReplacesStaleSocketOnly(t *testing.T) {
	path := socketPath(t)
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := Listen(path); err == nil {
		n.Close()
		t.Error("Listen() took a socket that is in use")
	}
	conn.Close()
	notifications, err := Listen(path)
	if err != nil {
		t.Fatalf("Listen() on a stale socket = %v", err)
	}
	if err := notifications.Close(); err != nil {
		t.Errorf("Close() = %v", err)
	}

	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if n, err := Listen(path); err == nil {
		n.Close()
		t.Error("Listen() replaced a file")
	}
}

func TestListenPathTooLong(t *testing.T) {
	_, err := Listen("/" + strings.Repeat("x", 107))
	if err == nil || !strings.Contains(err.Error(), "108 bytes long, at most 107 are possible") {
		t.Errorf("Listen() = %v, want an error about the length", err)
	}
}
