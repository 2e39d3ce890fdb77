package config

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Source is what the guest takes for the client of a forwarded port.
type Source uint8

// The sources.
const (
	// SourceClient is the client's own address.
	SourceClient Source = iota
	// SourceGateway is the gateway's address.
	SourceGateway
	// SourceProxy is the gateway's address, too, and a PROXY protocol header before the data has the client's.
	SourceProxy
)

// String is the source as PORTS_SOURCE spells it.
func (s Source) String() string {
	switch s {
	case SourceGateway:
		return "gateway"
	case SourceProxy:
		return "proxy"
	}
	return "client"
}

// NetRule names addresses and ports outside of the guest, for NET_ALLOW and NET_DENY.
type NetRule struct {
	// Protos that the rule is for, in the order of the constants. Empty means all.
	Protos []Proto
	// Gateway says that the rule is for the container's loopback, which the guest reaches at the gateway's address.
	Gateway bool
	// Prefix holds the addresses, with no bit set below it; an IPv4 address is never written as IPv6. It is invalid when
	// Gateway is set.
	Prefix netip.Prefix
	// First and Last port. Both are 0 when there was none: the rule is for all ports, and for ICMP if Protos allow it.
	First, Last uint16
}

// String is the rule as settings spell it. ParseNetRules reads it back.
func (r NetRule) String() string {
	var b strings.Builder
	switch {
	case r.Gateway:
		b.WriteString(wordGateway)
	case r.Prefix.Addr().Is4():
		b.WriteString(r.Prefix.String())
	default:
		b.WriteString("[" + r.Prefix.String() + "]")
	}
	if r.First != 0 {
		b.WriteString(":" + portRange{r.First, int(r.Last) - int(r.First) + 1}.String())
	}
	separator := "/"
	for _, proto := range r.Protos {
		b.WriteString(separator + proto.String())
		separator = "+"
	}
	return b.String()
}

// wordGateway stands for the container's loopback in a rule.
const wordGateway = "gateway"

// Examples for messages.
const (
	likeRulePorts  = ":443 or :8000-8010"
	likeRuleProtos = "/tcp, /udp, /icmp or several, like /tcp+udp"
	likeRuleAddrs  = "10.0.0.0/8, fd00::/8, gateway or all"
)

var (
	allIPv4 = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	allIPv6 = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
)

// ParseNetRules reads a list of rules, separated by blanks or commas. A rule is
//
//	address[/bits][:port[-port]][/protocol[+protocol]...]
//
// with tcp, udp and icmp for protocols: 10.0.0.0/8, 192.0.2.1:443/tcp, 192.0.2.0/24:8000-8010, 192.0.2.1/icmp. IPv6
// needs brackets before a port, around all of the prefix: fd00::/8, [fd00::/8]:443/tcp. In the place of the address,
// the word gateway is the container's loopback, and all is every address, which gives two rules. "" gives none. The
// error joins the problems of all rules, with the place of each.
func ParseNetRules(s string) ([]NetRule, error) {
	rules, errs := parseNetRules(s)
	return rules, errors.Join(errs...)
}

// parseNetRules returns no rules when there is an error.
func parseNetRules(s string) (rules []NetRule, errs []error) {
	list := splitList(s)
	for i, text := range list.items {
		parsed, err := parseNetRule(text)
		if err != nil {
			errs = append(errs, list.problem(i, err))
			continue
		}
		rules = append(rules, parsed...)
	}
	if len(errs) > 0 {
		return nil, errs
	}
	return rules, nil
}

func parseNetRule(text piece) ([]NetRule, error) {
	host, rest, err := cutPrefixText(text)
	if err != nil {
		return nil, err
	}
	var rule NetRule
	prefixes := []netip.Prefix{{}}
	switch {
	case host.is(wordGateway):
		rule.Gateway = true
	case host.is(wordAll):
		prefixes = []netip.Prefix{allIPv4, allIPv6}
	default:
		if prefixes[0], err = parsePrefix(host); err != nil {
			return nil, err
		}
	}
	rest, protoText, hasProto := rest.cut("/")
	if hasProto {
		if rule.Protos, err = parseProtos(protoText, likeRuleProtos, TCP, UDP, ICMP); err != nil {
			return nil, err
		}
	}
	if portText, hasPorts := rest.cutPrefix(":"); hasPorts {
		ports, err := parsePortRange(portText, likeRulePorts)
		if err != nil {
			return nil, err
		}
		if n := len(rule.Protos); n > 0 && rule.Protos[n-1] == ICMP {
			return nil, rest.errorf("icmp has no ports; leave %s out, or write /tcp or /udp", rest.text)
		}
		rule.First, rule.Last = ports.first, uint16(int(ports.first)+ports.count-1)
	}
	var rules []NetRule
	for _, prefix := range prefixes {
		rule.Prefix = prefix
		rules = append(rules, rule)
	}
	return rules, nil
}

