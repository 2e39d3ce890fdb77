//go:build linux

package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"docker-usermode-linux/internal/boot"
)

// setUpNetwork brings lo up and, unless n is nil, the NIC.
func setUpNetwork(n *boot.Network) error {
	// Lets every user ping: ping(8) on hostfs has no file capability. A kernel without IPv4 has no such file.
	err := writeSysctl("ipv4/ping_group_range", "0 2147483647")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	defer nl.Close()
	lo, err := nl.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := nl.LinkSetUp(lo); err != nil { // its addresses come by themselves
		return fmt.Errorf("set lo up: %w", err)
	}
	if n == nil {
		return nil
	}
	return setUpNIC(nl, *n)
}

func setUpNIC(nl *netlink.Handle, n boot.Network) error {
	nic, err := findNIC(nl)
	if err != nil {
		return err
	}
	if name := nic.Attrs().Name; name != n.Device {
		if err := nl.LinkSetDown(nic); err != nil {
			return fmt.Errorf("set %s down: %w", name, err)
		}
		if err := nl.LinkSetName(nic, n.Device); err != nil {
			return fmt.Errorf("rename %s to %s: %w", name, n.Device, err)
		}
	}
	// The kernel announces the address by itself when the NIC comes up: the host side takes the first frame as a sign
	// that the guest can be reached. So the address has to be there before.
	if err := writeSysctl("ipv4/conf/"+n.Device+"/arp_notify", "1"); err != nil {
		return err
	}
	if err := nl.AddrAdd(nic, &netlink.Addr{IPNet: ipNet(n.Address)}); err != nil {
		return fmt.Errorf("add address %s to %s: %w", n.Address, n.Device, err)
	}
	if err := nl.LinkSetUp(nic); err != nil {
		return fmt.Errorf("set %s up: %w", n.Device, err)
	}
	if !n.Gateway.IsValid() {
		return nil
	}
	route := &netlink.Route{LinkIndex: nic.Attrs().Index, Gw: n.Gateway.AsSlice()}
	if !n.Address.Contains(n.Gateway) {
		route.Flags = int(netlink.FLAG_ONLINK)
	}
	if err := nl.RouteAdd(route); err != nil {
		return fmt.Errorf("add default route through %s: %w", n.Gateway, err)
	}
	return nil
}

// findNIC returns the first Ethernet interface that a device is behind: UML calls it vec0, virtio eth0. Virtual ones
// (dummy0, bond0, gretap0 …) have none.
func findNIC(nl *netlink.Handle) (netlink.Link, error) {
	links, err := nl.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list network interfaces: %w", err)
	}
	for _, link := range links {
		attrs := link.Attrs()
		if attrs.EncapType != "ether" || attrs.Flags&net.FlagLoopback != 0 {
			continue
		}
		if _, err := os.Stat("/sys/class/net/" + attrs.Name + "/device"); err == nil {
			return link, nil
		}
	}
	return nil, errors.New("the kernel has no Ethernet device: is a vec0: argument missing?")
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// writeSysctl writes a setting below /proc/sys/net.
func writeSysctl(name, value string) error {
	return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0)
}
