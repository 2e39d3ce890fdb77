package e2e

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestNetPorts(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	c, own, own6 := l.guest(t, "-e", "PORTS=7000, 8000-8002:6999-7001/tcp+udp 127.0.0.1:7002:7000 [::1]:7003:7000/tcp+udp")
	inside := func(network, address string) string {
		t.Helper()
		return docker(t, "exec", c.id, "/peer", "talk", network, address, "who")
	}
	outside := func(network, address string) string {
		t.Helper()
		return peerTalk(t, l.peer, network, address, "who")
	}
	wants(t, "a range", outside("tcp", own+":8001"), l.addr)
	wants(t, "a range of UDP", outside("udp", own+":8001"), l.addr)
	wants(t, "127.0.0.1 from inside", inside("tcp", "127.0.0.1:7002"), gateway)
	wants(t, "127.0.0.1 from outside", outside("tcp", own+":7002"), "refused")
	wants(t, "[::1] from inside", inside("tcp", "[::1]:7003"), gateway6)
	wants(t, "[::1] from inside by UDP", inside("udp", "[::1]:7003"), gateway6)
	wants(t, "[::1] from outside", outside("tcp", "["+own6+"]:7003"), "refused")
	// Docker has accepted the client already, so to speak: it is reset.
	wants(t, "a port where the guest has no server", outside("tcp", own+":8000"), "reset")
	wants(t, "the same by IPv6", outside("tcp", "["+own6+"]:8000"), "reset")
	c.noDrops()
}

func TestNetPortsWrong(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ ports, want string }{
		{"22 80x", `item 2, "80x", character 6: "80x" is not a port`},
		{"8000-8010:80-81", "character 1: 8000-8010 and 80-81 differ in length"},
		{"22,5010-5000", `item 2, "5010-5000", character 4: range 5010-5000 runs backwards`},
		{"22 ~23", `item 2, "~23", character 4: excludes nothing`},
		{"22 2222:22 22", `item 3, "22", character 12: host port 22/tcp is already taken by item 1, "22"`},
		{"::1:80:80", "character 1: too many colons"},
	} {
		_, stderr, code := run(t, "", "-e", "PORTS="+test.ports)
		if code != 2 || !strings.Contains(stderr, fmt.Sprintf("PORTS=%q", test.ports)) || !strings.Contains(stderr, test.want) {
			t.Errorf("PORTS=%q: exit code %d, want 2, and %s in\n%s", test.ports, code, test.want, stderr)
		}
	}
	_, stderr, code := run(t, "", "--ulimit", "nofile=1000:1000", "-e", "PORTS=10000-19999")
	if code != 1 || !strings.Contains(stderr, "the limit is 1000, raise it (ulimit -n) to 11024 at least") {
		t.Errorf("10,000 ports with 1000 open files: exit code %d, want 1 and the limit that is needed:\n%s", code, stderr)
	}
}

// TestNetPortsMany compares a guest that has 10,000 ports, and one that has all that the limit of open files lets it,
// with one that has a single port.
func TestNetPortsMany(t *testing.T) {
	t.Parallel()
	needImage(t)
	boot := func(ports string, options ...string) (c *container, took time.Duration, bytes int) {
		t.Helper()
		began := time.Now()
		c = start(t, append(append([]string{"-v", self(t) + ":/peer:ro", "-v", self(t) + ":/rootfs/peer:ro", "-e", "PORTS=" + ports},
			options...), "--", "quiet", "init=/peer", "--", "listen", "tcp", ":15000")...)
		c.waitLog("kernel started")
		took = time.Since(began)
		waitFor(t, "the guest's server", func() error {
			return is(docker(t, "exec", c.id, "/peer", "talk", "tcp", "127.0.0.1:15000", "who"), gateway)
		})
		return c, took, c.supervisorBytes()
	}
	_, took1, bytes1 := boot("15000")
	t.Logf("1 port: kernel started after %.2f s, %d KiB", took1.Seconds(), bytes1>>10)

	c, took, bytes := boot("10000-19999")
	t.Logf("10,000 ports: kernel started after %.2f s, %d KiB", took.Seconds(), bytes>>10)
	if more := bytes - bytes1; more > 64<<20 {
		t.Errorf("10,000 ports cost %d KiB, want less than 64 MiB", more>>10)
	}
	wants(t, "the last port", docker(t, "exec", c.id, "/peer", "talk", "tcp", "127.0.0.1:19999", "who"), "reset")

	// All ports are some 37,000 sockets.
	all, options := "all ~14999", []string{"--ulimit", "nofile=65536:65536"}
	if _, err := dockerErr(append(append([]string{"run", "--rm"}, options...), image, "--version")...); err != nil {
		t.Logf("with some of all ports only, since Docker cannot raise the limit of open files here: %v", err)
		all, options = "all ~1-14999 ~31000-65535", nil
	}
	c, took, bytes = boot(all, options...)
	count := 0
	for _, f := range c.inspect().Forwards {
		count += f.Count
	}
	t.Logf("%d ports: kernel started after %.2f s, %d KiB", count, took.Seconds(), bytes>>10)
	if count < 15000 {
		t.Errorf("PORTS=%s has %d ports", all, count)
	}
	wants(t, "a port that was left out", docker(t, "exec", c.id, "/peer", "talk", "tcp", "127.0.0.1:14999", "who"), "refused")
}

// supervisorBytes is the memory that the supervisor has for itself.
func (c *container) supervisorBytes() int {
	c.t.Helper()
	top := docker(c.t, "top", c.id, "-eo", "pid,args")
	pid := regexp.MustCompile(`(?m)^\s*(\d+)\s+\S*entrypoint supervise`).FindStringSubmatch(top)
	if pid == nil {
		c.t.Fatalf("no supervisor in\n%s", top)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%s/status", pid[1]))
	if err != nil {
		c.t.Fatal(err)
	}
	rss := regexp.MustCompile(`RssAnon:\s*(\d+) kB`).FindSubmatch(status)
	if rss == nil {
		c.t.Fatalf("no RssAnon in\n%s", status)
	}
	kib, err := strconv.Atoi(string(rss[1]))
	if err != nil {
		c.t.Fatal(err)
	}
	return kib << 10
}
