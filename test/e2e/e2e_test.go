// Package e2e runs the image in a real Docker with the real kernel, and looks at it as its users do: through the
// docker command, ssh, the published ports and the logs. It needs the image; E2E_IMAGE names it (make e2e).
package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

const (
	// hangGuard ends what would otherwise hang for ever; nothing here comes near it.
	hangGuard = 3 * time.Minute
	// password is the documented default.
	password = "voidlinux"
)

// image is what is tested.
var image = os.Getenv("E2E_IMAGE")

func TestMain(m *testing.M) {
	if code, ok := peerMain(os.Args); ok {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// needImage skips on a machine where nobody built the image; make test never comes here without it.
func needImage(t testing.TB) {
	t.Helper()
	if image == "" {
		t.Skip("E2E_IMAGE is not set: make e2e builds the image and sets it")
	}
}

// docker runs the docker command and returns its trimmed standard output.
func docker(t testing.TB, args ...string) string {
	t.Helper()
	out, err := dockerErr(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func dockerErr(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), hangGuard)
	defer cancel()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("docker %s: %w\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return strings.TrimSpace(string(out)), nil
}

// container is one that the test made; it is removed at the test's end.
type container struct {
	t  testing.TB
	id string
}

var (
	names atomic.Int32
	// runID tells this run from others at the same Docker, whose process may have the same number in another container.
	runID = func() string {
		var id [4]byte
		_, _ = rand.Read(id[:]) // it never fails
		return fmt.Sprintf("%x", id)
	}()
)

// name is unlike any other on this machine.
func name(t testing.TB, what string) string {
	return fmt.Sprintf("e2e-%s-%d-%s", runID, names.Add(1), what)
}

// start runs the image in the background: options of docker run before "--", kernel arguments after it.
func start(t testing.TB, options ...string) *container {
	t.Helper()
	needImage(t)
	return startImage(t, image, options...)
}

func startImage(t testing.TB, image string, options ...string) *container {
	t.Helper()
	options, args := cutArgs(options)
	command := append([]string{"run", "-d", "--name", name(t, "c")}, options...)
	command = append(append(command, image), args...)
	c := &container{t: t, id: docker(t, command...)}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of %s:\n%s", c.id[:12], c.logs())
		}
		docker(t, "rm", "-f", "-v", c.id)
	})
	return c
}

func cutArgs(all []string) (options, args []string) {
	for i, a := range all {
		if a == "--" {
			return all[:i], all[i+1:]
		}
	}
	return all, nil
}

// run runs the image in the foreground until it ends and returns both outputs and the exit code.
func run(t testing.TB, stdin string, options ...string) (stdout, stderr string, code int) {
	t.Helper()
	needImage(t)
	return runImage(t, image, stdin, options...)
}

