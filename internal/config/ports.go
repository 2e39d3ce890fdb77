package config

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// maxPort is the highest port number of TCP and UDP.
const maxPort = 65535

// wordAll stands for all ports in PORTS, and for all addresses in rules.
const wordAll = "all"

// likePorts are examples for messages.
const likePorts = "22, 8080:80 or 53/udp"

// Proto is a protocol of a Forward or a NetRule.
type Proto uint8

// The protocols. ICMP has no ports and is only for rules.
const (
	TCP Proto = iota
	UDP
	ICMP
)

// String is the protocol as settings spell it.
func (p Proto) String() string {
	switch p {
	case UDP:
		return "udp"
	case ICMP:
		return "icmp"
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
	// BestEffort is for what "all" stands for: a port that cannot be had is left out.
	BestEffort bool
}

// String is the forward in compose's spelling, like 127.0.0.1:8000-8010:9000-9010/udp. TCP goes without saying.
// ParsePorts reads it back, without BestEffort.
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

// clashes says whether both forwards insist on the same port of the container. "all" gives way to ports with a name.
func (f Forward) clashes(g Forward) bool { return f.BestEffort == g.BestEffort && f.overlaps(g) }

// overlaps says whether both forwards have a port of the container in common.
func (f Forward) overlaps(g Forward) bool {
	return f.Proto == g.Proto &&
		int(f.HostPort) < g.end() && int(g.HostPort) < f.end() &&
		sameAddr(f.HostAddr, g.HostAddr)
}

// end is the container's port after the last one.
func (f Forward) end() int { return int(f.HostPort) + f.Count }

// sameAddr says whether a listener on a is in the way of one on b. An unspecified address takes its whole family.
func sameAddr(a, b netip.Addr) bool {
	if !a.IsValid() || !b.IsValid() || a == b {
		return true
	}
	return a.Is4() == b.Is4() && (a.IsUnspecified() || b.IsUnspecified())
}

// without returns the runs that are left of f when the ports of holes are taken out.
func (f Forward) without(holes []Forward) []Forward {
	var inside []Forward
	for _, hole := range holes {
		if hole.overlaps(f) {
			inside = append(inside, hole)
		}
	}
	slices.SortFunc(inside, func(a, b Forward) int { return cmp.Compare(a.HostPort, b.HostPort) })
	var left []Forward
	keep := func(first, end int) {
		if first < end {
			run := f
			run.HostPort, run.Count = uint16(first), end-first
			run.GuestPort += run.HostPort - f.HostPort
			left = append(left, run)
		}
	}
	next := int(f.HostPort)
	for _, hole := range inside {
		keep(next, int(hole.HostPort))
		next = max(next, hole.end())
	}
	keep(next, f.end())
	return left
}

// ParsePorts reads a list of forwards and exclusions, separated by blanks or commas. A forward is
//
//	[address:]port[-port][:port[-port]][/tcp|/udp|/tcp+udp]
//
// with the container's address and port first, as in compose files: 22, 8080:80, 53/udp, 5000-5010,
// 8000-8010:9000-9010, 127.0.0.1:8080:80, [::1]:443:443. One port, or range, stands for both sides; an address
// needs both sides spelled out. Ranges on both sides must be equally long.
//
//	[address:]all[/tcp|/udp|/tcp+udp]
//
// is every port, each to the same one of the guest, but for those that other forwards of the list name and those that
// the kernel hands out to the container's own connections, as proc tells, which is /proc. It is BestEffort.
//
//	~port[-port][/tcp|/udp|/tcp+udp]
//
// takes ports of the container out of the whole list, wherever it stands, at all addresses, and for both protocols
// unless it names one. It splits ranges. One that changes nothing is an error, since whoever wrote it takes a port for
// closed that is not.
//
// The result keeps the order of the items; tcp+udp gives two forwards. "" gives none. The error joins the problems of
// all items, with the place of each.
func ParsePorts(s string, proc fs.FS) ([]Forward, error) {
	forwards, errs := parsePorts(s, ephemeralPorts(proc))
	return forwards, errors.Join(errs...)
}

// A portItem is what one item of PORTS says.
type portItem struct {
	index    int // in the list
	forwards []Forward
	exclude  bool // take their ports out, instead of forwarding them
}

// parsePorts returns no forwards when there is an error.
func parsePorts(s string, ephemeral portRange) ([]Forward, []error) {
	var (
		list       = splitList(s)
		forwards   []Forward
		origins    []int // the item of the forward with the same index
		exclusions []portItem
		errs       []error
	)
	fail := func(index int, err error) { errs = append(errs, list.problem(index, err)) }
	for i, text := range list.items {
		item, err := parseItem(text)
		item.index = i
		switch {
		case err != nil:
			fail(i, err)
		case item.exclude:
			exclusions = append(exclusions, item)
		default:
			for _, f := range item.forwards {
				forwards = append(forwards, f)
				origins = append(origins, i)
			}
		}
	}
	// Before anything is taken out, and ranges fall apart: one message for each two that clash.
	for i, clash := range findClashes(forwards) {
		if clash < 0 {
			continue
		}
		f, g := forwards[i], forwards[clash]
		fail(origins[i], fmt.Errorf("host port %d/%s is already taken by %s; remove one of the two",
			max(f.HostPort, g.HostPort), f.Proto, list.name(origins[clash])))
	}
	if len(errs) > 0 {
		return nil, errs // an exclusion may have been meant for a forward that is missing now
	}
	var holes []Forward
	for _, e := range exclusions {
		takesOut := func(hole Forward) bool { return slices.ContainsFunc(forwards, hole.overlaps) }
		if !slices.ContainsFunc(e.forwards, takesOut) {
			fail(e.index, errors.New("excludes nothing that the list forwards; "+
				"remove it, or add all to forward every other port"))
		}
		holes = append(holes, e.forwards...)
	}
	if len(errs) > 0 {
		return nil, errs
	}
	var result []Forward
	for _, f := range forwards {
		result = append(result, f.without(slices.Concat(holes, givesWay(f, forwards, ephemeral)))...)
	}
	return result, nil
}

// givesWay returns what f leaves to others: nothing, unless it is an "all".
func givesWay(f Forward, forwards []Forward, ephemeral portRange) []Forward {
	if !f.BestEffort {
		return nil
	}
	left := []Forward{{Proto: f.Proto, HostPort: ephemeral.first, Count: ephemeral.count}}
	for _, other := range forwards {
		if !other.BestEffort {
			left = append(left, other)
		}
	}
	return left
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
			if forwards[b].Proto != forwards[a].Proto || int(forwards[b].HostPort) >= forwards[a].end() {
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

func parseItem(text piece) (portItem, error) {
	rest, protoText, hasProto := text.cut("/")
	rest, exclude := rest.cutPrefix("~")
	protos, parse := []Proto{TCP}, parseForward
	if exclude {
		protos, parse = []Proto{TCP, UDP}, parseExclusion
	}
	var err error
	if hasProto {
		if protos, err = parseProtos(protoText, "/tcp, /udp or /tcp+udp", TCP, UDP); err != nil {
			return portItem{}, err
		}
	}
	f, err := parse(rest)
	if err != nil {
		return portItem{}, err
	}
	item := portItem{exclude: exclude}
	for _, proto := range protos {
		f.Proto = proto
		item.forwards = append(item.forwards, f)
	}
	return item, nil
}

// parseForward reads an item without its protocol.
func parseForward(text piece) (Forward, error) {
	addr, rest, err := cutAddr(text)
	if err != nil {
		return Forward{}, err
	}
	if rest.is(wordAll) {
		return Forward{HostAddr: addr, HostPort: 1, GuestPort: 1, Count: maxPort, BestEffort: true}, nil
	}
	hostText, guestText, both := rest.cut(":")
	if hostText.is(wordAll) || guestText.is(wordAll) {
		return Forward{}, rest.errorf("all stands for both sides; write it once, like all or 127.0.0.1:all")
	}
	if !both {
		guestText = hostText
		if addr.IsValid() {
			return Forward{}, rest.errorf("an address needs both ports; write it like %s:8080:80", formatAddr(addr))
		}
	}
	host, err := parsePortRange(hostText, likePorts)
	if err != nil {
		return Forward{}, err
	}
	guest, err := parsePortRange(guestText, likePorts)
	if err != nil {
		return Forward{}, err
	}
	if host.count != guest.count {
		return Forward{}, rest.errorf("%s and %s differ in length, %d and %d; make both sides equally long",
			host, guest, host.count, guest.count)
	}
	return Forward{HostAddr: addr, HostPort: host.first, GuestPort: guest.first, Count: host.count}, nil
}

// parseExclusion reads what follows the ~, without the protocol.
func parseExclusion(text piece) (Forward, error) {
	if i := strings.IndexAny(text.text, ":["); i >= 0 {
		return Forward{}, text.from(i).errorf("an exclusion is for all addresses and has no guest port; " +
			"write ~ and ports of the container, like ~22 or ~8000-8010/udp")
	}
	ports, err := parsePortRange(text, "~22 or ~8000-8010/udp")
	return Forward{HostPort: ports.first, GuestPort: ports.first, Count: ports.count}, err
}

// parseProtos reads one or several of the protocols that are allowed, with a + between. They are returned in the
// order of the constants. like has them for messages.
func parseProtos(text piece, like string, allowed ...Proto) ([]Proto, error) {
	var protos []Proto
	for name := range strings.SplitSeq(text.text, "+") {
		i := slices.IndexFunc(allowed, func(p Proto) bool { return strings.EqualFold(p.String(), name) })
		if i < 0 || slices.Contains(protos, allowed[i]) {
			return nil, text.errorf("protocol %q is unknown; write %s", text.text, like)
		}
		protos = append(protos, allowed[i])
	}
	slices.Sort(protos)
	return protos, nil
}

// cutAddr takes the address off an item: the part in brackets, or the part before the first colon if it holds a
// dot or there are two colons. The zero Addr means that there is none.
func cutAddr(text piece) (addr netip.Addr, rest piece, err error) {
	inner, bracketed := text.cutPrefix("[")
	colons := strings.Count(text.text, ":")
	var host piece
	switch {
	case bracketed:
		var closed bool
		host, rest, closed = inner.cut("]")
		if !closed || rest.text != "" && rest.text[0] != ':' {
			return netip.Addr{}, piece{}, text.errorf("brackets hold an IPv6 address; write it like [::1]:443:443")
		}
		rest, _ = rest.cutPrefix(":")
	case colons > 2:
		return netip.Addr{}, piece{}, text.errorf("too many colons; " +
			"put an IPv6 address into brackets, like [::1]:443:443")
	default:
		host, rest, _ = text.cut(":")
		if colons < 2 && !strings.Contains(host.text, ".") {
			return netip.Addr{}, text, nil
		}
	}
	addr, err = netip.ParseAddr(host.text)
	if err != nil || bracketed && !addr.Is6() {
		return netip.Addr{}, piece{}, host.errorf("%q is not an IP address; write one like 127.0.0.1 or [::1]", host.text)
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

// parsePortRange reads port[-port]; like has examples for messages.
func parsePortRange(text piece, like string) (portRange, error) {
	firstText, lastText, isRange := text.cut("-")
	first, err := parsePort(firstText, like)
	if err != nil || !isRange {
		return portRange{first, 1}, err
	}
	last, err := parsePort(lastText, like)
	if err != nil {
		return portRange{}, err
	}
	if last < first {
		return portRange{}, text.errorf("range %s runs backwards; write %d-%d", text.text, last, first)
	}
	return portRange{first, int(last) - int(first) + 1}, nil
}

func parsePort(text piece, like string) (uint16, error) {
	if text.text == "" {
		return 0, text.errorf("a port is missing; write it like %s", like)
	}
	if i := strings.IndexFunc(text.text, func(r rune) bool { return !isDigit(r) }); i >= 0 {
		return 0, text.from(i).errorf("%q is not a port; write a number, like %s", text.text, like)
	}
	n, err := strconv.ParseUint(text.text, 10, 16)
	if err != nil || n == 0 {
		return 0, text.errorf("port %s is not between 1 and %d", text.text, maxPort)
	}
	return uint16(n), nil
}

func isDigit(r rune) bool { return '0' <= r && r <= '9' }

// defaultLocalPorts is the kernel's own ip_local_port_range, 32768 to 60999.
var defaultLocalPorts = portRange{32768, 60999 - 32768 + 1}

// ephemeralPorts are those that the kernel gives to outgoing connections that ask for none; see ip_local_port_range in
// ip(7). A forward on one of them would take it from the container, and from the guest, whose connections leave
// through the container's sockets.
func ephemeralPorts(proc fs.FS) portRange {
	data, err := fs.ReadFile(proc, "sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return defaultLocalPorts
	}
	var first, last uint16
	if _, err := fmt.Sscan(string(data), &first, &last); err != nil || first == 0 || last < first {
		return defaultLocalPorts
	}
	return portRange{first, int(last) - int(first) + 1}
}
