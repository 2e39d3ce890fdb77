//go:build linux

package main

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"docker-usermode-linux/internal/boot"
	"docker-usermode-linux/internal/netnstest"
)

// TestConfigureWithoutIPv6 checks that a guest without IPv6 (ipv6.disable_ipv6=1) still gets IPv4, and one with it both.
func TestConfigureWithoutIPv6(t *testing.T) {
	if !netnstest.Inside(t) {
		return
	}
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	for _, c := range []struct {
		name, disable string
		want          []string
	}{
		{"on0", "0", []string{"10.0.2.15/24", "fd00::15/64"}},
		{"off0", "1", []string{"10.0.2.15/24"}},
	} {
		if err := writeSysctl("ipv6/conf/default/disable_ipv6", c.disable); err != nil {
			t.Skipf("this host has no IPv6 to switch off: %v", err)
		}
		nic := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: c.name}, PeerName: "peer"}
		if err := nl.LinkAdd(nic); err != nil {
			t.Skipf("no network interface to be had: %v", err)
		}
		if err := configure(nl, nic, boot.Network{Device: c.name, Addresses: []boot.Address{
			{Prefix: netip.MustParsePrefix("fd00::15/64"), Gateway: netip.MustParseAddr("fd00::2")},
			{Prefix: netip.MustParsePrefix("10.0.2.15/24"), Gateway: netip.MustParseAddr("10.0.2.2")},
		}}); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		link, err := net.InterfaceByName(c.name)
		if err != nil {
			t.Fatal(err)
		}
		addrs, err := link.Addrs()
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, a := range addrs {
			if !strings.HasPrefix(a.String(), "fe80:") {
				got = append(got, a.String())
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, c.want) {
			t.Errorf("%s has %v, want %v", c.name, got, c.want)
		}
		routes, err := nl.RouteList(nic, netlink.FAMILY_ALL)
		if err != nil {
			t.Fatal(err)
		}
		gateways := 0
		for _, r := range routes {
			if r.Gw != nil {
				gateways++
			}
		}
		if gateways != len(c.want) {
			t.Errorf("%s has %d default routes, want %d: %v", c.name, gateways, len(c.want), routes)
		}
		if err := nl.LinkDel(nic); err != nil {
			t.Fatal(err)
		}
	}
}
