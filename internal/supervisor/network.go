package supervisor

import (
	"net/netip"

	"docker-usermode-linux/internal/boot"
	"docker-usermode-linux/internal/config"
	"docker-usermode-linux/internal/slirp"
	"docker-usermode-linux/internal/slirp/dns"
)

// forwards spreads the port ranges of PORTS into one entry per port.
func forwards(ports []config.Forward) []slirp.Forward {
	var all []slirp.Forward
	for _, p := range ports {
		proto := slirp.TCP
		if p.Proto == config.UDP {
			proto = slirp.UDP
		}
		for i := range uint16(p.Count) {
			all = append(all, slirp.Forward{
				Proto: proto,
				Host:  netip.AddrPortFrom(p.HostAddr, p.HostPort+i),
				Guest: p.GuestPort + i,
			})
		}
	}
	return all
}

// guestNetwork is the static configuration that the guest stage applies, with the container's search domains.
func guestNetwork(resolver dns.Config) *boot.Network {
	return &boot.Network{
		Device:      "eth0",
		Address:     netip.PrefixFrom(slirp.GuestAddr, slirp.PrefixBits),
		Gateway:     slirp.GatewayAddr,
		Nameservers: []netip.Addr{slirp.DNSAddr},
		Search:      resolver.Search,
		Options:     resolver.Options,
	}
}
