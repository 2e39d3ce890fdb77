package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"docker-usermode-linux/internal/boot"
	"docker-usermode-linux/internal/config"
	"docker-usermode-linux/internal/slirp"
	"docker-usermode-linux/internal/slirp/dns"
)

// hostName is the guest's name for the container, where NET_ALLOW opens its loopback.
const hostName = "host.uml.internal"

// networkEnd bounds the wait for the network's end: the packet capture's last frames.
const networkEnd = 2 * time.Second

// guestNet is the guest's network with what belongs to it. That of a guest without a network (NET=off) is empty: it
// never fails and has nothing to end.
type guestNet struct {
	network *slirp.Network
	nic     string   // path of the socket for the guest's NIC
	capture *os.File // nil: none
	failed  chan error
	ended   chan struct{} // closed when Run has returned
}

// openNetwork binds all that the network needs; run starts it. dir is for the NIC's socket.
func openNetwork(cfg config.Config, dir string, oldDriver bool, log zerolog.Logger) (*guestNet, error) {
	n := &guestNet{failed: make(chan error, 1)}
	if !cfg.Net {
		return n, nil
	}
	n.nic = filepath.Join(dir, "nic")
	options := slirp.Options{
		Socket:     n.nic,
		OldDriver:  oldDriver,
		MTU:        cfg.NetMTU,
		Forwards:   forwards(cfg.Ports),
		Source:     sources[cfg.PortsSource],
		ResolvConf: resolvConf,
		Hosts:      gatewayNames(cfg.NetAllow),
		Policy:     slirp.Policy{Allow: rules(cfg.NetAllow), Deny: rules(cfg.NetDeny)},
		Log:        log,
	}
	if cfg.NetPcap != "" {
		var err error
		if n.capture, err = openCapture(cfg.NetPcap); err != nil {
			return nil, fmt.Errorf("%s=%q: %w", cfg.Options.Names.Of("NET_PCAP"), cfg.NetPcap, err)
		}
		options.Pcap = io.Writer(n.capture)
	}
	var err error
	if n.network, err = slirp.New(options); err != nil {
		err = nameSetting(err, cfg.Options)
		if n.capture != nil {
			err = errors.Join(err, n.capture.Close())
		}
		return nil, err
	}
	return n, nil
}

// nameSetting says which setting the ports are from that could not be had, and what mends it where the reason does not.
func nameSetting(err error, o config.Options) error {
	e, ok := errors.AsType[*slirp.ListenError](err)
	if !ok {
		return err
	}
	if all, ok := err.(interface{ Unwrap() []error }); ok { // one for each run of ports
		var named []error
		for _, err := range all.Unwrap() {
			named = append(named, nameSetting(err, o))
		}
		return errors.Join(named...)
	}
	setting, where := o.Names.Of("PORTS"), "of the container"
	if o.Host {
		where = "of the host"
	}
	if !e.Taken {
		return fmt.Errorf("%s: %w", setting, err)
	}
	ports := strconv.Itoa(int(e.Host.Port()))
	if e.Last != e.Host.Port() {
		ports = fmt.Sprintf("%s-%d", ports, e.Last)
	}
	return fmt.Errorf("%s: %w; forward another port %s, or exclude this with ~%s/%s", setting, err, where, ports, e.Proto)
}

// openCapture opens the file of NET_PCAP. A named pipe is not waited for: opened for reading as well it needs no reader
// (fifo(7)), and Go's poller makes a write to it one that Close ends. So a reader that comes late or is slow costs frames
// of the capture, which count as dropped, and a write that has begun is completed.
func openCapture(path string) (*os.File, error) {
	if info, err := os.Stat(path); err == nil && info.Mode()&os.ModeNamedPipe != 0 {
		return os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	}
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
}

// start runs the network until ctx ends, the guest is gone or close is called.
func (n *guestNet) start(ctx context.Context) {
	if n.network == nil {
		return
	}
	n.ended = make(chan struct{})
	go func() {
		defer close(n.ended)
		n.failed <- n.network.Run(ctx)
	}()
}

// close ends the network and what belongs to it.
func (n *guestNet) close() {
	if n.network == nil {
		return
	}
	_ = n.network.Close()
	if n.ended != nil {
		select {
		case <-n.ended:
		case <-time.After(networkEnd):
		}
	}
	if n.capture != nil {
		_ = n.capture.Close()
	}
}

var sources = map[config.Source]slirp.Source{
	config.SourceClient:  slirp.SourceClient,
	config.SourceGateway: slirp.SourceGateway,
	config.SourceProxy:   slirp.SourceProxy,
}

var protos = map[config.Proto]slirp.Proto{
	config.TCP:  slirp.TCP,
	config.UDP:  slirp.UDP,
	config.ICMP: slirp.ICMP,
}

