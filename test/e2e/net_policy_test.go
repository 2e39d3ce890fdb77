package e2e

import (
	"net/netip"
	"strings"
	"testing"
)

// TestNetPolicy tries what NET_ALLOW and NET_DENY say. Everywhere there are the peer, and a container beside the
// guest's, in its network namespace: with services on the loopback, and with the address of a cloud's metadata.
func TestNetPolicy(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	const refused, ping = "refused", "ping -c 1 -W 20 "
	type attempt struct{ network, address, want string }
	for _, test := range []struct {
		name     string
		options  []string
		attempts func(own, own6 string) []attempt
	}{
		{"default", nil, func(own, own6 string) []attempt {
			return []attempt{
				{"tcp", l.addr + ":7000", own},
				{"tcp", "[" + l.addr6 + "]:7000", own6},
				{"tcp", gateway + ":7100", refused},
				{"tcp", "[" + gateway6 + "]:7100", refused},
				{"tcp", "host.uml.internal:7100", "no such name"},
				{"tcp", metadata + ":80", refused},
				{"udp", metadata + ":80", "unreachable"},
				{"tcp", "[fd00:ec2::254]:80", refused},
			}
		}},
		{"NET_ALLOW", []string{"-e", "NET_ALLOW=gateway:7100 " + metadata + ":80/tcp"}, func(own, _ string) []attempt {
			return []attempt{
				{"tcp", gateway + ":7100", "127.0.0.1"},
				{"tcp", "[" + gateway6 + "]:7100", "::1"},
				{"tcp4", "host.uml.internal:7100", "127.0.0.1"},
				{"tcp6", "host.uml.internal:7100", "::1"},
				{"tcp", gateway + ":7101", refused},
				{"tcp", "[" + gateway6 + "]:7101", refused},
				{"tcp", metadata + ":80", metadata},
				{"tcp", metadata + ":81", refused},
				{"tcp", l.addr + ":7000", own},
			}
		}},
		{"NET_DENY", []string{"-e", "NET_DENY=" + l.addr}, func(_, own6 string) []attempt {
			return []attempt{
				{"tcp", l.addr + ":7000", refused},
				{"udp", l.addr + ":7000", "unreachable"},
				{"ping", l.addr, "Packet filtered"},
				{"tcp", "[" + l.addr6 + "]:7000", own6},
				{"ping", l.addr6, " 0% packet loss"},
			}
		}},
		{"all", []string{"-e", "NET_DENY=all", "-e", "NET_ALLOW=" + l.addr + ":7000/tcp"}, func(own, _ string) []attempt {
			return []attempt{
				{"tcp4", "peer:7000", own}, // its name, too: DNS is the gateway's
				{"tcp", l.addr + ":8080", refused},
				{"udp", l.addr + ":7000", "unreachable"},
				{"tcp", "[" + l.addr6 + "]:7000", refused},
				{"udp", "[" + l.addr6 + "]:7000", "unreachable"},
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, own, own6 := l.guest(t, test.options...)
			beside := docker(t, "run", "-d", "--name", name(t, "beside"), "--network", "container:"+c.id, "--cap-add", "NET_ADMIN",
				"-v", self(t)+":/peer:ro", "--entrypoint", "/peer", image, "neighbour")
			t.Cleanup(func() { docker(t, "rm", "-f", beside) })
			for _, there := range []string{"127.0.0.1:7100", "127.0.0.1:7101", "[::1]:7100", "[::1]:7101", metadata + ":80"} {
				waitFor(t, there, func() error {
					_, err := netip.ParseAddr(peerTalk(t, beside, "tcp", there, "who"))
					return err
				})
			}
			for _, a := range test.attempts(own, own6) {
				if a.network == "ping" {
					if got := c.sh(ping + a.address); !strings.Contains(got, a.want) {
						t.Errorf("ping %s = %q, want %q in it", a.address, got, a.want)
					}
					continue
				}
				wants(t, a.network+" "+a.address, c.talk(a.network, a.address, "who"), a.want)
			}
			if i := c.inspect(); i.Drops != 0 {
				t.Errorf("%d drops", i.Drops)
			}
		})
	}
}

// TestNetOff boots a guest without a network.
func TestNetOff(t *testing.T) {
	t.Parallel()
	stdout, stderr, code := run(t, "echo net: /sys/class/net/*/address; echo o > /proc/sysrq-trigger; sleep 60\n", "-e", "NET=off", "--",
		"quiet", "init=/bin/sh")
	if code != 0 || !strings.Contains(stdout, "net: /sys/class/net/lo/address\n") {
		t.Errorf("NET=off: exit code %d, want lo and nothing else:\n%s\n%s", code, stdout, stderr)
	}
	c := start(t, "-e", "NET=off")
	c.waitLog(greeting)
	out, err := dockerErr("exec", c.id, "/entrypoint", "net")
	if err == nil || !strings.Contains(err.Error(), "NET=off") {
		t.Errorf("entrypoint net = %q, %v, want NET=off in the error", out, err)
	}
	if code := c.stop(); code != "0" {
		t.Errorf("exit code %s after docker stop, want 0", code)
	}
}
