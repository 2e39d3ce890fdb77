package e2e

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"docker-usermode-linux/internal/slirp"
)

// The guest's network, as docs/NETWORK.md has it.
const (
	gateway  = "10.0.2.2"
	gateway6 = "fd00:10:0:2::2"
)

// lab is a Docker network with IPv6 and a container in it that serves as other host.
type lab struct {
	network string
	peer    string // the container, which others find as "peer"
	addr    string // its addresses
	addr6   string
}

func newLab(t *testing.T) *lab {
	t.Helper()
	needImage(t)
	l := &lab{network: newNetwork(t)}
	l.peer = l.newPeer(t, "--network-alias", "peer")
	l.addr, l.addr6 = addresses(t, l.peer, l.network)
	return l
}

// newNetwork makes a Docker network with IPv6, and with an MTU below the guest's.
func newNetwork(t *testing.T) string {
	t.Helper()
	id := name(t, "net")
	docker(t, "network", "create", "--ipv6", "--subnet", uniqueLocal(),
		"-o", "com.docker.network.driver.mtu=1400", id)
	t.Cleanup(func() { docker(t, "network", "rm", id) })
	return id
}

// uniqueLocal is a prefix that nobody else has (RFC 4193).
func uniqueLocal() string {
	addr := [16]byte{0xfd}
	_, _ = rand.Read(addr[1:6]) // it never fails
	return netip.PrefixFrom(netip.AddrFrom16(addr), 64).String()
}

// newPeer starts a container that serves, as peerMain says.
func (l *lab) newPeer(t *testing.T, options ...string) string {
	t.Helper()
	args := append([]string{"run", "-d", "--name", name(t, "peer"), "--network", l.network}, options...)
	args = append(args, "-v", self(t)+":/peer:ro", "--entrypoint", "/peer", image, "serve")
	id := docker(t, args...)
	t.Cleanup(func() { docker(t, "rm", "-f", id) })
	return id
}

// addresses of a container in a network.
func addresses(t testing.TB, container, network string) (v4, v6 string) {
	t.Helper()
	out := docker(t, "inspect", "-f", "{{with index .NetworkSettings.Networks "+fmt.Sprintf("%q", network)+
		"}}{{.IPAddress}} {{.GlobalIPv6Address}}{{end}}", container)
	v4, v6, _ = strings.Cut(out, " ")
	return v4, v6
}

// guest starts a quick guest in the network, and returns its container's addresses there too.
func (l *lab) guest(t *testing.T, options ...string) (c *container, addr, addr6 string) {
	t.Helper()
	c = quick(t, append([]string{"--network", l.network}, options...)...)
	addr, addr6 = addresses(t, c.id, l.network)
	return c, addr, addr6
}

// quick starts a guest whose init is /peer serve: it takes half a second, and its sh needs no log-in. Its container
// has /peer, too.
func quick(t *testing.T, options ...string) *container {
	t.Helper()
	c := start(t, append(append([]string{
		"-p", "127.0.0.1::7000", "-v", self(t) + ":/peer:ro",
		"-v", self(t) + ":/rootfs/peer:ro", "-e", "PORTS=7000",
	}, options...), "--", "quiet", "init=/peer", "--", "serve")...)
	waitFor(t, "the guest's server", func() error { return is(talk("tcp", c.address("7000/tcp"), "run echo up"), "up") })
	return c
}

// sh runs a command in a quick guest.
func (c *container) sh(command string) string {
	c.t.Helper()
	return talk("tcp", c.address("7000/tcp"), "run "+command)
}

// talk runs /peer talk in a quick guest.
func (c *container) talk(network, address, line string) string {
	c.t.Helper()
	return c.sh("/peer talk " + network + " " + address + " " + line)
}

// peerTalk runs /peer talk in a container.
func peerTalk(t testing.TB, container, network, address, line string) string {
	t.Helper()
	return docker(t, append([]string{"exec", container, "/peer", "talk", network, address}, strings.Fields(line)...)...)
}

// inspect is entrypoint net --json.
func (c *container) inspect() slirp.Inspection {
	c.t.Helper()
	var i slirp.Inspection
	if err := json.Unmarshal([]byte(docker(c.t, "exec", c.id, "/entrypoint", "net", "--json")), &i); err != nil {
		c.t.Fatal(err)
	}
	return i
}

// noDrops wants that nothing was lost.
func (c *container) noDrops() {
	c.t.Helper()
	if i := c.inspect(); i.Drops != 0 || i.Counters.FramesDroppedIn != 0 || i.Counters.FramesDroppedOut != 0 {
		c.t.Errorf("the network lost something: %d drops, counters %+v", i.Drops, i.Counters)
	}
}

func is(got, want string) error {
	if got != want {
		return errors.New("got " + got)
	}
	return nil
}

// wants compares what came of something with what should have.
func wants(t testing.TB, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s = %q, want %q", what, got, want)
	}
}