// cutPrefixText takes address[/bits] off a rule. What is left is empty or begins with a colon or a slash.
func cutPrefixText(text piece) (prefix, rest piece, err error) {
	if inner, bracketed := text.cutPrefix("["); bracketed {
		prefix, rest, closed := inner.cut("]")
		switch {
		case !closed, !strings.Contains(prefix.text, ":"), rest.text != "" && !strings.ContainsAny(rest.text[:1], ":/"):
			err = text.errorf("brackets hold an IPv6 address; write it like [fd00::/8]:443")
		case len(rest.text) > 1 && isDigit(rune(rest.text[1])) && rest.text[0] == '/':
			err = rest.errorf("the length of the prefix belongs into the brackets; write it like [fd00::/8]:443")
		}
		return prefix, rest, err
	}
	addr, _, _ := text.cut("/")
	isIPv6 := strings.Count(addr.text, ":") > 1
	if !isIPv6 {
		addr, _, _ = addr.cut(":")
	}
	end := len(addr.text)
	if bits, found := text.from(end).cutPrefix("/"); found && bits.text != "" && isDigit(rune(bits.text[0])) {
		end = len(text.text)
		if i := strings.IndexAny(bits.text, ":/"); i >= 0 {
			end = bits.at - text.at + i
		}
	}
	prefix, rest = text.to(end), text.from(end)
	if isIPv6 && strings.HasPrefix(rest.text, ":") {
		err = rest.errorf("a port after an IPv6 address needs brackets; write [%s]%s", prefix.text, rest.text)
	}
	return prefix, rest, err
}

// parsePrefix reads address[/bits].
func parsePrefix(text piece) (netip.Prefix, error) {
	addrText, bitsText, hasBits := text.cut("/")
	if addrText.is(wordGateway) || addrText.is(wordAll) {
		return netip.Prefix{}, bitsText.errorf("%s stands without a prefix; leave /%s out", addrText.text, bitsText.text)
	}
	addr, err := netip.ParseAddr(addrText.text)
	switch {
	case err != nil:
		return netip.Prefix{}, addrText.errorf("%q is not an IP address; write %s", addrText.text, likeRuleAddrs)
	case addr.Zone() != "":
		return netip.Prefix{}, addrText.errorf("a rule has no zone; write %s", addr.WithZone(""))
	}
	bits := addr.BitLen()
	if hasBits {
		n, err := strconv.ParseUint(bitsText.text, 10, 16)
		if err != nil || int(n) > bits {
			return netip.Prefix{}, bitsText.errorf("%q is not the length of a prefix; write /0 to /%d", bitsText.text, bits)
		}
		bits = int(n)
	}
	prefix := netip.PrefixFrom(addr, bits)
	if masked := prefix.Masked(); masked != prefix {
		return netip.Prefix{}, addrText.errorf("%s is an address within %s; write %s, or %s alone",
			addr, masked, masked, addr)
	}
	if addr.Is4In6() { // more than its first 96 bits, or it would have been masked
		prefix = netip.PrefixFrom(addr.Unmap(), bits-96)
	}
	return prefix, nil
}

