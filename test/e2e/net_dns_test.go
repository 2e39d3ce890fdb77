package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// TestNetDNS gives the container names and name servers in all the ways that Docker has: the guest has them too.
func TestNetDNS(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	c, _, _ := l.guest(t, "--dns", l.addr, "--dns-search", "corp.test", "--dns-option", "timeout:3",
		"--add-host", "extra.test:192.0.2.99", "--add-host", "six.test:2001:db8::99")
	conf := c.sh("cat /etc/resolv.conf")
	for _, want := range []string{"nameserver 10.0.2.3\n", "search corp.test\n", "timeout:3"} {
		if !strings.Contains(conf+"\n", want) {
			t.Errorf("no %q in the guest's resolv.conf:\n%s", want, conf)
		}
	}
	const resolve = "getent ahosts%s %s | awk 'NR == 1 { print $1, $3 }'"
	for _, test := range []struct{ family, name, want string }{
		{"v4", "extra.test", "192.0.2.99 extra.test"},
		{"v6", "six.test", "2001:db8::99 six.test"},
		{"v4", "any.example", anyAddr + " any.example"},
		{"v4", "short", anyAddr + " short.corp.test"},
		{"v4", "peer", l.addr + " peer"},
		{"v6", "peer", l.addr6 + " peer"},
		{"v4", "late", anyAddr + " late.corp.test"}, // nobody is called so
	} {
		wants(t, test.name, c.sh(fmt.Sprintf(resolve, test.family, test.name)), test.want)
	}

	// A network that comes while the guest runs brings its names.
	second := &lab{network: newNetwork(t)}
	late := second.newPeer(t, "--network-alias", "late")
	addr, _ := addresses(t, late, second.network)
	docker(t, "network", "connect", second.network, c.id)
	t.Cleanup(func() { docker(t, "network", "disconnect", "-f", second.network, c.id) })
	waitFor(t, "late's name", func() error { return is(c.sh(fmt.Sprintf(resolve, "v4", "late")), addr+" late") })
	wants(t, "late", c.sh("curl -4 -sS http://late:8080/"), "peer")
}
