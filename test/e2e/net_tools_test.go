package e2e

import (
	"regexp"
	"strings"
	"testing"
)

// TestNetTools has the programs that people try a network with: those of Debian, installed in the guest.
func TestNetTools(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	c := start(t, "--network", l.network, "-p", "127.0.0.1::22",
		"-e", "PORTS=22 5201-5205/tcp+udp 7003 7004/udp", "-e", "NET_ALLOW=gateway:7100")
	own, own6 := addresses(t, c.id, l.network)
	host := docker(t, "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}", c.id)
	client := c.ssh()
	// A connection that waited for the guest may have come by the gateway's address; one that is made now does not.
	if got := remote(t, c.ssh(), "echo $SSH_CONNECTION"); !strings.HasPrefix(got, host+" ") ||
		!strings.HasSuffix(got, " 10.0.2.15 22") {
		t.Errorf("SSH_CONNECTION = %q, want it from %s to 10.0.2.15 22", got, host)
	}
	remote(t, client, aptInstall+
		"iperf3 bind9-dnsutils socat traceroute netcat-openbsd dhcpcd-base")
	// who reads the client's line first: data that nobody has read makes the end of a connection a reset. Each iperf3
	// serves one client, so that none meets a server that is still busy with the one before.
	remote(t, client, `printf '#!/bin/sh\nread -r _\necho $SOCAT_PEERADDR\n' > /root/who && chmod +x /root/who &&
		for p in 5201 5202 5203 5204 5205; do systemd-run -q iperf3 -s -1 -p $p || exit; done &&
		systemd-run -q socat -t 10 TCP4-LISTEN:7003,fork EXEC:/root/who &&
		systemd-run -q socat -t 10 UDP4-RECVFROM:7004,fork EXEC:/root/who &&
		timeout 60 sh -c 'for p in 5201 5202 5203 5204 5205 7003; do
				until ss -Hltn sport = :$p | grep -q .; do sleep 0.1; done
			done
			until ss -Hlun sport = :7004 | grep -q .; do sleep 0.1; done'`)

	const received = ` [1-9][\d.]* [KMG]Bytes .*receiver`
	for _, test := range []struct{ command, want string }{
		// To the container's own address: out through the bridge, and in again through the forwarded port.
		{"iperf3 -p 5201 -t 1 -c " + own, received},
		{"iperf3 -p 5202 -t 1 -R -c " + own, received},
		{"iperf3 -p 5203 -t 1 -P 4 --bidir -c " + own6, received},
		{"iperf3 -p 5204 -t 1 -u -b 50M -c " + own, received},
		{"iperf3 -p 5205 -t 1 -u -b 50M -R -c " + own6, received},

		// What a userland would get that sets eth0 up itself.
		{"timeout 60 dhcpcd --test -4 eth0 2>&1", "new_ip_address='10.0.2.15'"},
		{"timeout 60 dhcpcd --test -6 eth0 2>&1", "(?s)nd1_flags='M'.*_prefix='fd00:10:0:2::'.*ia_addr1='fd00:10:0:2::15'"},

		{"curl -4 -sS http://peer:8080/", "^peer$"},
		{"curl -6 -sS http://peer:8080/", "^peer$"},

		{"dig +short peer", "^" + l.addr + "$"},
		{"dig +short +tcp peer", "^" + l.addr + "$"},
		{"dig +short +bufsize=4096 peer", "^" + l.addr + "$"},
		{"dig +short @fd00:10:0:2::3 peer AAAA", "^" + l.addr6 + "$"},
		{"dig +short host.uml.internal A host.uml.internal AAAA", "^10.0.2.2\nfd00:10:0:2::2$"},
		{"dig +short -x 10.0.2.2", `^host\.uml\.internal\.$`},
		{"dig +short -x fd00:10:0:2::2", `^host\.uml\.internal\.$`},
		// What the outside's resolver says to that is its own business.
		{"dig no-such-name.invalid", "status: (NXDOMAIN|SERVFAIL|REFUSED)"},

		{"echo who | socat -t 10 - TCP4:peer:7000", "^" + own + "$"},
		{"echo who | socat -t 10 - TCP6:peer:7000", "^" + own6 + "$"},
		{"echo ping | nc -u -W 1 -w 20 peer 9000", "^ping$"},

		{"ping -q -c 2 -i 0.2 -W 20 " + gateway, " 0% packet loss"},
		{"ping -q -c 2 -i 0.2 -W 20 " + gateway6, " 0% packet loss"},
		{"ping -q -c 2 -i 0.2 -W 20 " + host, " 0% packet loss"},
		{"ping -q -c 2 -i 0.2 -W 20 -4 peer", " 0% packet loss"},
		{"ping -q -c 2 -i 0.2 -W 20 -6 peer", " 0% packet loss"},
		// The network's MTU is below the guest's.
		{"ping -q -c 1 -W 20 -M do -s 1400 " + l.addr + " || ip route get " + l.addr, "mtu 1400"},
		{"ping -q -c 1 -W 20 -M do -s 1400 " + l.addr6 + " || ip route get " + l.addr6, "mtu 1400"},
		{"head -c 1450 /dev/zero | nc -4 -u -W 1 -w 20 peer 9000 | wc -c", "^1450$"},
		{"traceroute -n -q 1 -w 20 " + l.addr, `(?m)^ 1  10\.0\.2\.2 .*\n 2  ` + l.addr + " [^!]*$"},
		{"traceroute -n -q 1 -w 20 " + l.addr6, "(?m)^ 1  fd00:10:0:2::2 .*\n 2  " + l.addr6 + " [^!]*$"},
		{"traceroute -n -q 1 -w 20 -I " + l.addr, `(?m)^ 1  10\.0\.2\.2 .*\n 2  ` + l.addr + " [^!]*$"},
	} {
		if got, err := remoteErr(client, test.command); err != nil || !regexp.MustCompile(test.want).MatchString(got) {
			t.Errorf("%s = %q, %v; want it to match %s", test.command, got, err, test.want)
		}
	}
	// The guest's programs see who the client is.
	wants(t, "SOCAT_PEERADDR of a TCP client", peerTalk(t, l.peer, "tcp", own+":7003", "hello"), l.addr)
	wants(t, "SOCAT_PEERADDR of a UDP client", peerTalk(t, l.peer, "udp", own+":7004", "hello"), l.addr)
	c.noDrops()
}
