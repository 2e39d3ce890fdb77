package config

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// maxPort is the highest port number of TCP and UDP.
const maxPort = 65535

// Proto is the transport protocol of a Forward.
type Proto uint8

// The protocols that can be forwarded.
const (
	TCP Proto = iota
	UDP
)

// String is the protocol as PORTS spells it.
func (p Proto) String() string {
	if p == UDP {
		return "udp"
	}
	return "tcp"
}

// Forward leads one port of the container, or a run of them, to the guest.
type Forward struct {
	Proto Proto
	// HostAddr is the container's address that listens. The zero Addr means all of them, IPv4 and IPv6.
	HostAddr netip.Addr
	// HostPort and GuestPort are the first ports of the run, 1 to 65535.
	HostPort, GuestPort uint16
	// Count is the number of consecutive ports, at least 1. The last one of either side is at most 65535.
	Count int
}

// String is the forward in compose's spelling, like 127.0.0.1:8000-8010:9000-9010/udp. TCP goes without saying.
// ParsePorts reads it back.
func (f Forward) String() string {
	var b strings.Builder
	if f.HostAddr.IsValid() {
		b.WriteString(formatAddr(f.HostAddr) + ":")
	}
	b.WriteString(portRange{f.HostPort, f.Count}.String())
	b.WriteByte(':')
	b.WriteString(portRange{f.GuestPort, f.Count}.String())
	if f.Proto != TCP {
		b.WriteString("/" + f.Proto.String())
	}
	return b.String()
}

// formatAddr puts IPv6 addresses into brackets, since colons separate the parts of a forward.
func formatAddr(addr netip.Addr) string {
	if addr.Is4() {
		return addr.String()
	}
	return "[" + addr.String() + "]"
}

// clashes says whether both forwards want the same port of the container.
func (f Forward) clashes(g Forward) bool {
	return f.Proto == g.Proto &&
		int(f.HostPort) < int(g.HostPort)+g.Count && int(g.HostPort) < int(f.HostPort)+f.Count &&
		sameAddr(f.HostAddr, g.HostAddr)
}

// sameAddr says whether a listener on a is in the way of one on b. An unspecified address takes its whole family.
func sameAddr(a, b netip.Addr) bool {
	if !a.IsValid() || !b.IsValid() || a == b {
		return true
	}
	return a.Is4() == b.Is4() && (a.IsUnspecified() || b.IsUnspecified())
}

// ParsePorts reads a list of forwards, separated by blanks or commas. An item is
//
//	[address:]port[-port][:port[-port]][/tcp|/udp|/tcp+udp]
//
// with the container's address and port first, as in compose files: 22, 8080:80, 53/udp, 5000-5010,
// 8000-8010:9000-9010, 127.0.0.1:8080:80, [::1]:443:443. One port, or range, stands for both sides; an address
// needs both sides spelled out. Ranges on both sides must be equally long. The result keeps the order of the
// items; tcp+udp gives two forwards. "" gives none. The error joins the problems of all items.
func ParsePorts(s string) ([]Forward, error) {
	forwards, errs := parsePorts(s)
	return forwards, errors.Join(errs...)
}

// A portItem is one item of a list, and where it stands.
type portItem struct {
	text     string
	position int // from 1
}

// parsePorts returns no forwards when there is an error.
func parsePorts(s string) ([]Forward, []error) {
	items := strings.FieldsFunc(s, func(r rune) bool { return r == ',' || unicode.IsSpace(r) })
	var (
		forwards []Forward
		origins  []portItem // of the forward with the same index
		errs     []error
	)
	fail := func(item portItem, err error) {
		if len(items) > 1 {
			err = fmt.Errorf("item %d, %q: %w", item.position, item.text, err)
		}
		errs = append(errs, err)
	}
	for i, text := range items {
		item := portItem{text, i + 1}
		parsed, err := parseItem(text)
		if err != nil {
			fail(item, err)
			continue
		}
		for _, f := range parsed {
			forwards = append(forwards, f)
			origins = append(origins, item)
		}
	}
	for i, clash := range findClashes(forwards) {
		if clash < 0 {
			continue
		}
		first, f := origins[clash], forwards[i]
		port := max(f.HostPort, forwards[clash].HostPort)
		fail(origins[i], fmt.Errorf("host port %d/%s is already taken by item %d, %q; remove one of the two",
			port, f.Proto, first.position, first.text))
	}
	if len(errs) > 0 {
		return nil, errs
	}
	return forwards, nil
}

