package e2e

import (
	"errors"
	"strings"
	"testing"
)

// TestNetClient looks at what the guest sees of its clients.
func TestNetClient(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	c, own, own6 := l.guest(t, "-e", "PORTS=7000/tcp+udp")
	l.waitOwnFamily(t, own)
	wants(t, "a client by TCP", peerTalk(t, l.peer, "tcp", own+":7000", "who"), l.addr)
	wants(t, "a client by UDP", peerTalk(t, l.peer, "udp", own+":7000", "who"), l.addr)
	wants(t, "the container itself", docker(t, "exec", c.id, "/peer", "talk", "tcp", "127.0.0.1:7000", "who"), gateway)

	// The guest takes the clients' network for its own, with the very address of this host.
	network := docker(t, "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.Gateway}}/{{.IPPrefixLen}}{{end}}", c.id)
	out := talk("tcp", "["+own6+"]:7000", "run ip link add own type dummy && ip addr add "+network+
		" dev own && ip link set own up && ip -o -4 addr show dev own")
	if !strings.Contains(out, network) {
		t.Fatalf("the guest does not have %s: %s", network, out)
	}
	wants(t, "a client with the guest's address", talk("tcp", own+":7000", "who"), gateway)
	// This one was answered a moment ago, so nothing is known against it.
	wants(t, "a client in the guest's network", peerTalk(t, l.peer, "tcp", own+":7000", "who"), gateway)
	wants(t, "the same by UDP", peerTalk(t, l.peer, "udp", own+":7000", "who"), gateway)
	wants(t, "a client elsewhere", peerTalk(t, l.peer, "tcp", "["+own6+"]:7000", "who"), l.addr6)
	c.waitLog("it sees this client as the gateway from now on")
}

// waitOwnFamily waits until clients of IPv4 are led to the guest's IPv4 address. Where its server began to listen between
// the attempts by both families, they are led to the other one for some seconds.
func (l *lab) waitOwnFamily(t *testing.T, own string) {
	t.Helper()
	waitFor(t, "a client of IPv4", func() error {
		if got := peerTalk(t, l.peer, "tcp", own+":7000", "who"); got == gateway6 {
			return errors.New(got)
		}
		return nil
	})
}

func TestNetClientGateway(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	_, own, own6 := l.guest(t, "-e", "PORTS=7000/tcp+udp", "-e", "PORTS_SOURCE=gateway")
	l.waitOwnFamily(t, own)
	wants(t, "a client by TCP", peerTalk(t, l.peer, "tcp", own+":7000", "who"), gateway)
	wants(t, "a client by UDP", peerTalk(t, l.peer, "udp", own+":7000", "who"), gateway)
	wants(t, "a client by IPv6", peerTalk(t, l.peer, "tcp", "["+own6+"]:7000", "who"), gateway6)
}

func TestNetClientProxy(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	c := start(t, "--network", l.network, "-v", self(t)+":/rootfs/peer:ro", "-e", "PORTS=7000", "-e", "PORTS_SOURCE=proxy",
		"--", "quiet", "init=/peer", "--", "listen", "tcp", ":7000", "proxy")
	own, own6 := addresses(t, c.id, l.network)
	waitFor(t, "a client by the header", func() error { return is(peerTalk(t, l.peer, "tcp", own+":7000", "who"), l.addr) })
	wants(t, "a client of IPv6 by the header", peerTalk(t, l.peer, "tcp", "["+own6+"]:7000", "who"), l.addr6)
}

// TestNetEnds lets connections end in all ways, in both directions.
func TestNetEnds(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	c, own, own6 := l.guest(t)
	for how, want := range map[string]string{
		"half-close": "eof 16777216",
		"half-open":  "eof 16777216",
		"reset":      "reset",
		"abort":      "reset",
	} {
		wants(t, how+" by the guest", c.talk("tcp4", "peer:7000", how), want)
		wants(t, how+" by the guest over IPv6", c.talk("tcp6", "peer:7000", how), want)
		wants(t, how+" by a client", peerTalk(t, l.peer, "tcp", own+":7000", how), want)
		wants(t, how+" by a client over IPv6", peerTalk(t, l.peer, "tcp", "["+own6+"]:7000", how), want)
	}
	c.noDrops()
}

// TestNetEarlyClient connects while the guest boots, once. The guest's server comes a second after its network. A client
// that comes in between, which is rare, is refused: another guest then.
func TestNetEarlyClient(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	for _, port := range []string{"7001", "7002", "7003"} {
		answer := make(chan string, 1)
		go func() {
			out, err := dockerErr("exec", l.peer, "/peer", "early", "tcp4", "127.0.0.1:"+port)
			if err != nil {
				out = err.Error()
			}
			answer <- out
		}()
		// In the network namespace of the peer, which is there before.
		start(t, "--network", "container:"+l.peer, "-e", "PORTS="+port+":7000", "-v", self(t)+":/rootfs/peer:ro",
			"--", "quiet", "init=/peer", "--", "listen", "tcp", ":7000", "late")
		got := <-answer
		// The second, when the server comes up between an attempt by IPv4 and the next one.
		if got == gateway || got == gateway6 {
			return
		}
		t.Logf("an early client: %s", got)
	}
	t.Errorf("no early client was served")
}