func runImage(t testing.TB, image, stdin string, options ...string) (stdout, stderr string, code int) {
	t.Helper()
	options, args := cutArgs(options)
	id := name(t, "r")
	command := append([]string{"run", "--rm", "-i", "--name", id}, options...)
	command = append(append(command, image), args...)
	ctx, cancel := context.WithTimeout(t.Context(), hangGuard)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, "docker", command...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	err := cmd.Run()
	if ctx.Err() != nil {
		docker(t, "rm", "-f", id)
		t.Fatalf("docker %v hangs\n%s\n%s", command, &out, &errs)
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("docker %v: %v", command, err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// logs are the container's two outputs, one after the other.
func (c *container) logs() string {
	out, err := exec.Command("docker", "logs", c.id).CombinedOutput()
	if err != nil {
		return err.Error()
	}
	return string(out)
}

// waitLog waits until the log holds text.
func (c *container) waitLog(text string) {
	c.t.Helper()
	waitFor(c.t, fmt.Sprintf("%q in the log", text), func() error {
		if !strings.Contains(c.logs(), text) {
			return errors.New("not there")
		}
		return nil
	})
}

// address is where a port of the container is published on this host.
func (c *container) address(port string) string {
	c.t.Helper()
	first, _, _ := strings.Cut(docker(c.t, "port", c.id, port), "\n")
	return first
}

// wait returns the exit code when the container has ended.
func (c *container) wait() string {
	c.t.Helper()
	return docker(c.t, "wait", c.id)
}

// stop is docker stop with more patience than Docker's own, which would hide a hang behind its SIGKILL.
func (c *container) stop() (code string) {
	c.t.Helper()
	began := time.Now()
	docker(c.t, "stop", "-t", "60", c.id)
	c.t.Logf("docker stop took %.1f s", time.Since(began).Seconds())
	return docker(c.t, "inspect", "-f", "{{.State.ExitCode}}", c.id)
}

// waitFor tries until try succeeds or the hang guard has passed.
func waitFor(t testing.TB, what string, try func() error) {
	t.Helper()
	deadline := time.Now().Add(hangGuard)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s: %v", what, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// ssh logs in as root and waits for the server to come up first.
func (c *container) ssh(auth ...ssh.AuthMethod) *ssh.Client {
	c.t.Helper()
	if len(auth) == 0 {
		auth = []ssh.AuthMethod{ssh.Password(password)}
	}
	var client *ssh.Client
	waitFor(c.t, "ssh", func() error {
		conn, err := c.trySSH(auth...)
		if err != nil && strings.Contains(err.Error(), "unable to authenticate") {
			c.t.Fatal(err)
		}
		client = conn
		return err
	})
	c.t.Cleanup(func() { client.Close() })
	return client
}

func (c *container) trySSH(auth ...ssh.AuthMethod) (*ssh.Client, error) {
	return dialSSH(c.address("22/tcp"), auth...)
}

// dialSSH logs in as root.
func dialSSH(address string, auth ...ssh.AuthMethod) (*ssh.Client, error) {
	conn, err := net.DialTimeout("tcp", address, hangGuard)
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(hangGuard)); err != nil {
		return nil, err
	}
	// The key was made a moment ago in a container of ours, on the loopback.
	config := &ssh.ClientConfig{User: "root", Auth: auth, HostKeyCallback: ssh.InsecureIgnoreHostKey()}
	client, chans, reqs, err := ssh.NewClientConn(conn, conn.RemoteAddr().String(), config)
	if err != nil {
		conn.Close()
		return nil, err
	}
	if err := conn.SetDeadline(time.Time{}); err != nil { // a test may take longer; remoteErr bounds each command
		client.Close()
		return nil, err
	}
	return ssh.NewClient(client, chans, reqs), nil
}

// remote runs a command in the guest and returns its trimmed output; a non-zero exit is an error.
func remote(t testing.TB, client *ssh.Client, command string) string {
	t.Helper()
	out, err := remoteErr(client, command)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func remoteErr(client *ssh.Client, command string) (string, error) {
	var (
		out    []byte
		stderr bytes.Buffer
	)
	err := inSession(client, func(session *ssh.Session) (err error) {
		session.Stderr = &stderr
		out, err = session.Output(command)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("in the guest: %s: %w\n%s%s", command, err, out, stderr.String())
	}
	return strings.TrimSpace(string(out)), nil
}

// inSession runs f with a session of its own. When that hangs, the connection is closed.
func inSession(client *ssh.Client, f func(*ssh.Session) error) error {
	guard := time.AfterFunc(hangGuard, func() { client.Close() })
	session, err := client.NewSession()
	if err == nil {
		err = f(session)
		session.Close()
	}
	if !guard.Stop() {
		return fmt.Errorf("hangs: %w", errors.Join(os.ErrDeadlineExceeded, err))
	}
	return err
}

// self is this test binary, which containers run as /peer (peer_test.go). In the image there is no C library: make e2e
// builds it without cgo.
func self(t testing.TB) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// Under /tmp of the go command, whose directories only their owner may enter; containers run as root.
	exe, err = filepath.EvalSymlinks(exe)
	if err != nil {
		t.Fatal(err)
	}
	return exe
}
