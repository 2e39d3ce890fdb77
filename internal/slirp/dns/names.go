package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// ownTTL is how long, in seconds, an answer of ours may be kept.
const ownTTL = 60

// names are those that the relay answers itself, without the root's dot and in lower case.
type names struct {
	addrs   map[string][]netip.Addr
	reverse map[string][]string // names of addresses
}

func newNames(hosts map[string][]netip.Addr) names {
	n := names{addrs: make(map[string][]netip.Addr), reverse: make(map[string][]string)}
	for name, addrs := range hosts {
		if !isDomain(name) {
			continue
		}
		for _, a := range addrs {
			a = a.Unmap()
			n.addrs[name] = append(n.addrs[name], a)
			n.reverse[reverseName(a)] = append(n.reverse[reverseName(a)], name)
		}
	}
	for _, names := range n.reverse {
		slices.Sort(names) // the order of a map is random
	}
	return n
}

// reverseName is the name with which an address's names are asked for (RFC 1035 section 3.5, RFC 3596 section 2.5).
func reverseName(a netip.Addr) string {
	var b strings.Builder
	bytes := a.AsSlice()
	for _, c := range slices.Backward(bytes) {
		if a.Is4() {
			fmt.Fprintf(&b, "%d.", c)
		} else {
			fmt.Fprintf(&b, "%x.%x.", c&0xf, c>>4)
		}
	}
	if a.Is4() {
		return b.String() + "in-addr.arpa"
	}
	return b.String() + "ip6.arpa"
}

// answer returns the answer to a query for one of the names, or nil. What the name does not have is answered with
// nothing: it exists.
func (n names) answer(q *query) []byte {
	if !q.asks || q.header.OpCode != 0 || q.question.Class != dnsmessage.ClassINET {
		return nil
	}
	name := lower(q.question.Name)
	addrs, forward := n.addrs[name]
	hosts, reverse := n.reverse[name]
	if !forward && !reverse {
		return nil
	}
	var answers []dnsmessage.Resource
	add := func(body dnsmessage.ResourceBody) {
		h := dnsmessage.ResourceHeader{Name: q.question.Name, Class: dnsmessage.ClassINET, TTL: ownTTL}
		answers = append(answers, dnsmessage.Resource{Header: h, Body: body})
	}
	for _, a := range addrs {
		switch {
		case a.Is4() && q.question.Type == dnsmessage.TypeA:
			add(&dnsmessage.AResource{A: a.As4()})
		case a.Is6() && q.question.Type == dnsmessage.TypeAAAA:
			add(&dnsmessage.AAAAResource{AAAA: a.As16()})
		}
	}
	if q.question.Type == dnsmessage.TypePTR {
		for _, host := range hosts {
			add(&dnsmessage.PTRResource{PTR: dnsmessage.MustNewName(host + ".")}) // a domain is never too long
		}
	}
	return q.reply(dnsmessage.Header{Authoritative: true}, answers)
}
