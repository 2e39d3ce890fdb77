package agent

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// hangGuard ends a test that hangs. No test is about time.
const hangGuard = 60 * time.Second

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == SFTPServerArg {
		if err := ServeSFTP(); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	// Commands inherit an ignored SIGHUP, as nohup has it, and a shell cannot trap that.
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP)
	goleak.VerifyTestMain(m)
}

// socketPair returns the ends of a connected stream socket.
func socketPair(t *testing.T) (net.Conn, net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "socketpair")
		conns[i], err = net.FileConn(file)
		file.Close()
		if err != nil {
			t.Fatal(err)
		}
	}
	return conns[0], conns[1]
}

// guest is a private server with its client.
type guest struct {
	*Client
	server *Server
	cancel context.CancelFunc
	served chan error
}

// newGuest serves over a, and has the client on b.
func newGuest(t *testing.T, options ServerOptions, a, b net.Conn) *guest {
	t.Helper()
	if options.Log == nil {
		options.Log = func(err error) { t.Log(err) }
	}
	g := &guest{server: NewServer(options), served: make(chan error, 1)}
	var ctx context.Context
	ctx, g.cancel = context.WithCancel(context.Background())
	go func() { g.served <- g.server.Serve(ctx, a) }()
	client, err := Dial(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	g.Client = client
	t.Cleanup(func() {
		client.Close()
		g.cancel()
		<-g.served
	})
	return g
}

func startGuest(t *testing.T) *guest {
	t.Helper()
	a, b := socketPair(t)
	return newGuest(t, ServerOptions{}, a, b)
}

// self is the -u of whom the tests run as.
func self() string {
	return fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid())
}

// run runs a command as the user of the tests, and returns its output.
func run(t *testing.T, c *Client, command Command, stdin io.Reader) (stdout, stderr string, code int) {
	t.Helper()
	if command.User == "" {
		command.User = self()
	}
	ctx, cancel := context.WithTimeout(t.Context(), hangGuard)
	defer cancel()
	var out, errs bytes.Buffer
	code, err := c.Run(ctx, command, Streams{Stdin: stdin, Stdout: &out, Stderr: &errs})
	if err != nil {
		t.Errorf("Run(%q) = %v", command.Args, err)
	}
	return out.String(), errs.String(), code
}

// sh is the command of a shell script.
func sh(script string, args ...string) Command {
	return Command{Args: append([]string{"/bin/sh", "-c", script, "sh"}, args...), User: self()}
}

// buffer is a bytes.Buffer for two goroutines.
type buffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// eventually waits until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(hangGuard); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// newTree makes files with mode 0644 below a directory of the test, which it returns.
func newTree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to become another user")
	}
}