// forwards translates PORTS.
func forwards(ports []config.Forward) []slirp.Forward {
	var all []slirp.Forward
	for _, p := range ports {
		all = append(all, slirp.Forward{
			Proto:      protos[p.Proto],
			Host:       netip.AddrPortFrom(p.HostAddr, p.HostPort),
			Guest:      p.GuestPort,
			Count:      p.Count,
			BestEffort: p.BestEffort,
		})
	}
	return all
}

// forwardsTCP says whether a port of the guest is among those that are forwarded.
func forwardsTCP(ports []config.Forward, port uint16) bool {
	return slices.ContainsFunc(ports, func(p config.Forward) bool {
		return p.Proto == config.TCP && port >= p.GuestPort && int(port) < int(p.GuestPort)+max(1, p.Count)
	})
}

// opensLogin says that whoever reaches a host from outside reaches the guest's SSH server: then a password that everyone
// knows is none. A container has its ports where docker run -p puts them, which we do not see.
func opensLogin(cfg config.Config) bool {
	return cfg.Options.Host && forwardsTCP(slices.DeleteFunc(slices.Clone(cfg.Ports), func(p config.Forward) bool {
		return p.HostAddr.IsLoopback()
	}), sshPort)
}

// expectedPorts are those ports of the guest on which somebody is to listen: TCP, and named one by one. Of a range, or of
// all, nobody knows.
func expectedPorts(ports []config.Forward) []uint16 {
	var expected []uint16
	for _, p := range ports {
		if p.Proto == config.TCP && p.Count <= 1 && !slices.Contains(expected, p.GuestPort) {
			expected = append(expected, p.GuestPort)
		}
	}
	return expected
}

// rules translates NET_ALLOW and NET_DENY. The word gateway is both of its addresses.
func rules(from []config.NetRule) []slirp.Rule {
	var all []slirp.Rule
	for _, r := range from {
		rule := slirp.Rule{Prefix: r.Prefix, First: r.First, Last: r.Last}
		for _, p := range r.Protos {
			rule.Protos = append(rule.Protos, protos[p])
		}
		if !r.Gateway {
			all = append(all, rule)
			continue
		}
		for _, a := range []netip.Addr{slirp.GatewayAddr, slirp.GatewayAddr6} {
			rule.Prefix = netip.PrefixFrom(a, a.BitLen())
			all = append(all, rule)
		}
	}
	return all
}

// gatewayNames are the names that lead to the gateway, with those of its addresses where a rule opens something.
func gatewayNames(allow []config.NetRule) map[string][]netip.Addr {
	var open []netip.Addr
	for _, gateway := range []struct {
		addr netip.Addr
		bits int
	}{{slirp.GatewayAddr, slirp.PrefixBits}, {slirp.GatewayAddr6, slirp.PrefixBits6}} {
		opens := func(r config.NetRule) bool {
			return r.Gateway || r.Prefix.Contains(gateway.addr) && r.Prefix.Bits() >= gateway.bits
		}
		if slices.ContainsFunc(allow, opens) {
			open = append(open, gateway.addr)
		}
	}
	if open == nil {
		return nil
	}
	return map[string][]netip.Addr{hostName: open}
}

// warnRules names rules of NET_ALLOW that open nothing: within the guest's own network there is only the gateway.
func warnRules(allow []config.NetRule, log zerolog.Logger) {
	for _, r := range allow {
		for _, gateway := range []netip.Prefix{
			netip.PrefixFrom(slirp.GatewayAddr, slirp.PrefixBits), netip.PrefixFrom(slirp.GatewayAddr6, slirp.PrefixBits6),
		} {
			own := gateway.Masked()
			if r.Prefix.IsValid() && r.Prefix.Bits() >= own.Bits() && own.Contains(r.Prefix.Addr()) &&
				!r.Prefix.Contains(gateway.Addr()) {
				log.Warn().Stringer("rule", r).Stringer("network", own).
					Msg("a rule of NET_ALLOW opens nothing: it lies within the guest's own network, which has no other hosts; " +
						"remove it, or write gateway for the container's loopback")
			}
		}
	}
}

// guestNetwork is the static configuration that the guest stage applies, with the container's search domains.
func guestNetwork(resolver dns.Config) *boot.Network {
	return &boot.Network{
		Device: "eth0",
		Addresses: []boot.Address{
			{Prefix: netip.PrefixFrom(slirp.GuestAddr, slirp.PrefixBits), Gateway: slirp.GatewayAddr},
			{Prefix: netip.PrefixFrom(slirp.GuestAddr6, slirp.PrefixBits6), Gateway: slirp.GatewayAddr6},
		},
		Nameservers: []netip.Addr{slirp.DNSAddr},
		Search:      resolver.Search,
		Options:     resolver.Options,
	}
}

// containerHosts are the entries of the container's hosts file that the guest gets too: docker run --add-host, links.
func containerHosts(log zerolog.Logger) []boot.HostsEntry {
	data, err := os.ReadFile(hostsFile)
	if err != nil {
		log.Debug().Err(err).Msg("no names from the container's hosts file")
		return nil
	}
	hostname, _ := os.Hostname() // without one no entry is left out for it
	return boot.ParseHosts(data, hostname)
}