// parseNetwork reads the settings of the network into c. check takes note of what is wrong with a value.
func (env environment) parseNetwork(c *Config, check func(name, value string, errs ...error)) {
	var (
		err   error
		errs  []error
		names = c.Options.Names
	)
	c.Net, err = parseNet(cmp.Or(env.Net, defaultNet))
	check("NET", env.Net, err)
	ports := ""
	switch {
	case env.Ports != nil:
		ports = *env.Ports
	case c.Net:
		ports = defaultPorts
	}
	c.Ports, errs = parsePorts(ports, ephemeralPorts(os.DirFS("/proc")))
	check("PORTS", ports, errs...)
	c.PortsSource, err = parseSource(cmp.Or(env.PortsSource, defaultSource))
	check("PORTS_SOURCE", env.PortsSource, err)
	c.NetAllow, errs = parseNetRules(env.NetAllow)
	check("NET_ALLOW", env.NetAllow, errs...)
	c.NetDeny, errs = parseNetRules(env.NetDeny)
	check("NET_DENY", env.NetDeny, errs...)
	c.NetMTU, err = parseMTU(cmp.Or(env.NetMTU, defaultMTU))
	check("NET_MTU", env.NetMTU, err)
	if env.NetPcap != "" {
		c.NetPcap, err = parsePath(env.NetPcap)
		check("NET_PCAP", env.NetPcap, err)
	}
	if env.NetMetrics != "" {
		c.NetMetrics, err = parseMetrics(env.NetMetrics)
		check("NET_METRICS", env.NetMetrics, err)
		if f, ok := c.metricsClash(); ok {
			check("NET_METRICS", env.NetMetrics, fmt.Errorf("%s=%q forwards %s from the same port; "+
				"choose another one here, or add ~%d/tcp to %[1]s", names.Of("PORTS"), ports, f, c.NetMetrics.Port()))
		}
	}
	if c.Net {
		return
	}
	for _, other := range []struct{ name, value string }{
		{"PORTS", ports},
		{"NET_ALLOW", env.NetAllow},
		{"NET_DENY", env.NetDeny},
		{"NET_MTU", env.NetMTU},
		{"NET_PCAP", env.NetPcap},
		{"NET_METRICS", env.NetMetrics},
	} {
		if other.value != "" {
			check("NET", env.Net, fmt.Errorf("a guest without a network has no use for %s=%q; unset one of the two",
				names.Of(other.name), other.value))
		}
	}
}

// metricsClash returns the forward that insists on the port of the metrics. "all" leaves it out: it is taken by then.
func (c Config) metricsClash() (Forward, bool) {
	at := Forward{Proto: TCP, HostAddr: c.NetMetrics.Addr(), HostPort: c.NetMetrics.Port(), Count: 1}
	i := slices.IndexFunc(c.Ports, at.clashes)
	if at.HostPort == 0 || i < 0 {
		return Forward{}, false
	}
	return c.Ports[i], true
}

func parseNet(s string) (bool, error) {
	on, err := parseOnOff(s)
	if err != nil {
		return true, errors.New("neither on nor off; write off for a guest without a network")
	}
	return on, nil
}

// parseOnOff reads a setting that is on or off.
func parseOnOff(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "on":
		return true, nil
	case "off":
		return false, nil
	}
	return false, errors.New("neither on nor off")
}

func parseSource(s string) (Source, error) {
	for _, source := range []Source{SourceClient, SourceGateway, SourceProxy} {
		if strings.EqualFold(s, source.String()) {
			return source, nil
		}
	}
	return SourceClient, errors.New("not a source; write client, gateway or proxy")
}

// The bounds of an MTU in bytes: every link has to carry IPv6's minimum (RFC 8200, section 5), and a packet of IPv4 has
// at most 65,535, of which the last 15 are left out as others do, for headers that are multiples of 4 and 8.
const (
	minMTU = 1280
	maxMTU = 65520
)

func parseMTU(s string) (int, error) {
	mtu, err := strconv.Atoi(s)
	if err != nil {
		return 0, fmt.Errorf("not a number of bytes; write %s, or what the way to the outside carries", defaultMTU)
	}
	if mtu < minMTU || mtu > maxMTU {
		return 0, fmt.Errorf("write %d to %d", minMTU, maxMTU)
	}
	return mtu, nil
}

// parseMetrics reads [address]:port. The zero Addr means all addresses.
func parseMetrics(s string) (netip.AddrPort, error) {
	const like = ":9100, 127.0.0.1:9100 or [::1]:9100"
	host, portText, err := net.SplitHostPort(s)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("not an address and a port; write them like %s", like)
	}
	port, err := parsePort(piece{text: portText}, like)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if host == "" {
		return netip.AddrPortFrom(netip.Addr{}, port), nil
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q is not an IP address; write it like %s", host, like)
	}
	return netip.AddrPortFrom(addr.Unmap(), port), nil
}

// formatMetrics is the inverse of parseMetrics.
func formatMetrics(a netip.AddrPort) string {
	switch {
	case a.Port() == 0:
		return "off"
	case !a.Addr().IsValid():
		return fmt.Sprintf(":%d", a.Port())
	}
	return a.String()
}
