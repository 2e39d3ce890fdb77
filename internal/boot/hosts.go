package boot

import (
	"bytes"
	"net/netip"
	"strings"
)

// maxHostsBytes bounds what is read of a hosts file: the guest stage's tmpfs for such files has 1 MiB.
const maxHostsBytes = 512 << 10

// HostsEntry is a line of hosts(5).
type HostsEntry struct {
	Addr  netip.Addr `json:"addr"`
	Names []string   `json:"names"`
}

// ParseHosts reads the text of the container's hosts(5) for what holds in the guest too, such as what docker run
// --add-host and links write there. It leaves out what is about the container itself: the loopback, addresses of a link,
// the ip6-… names that every system has, and the entries of the container's own host name.
func ParseHosts(data []byte, hostname string) []HostsEntry {
	if len(data) > maxHostsBytes {
		data = data[:maxHostsBytes]
		data = data[:bytes.LastIndexByte(data, '\n')+1]
	}
	var entries []HostsEntry
	for line := range strings.Lines(string(data)) {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		addr, err := netip.ParseAddr(fields[0])
		if err != nil || addr.Zone() != "" || addr.Unmap().IsLoopback() {
			continue
		}
		if names, own := hostNames(fields[1:], hostname); !own && len(names) > 0 {
			entries = append(entries, HostsEntry{Addr: addr.Unmap(), Names: names})
		}
	}
	return entries
}

// hostNames returns the names that are worth passing on, and whether hostname is among them.
func hostNames(names []string, hostname string) (worth []string, own bool) {
	for _, name := range names {
		switch {
		case strings.EqualFold(name, hostname):
			return nil, true
		case strings.EqualFold(name, "localhost"), strings.HasPrefix(name, "ip6-"):
		case strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }):
			// Nothing odd ends up in a file of the guest's.
		default:
			worth = append(worth, name)
		}
	}
	return worth, false
}