// findClashes gives for every forward the index of an earlier one that it clashes with, or -1. Sorting by port
// spares a long list the comparison of every pair.
func findClashes(forwards []Forward) []int {
	clashes := make([]int, len(forwards))
	order := make([]int, len(forwards))
	for i := range order {
		clashes[i], order[i] = -1, i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(forwards[a].Proto, forwards[b].Proto),
			cmp.Compare(forwards[a].HostPort, forwards[b].HostPort))
	})
	for at, a := range order {
		for _, b := range order[at+1:] {
			if forwards[b].Proto != forwards[a].Proto ||
				int(forwards[b].HostPort) >= int(forwards[a].HostPort)+forwards[a].Count {
				break
			}
			if forwards[a].clashes(forwards[b]) {
				if later, earlier := max(a, b), min(a, b); clashes[later] < 0 {
					clashes[later] = earlier
				}
			}
		}
	}
	return clashes
}

func parseItem(text string) ([]Forward, error) {
	rest, protoName, hasProto := strings.Cut(text, "/")
	protos := []Proto{TCP}
	if hasProto {
		switch strings.ToLower(protoName) {
		case "tcp":
		case "udp":
			protos = []Proto{UDP}
		case "tcp+udp", "udp+tcp":
			protos = []Proto{TCP, UDP}
		default:
			return nil, fmt.Errorf("protocol %q is unknown; write /tcp, /udp or /tcp+udp", protoName)
		}
	}
	addr, rest, err := cutAddr(rest)
	if err != nil {
		return nil, err
	}
	hostText, guestText, both := strings.Cut(rest, ":")
	if !both {
		guestText = hostText
		if addr.IsValid() {
			return nil, fmt.Errorf("an address needs both ports; write it like %s:8080:80", formatAddr(addr))
		}
	}
	host, err := parsePortRange(hostText)
	if err != nil {
		return nil, err
	}
	guest, err := parsePortRange(guestText)
	if err != nil {
		return nil, err
	}
	if host.count != guest.count {
		return nil, fmt.Errorf("%s and %s differ in length, %d and %d; make both sides equally long",
			host, guest, host.count, guest.count)
	}
	var forwards []Forward
	for _, proto := range protos {
		forwards = append(forwards, Forward{
			Proto: proto, HostAddr: addr, HostPort: host.first, GuestPort: guest.first, Count: host.count,
		})
	}
	return forwards, nil
}

// cutAddr takes the address off an item: the part in brackets, or the part before the first colon if it holds a
// dot or there are two colons. The zero Addr means that there is none.
func cutAddr(text string) (addr netip.Addr, rest string, err error) {
	inner, bracketed := strings.CutPrefix(text, "[")
	colons := strings.Count(text, ":")
	var host string
	switch {
	case bracketed:
		var closed bool
		host, rest, closed = strings.Cut(inner, "]")
		if !closed || rest != "" && rest[0] != ':' {
			return netip.Addr{}, "", errors.New("brackets hold an IPv6 address; write it like [::1]:443:443")
		}
		rest = strings.TrimPrefix(rest, ":")
	case colons > 2:
		return netip.Addr{}, "", errors.New("too many colons; put an IPv6 address into brackets, like [::1]:443:443")
	default:
		host, rest, _ = strings.Cut(text, ":")
		if colons < 2 && !strings.Contains(host, ".") {
			return netip.Addr{}, text, nil
		}
	}
	addr, err = netip.ParseAddr(host)
	if err != nil || bracketed && !addr.Is6() {
		return netip.Addr{}, "", fmt.Errorf("%q is not an IP address; write one like 127.0.0.1 or [::1]", host)
	}
	return addr.Unmap(), rest, nil
}

// A portRange is count consecutive ports.
type portRange struct {
	first uint16
	count int
}

func (r portRange) String() string {
	if r.count == 1 {
		return strconv.Itoa(int(r.first))
	}
	return fmt.Sprintf("%d-%d", r.first, int(r.first)+r.count-1)
}

func parsePortRange(s string) (portRange, error) {
	firstText, lastText, isRange := strings.Cut(s, "-")
	first, err := parsePort(firstText)
	if err != nil || !isRange {
		return portRange{first, 1}, err
	}
	last, err := parsePort(lastText)
	if err != nil {
		return portRange{}, err
	}
	if last < first {
		return portRange{}, fmt.Errorf("range %s runs backwards; write %d-%d", s, last, first)
	}
	return portRange{first, int(last) - int(first) + 1}, nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	switch {
	case s == "":
		return 0, errors.New("a port is missing; write it like 22, 8080:80 or 53/udp")
	case errors.Is(err, strconv.ErrSyntax):
		return 0, fmt.Errorf("%q is not a port; write a number, like 22, 8080:80 or 53/udp", s)
	case err != nil, n < 1, n > maxPort:
		return 0, fmt.Errorf("port %s is not between 1 and %d", s, maxPort)
	}
	return uint16(n), nil
}
