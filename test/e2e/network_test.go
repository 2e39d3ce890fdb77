package e2e

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// aptInstall is a command that installs the packages that follow. Mirrors fail now and then.
const aptInstall = "apt-get -q -o Acquire::Retries=5 update && DEBIAN_FRONTEND=noninteractive " +
	"apt-get -qy -o Acquire::Retries=5 install --no-install-recommends "

// TestPackages installs a web server in the guest from Debian's archive and reads its page from this host; socat
// does the same for UDP.
func TestPackages(t *testing.T) {
	t.Parallel()
	c := start(t, "-p", "127.0.0.1::22", "-p", "127.0.0.1::80", "-p", "127.0.0.1::7/udp", "-e", "PORTS=22 80 7/udp")
	client := c.ssh()
	remote(t, client, aptInstall+"nginx socat")

	var page []byte
	waitFor(t, "the web server", func() error {
		resp, err := http.Get("http://" + c.address("80/tcp"))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		page, err = io.ReadAll(resp.Body)
		return err
	})
	if !strings.Contains(string(page), "Welcome to nginx") {
		t.Errorf("the web server's page is %q", page)
	}

	remote(t, client, "systemd-run -q socat UDP-RECVFROM:7,fork EXEC:cat")
	conn, err := net.Dial("udp", c.address("7/udp"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	buf := make([]byte, 1<<16)
	waitFor(t, "the UDP echo", func() error {
		if _, err := conn.Write([]byte("hello")); err != nil {
			return err
		}
		if err := conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			return err
		}
		n, err := conn.Read(buf)
		if err == nil && string(buf[:n]) != "hello" {
			err = fmt.Errorf("echo of hello is %q", buf[:n])
		}
		return err
	})
}

// TestTransfer sends 256 MiB through the forwarded port in both directions.
func TestTransfer(t *testing.T) {
	t.Parallel()
	const size = 256 << 20
	c := start(t, "-p", "127.0.0.1::22")
	client := c.ssh()
	block := make([]byte, 1<<20)
	if _, err := rand.Read(block); err != nil {
		t.Fatal(err)
	}
	// Every MiB begins with its number, so that none can be lost, doubled or swapped unseen.
	content := func() io.Reader {
		var parts []io.Reader
		for i := range size >> 20 {
			head := fmt.Appendf(nil, "%08d", i)
			parts = append(parts, bytes.NewReader(head), bytes.NewReader(block[len(head):]))
		}
		return io.MultiReader(parts...)
	}
	hash := sha256.New()
	if _, err := io.Copy(hash, content()); err != nil {
		t.Fatal(err)
	}
	want := hex.EncodeToString(hash.Sum(nil))

	began := time.Now()
	if err := inSession(client, func(session *ssh.Session) error {
		session.Stdin = content()
		out, err := session.CombinedOutput("cat > /root/big")
		if err != nil {
			err = fmt.Errorf("%w %s", err, out)
		}
		return err
	}); err != nil {
		t.Fatalf("send: %v", err)
	}
	t.Logf("into the guest: %.0f MB/s", size/1e6/time.Since(began).Seconds())
	if got := remote(t, client, "sha256sum < /root/big"); got != want+"  -" {
		t.Errorf("sha256 in the guest = %s, want %s", got, want)
	}

	hash.Reset()
	began = time.Now()
	if err := inSession(client, func(session *ssh.Session) error {
		session.Stdout = hash
		return session.Run("cat /root/big")
	}); err != nil {
		t.Fatalf("fetch: %v", err)
	}
	t.Logf("out of the guest: %.0f MB/s", size/1e6/time.Since(began).Seconds())
	if got := hex.EncodeToString(hash.Sum(nil)); got != want {
		t.Errorf("sha256 of what came back = %s, want %s", got, want)
	}
}

// TestNeighbours has the guest find another container by name on a user-defined network, where Docker's own
// resolver answers, and talk to it by TCP and UDP.
func TestNeighbours(t *testing.T) {
	t.Parallel()
	needImage(t)
	network := name(t, "net")
	docker(t, "network", "create", network)
	t.Cleanup(func() { docker(t, "network", "rm", network) }) // the containers go before, but not before start's log
	peer := docker(t, "run", "-d", "--network", network, "--network-alias", "neighbour", "-v", self(t)+":/peer:ro",
		"--entrypoint", "/peer", "--name", name(t, "peer"), image, "serve")
	t.Cleanup(func() { docker(t, "rm", "-f", peer) })
	c := start(t, "--network", network, "-p", "127.0.0.1::22")
	client := c.ssh()

	if got := remote(t, client, "curl -sS http://neighbour:8080/"); got != "peer" {
		t.Errorf("curl http://neighbour:8080/ = %q, want peer", got)
	}
	sum := remote(t, client, "head -c 50000000 /dev/urandom | tee /root/data | curl -sS --data-binary @- http://neighbour:8080/")
	if got := remote(t, client, "sha256sum < /root/data"); got != sum+"  -" {
		t.Errorf("sha256 at the neighbour %s, in the guest %s", sum, got)
	}
	udp := `exec 3<>/dev/udp/neighbour/9000; echo ping >&3; timeout 20 head -n 1 <&3`
	if got := remote(t, client, "bash -c '"+udp+"'"); got != "ping" {
		t.Errorf("UDP echo = %q, want ping", got)
	}
	if got := remote(t, client, "getent hosts no-such-name.invalid || echo none"); got != "none" {
		t.Errorf("a name that does not exist resolves to %q", got)
	}
	// Nobody listens there: refused, and at once.
	if out := remote(t, client, "curl -sS http://neighbour:1/ 2>&1 || true"); !strings.Contains(out, "Could not connect") &&
		!strings.Contains(out, "refused") {
		t.Errorf("a closed port of the neighbour: %q, want refused", out)
	}
}

// TestPortsEmpty looks for listening sockets in the container's network namespace.
func TestPortsEmpty(t *testing.T) {
	t.Parallel()
	c := start(t, "-e", "PORTS=")
	c.waitLog("kernel started")
	pid := docker(t, "inspect", "-f", "{{.State.Pid}}", c.id)
	const listening = " 0A " // TCP_LISTEN, include/net/tcp_states.h
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6"} {
		data, err := os.ReadFile("/proc/" + pid + "/net/" + table)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSpace(string(data)), "\n")[1:]
		for _, line := range lines {
			if !strings.HasPrefix(table, "tcp") || strings.Contains(line, listening) {
				t.Errorf("PORTS= and yet %s: %s", table, line)
			}
		}
	}
}

// TestPortTaken names the port that cannot be had.
func TestPortTaken(t *testing.T) {
	t.Parallel()
	c := start(t, "-e", "PORTS=2222:22")
	c.waitLog("kernel started")
	_, stderr, code := run(t, "", "--network", "container:"+c.id, "-e", "PORTS=2222:22")
	if code != 1 || !strings.Contains(stderr, "PORTS: listen on tcp *:2222: already taken by another program") {
		t.Errorf("exit code %d, want 1; stderr, want who has port 2222, and the setting:\n%s", code, stderr)
	}
}
