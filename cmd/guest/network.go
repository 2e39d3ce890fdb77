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
	return configure(nl, nic, n)
}

// configure gives the NIC its addresses and routes, and brings it up. What goes wrong with IPv6, which a kernel argument
// may have switched off (ipv6.disable_ipv6=1), is noted, and costs IPv6 alone.
func configure(nl *netlink.Handle, nic netlink.Link, n boot.Network) error {
	// The gateway's router advertisements are for userlands that ask for them; here they would only make a second
	// address.
	err := writeSysctl("ipv6/conf/"+n.Device+"/accept_ra", "0")
	noIPv6 := err != nil
	if !errors.Is(err, os.ErrNotExist) { // a kernel without, or with ipv6.disable=1
		noteErr("no IPv6: %w", err)
	}
	for _, a := range n.Addresses {
		if a.Prefix.Addr().Is6() && noIPv6 {
			continue
		}
		err := addAddress(nl, nic, a.Prefix)
		if err != nil && a.Prefix.Addr().Is6() {
			note(fmt.Errorf("no IPv6: %w", err))
			noIPv6 = true
			continue
		}
		if err != nil {
			return err
		}
	}
	if err := nl.LinkSetUp(nic); err != nil {
		return fmt.Errorf("set %s up: %w", n.Device, err)
	}
	for _, a := range n.Addresses {
		if !a.Gateway.IsValid() || a.Gateway.Is6() && noIPv6 {
			continue
		}
		err := addDefaultRoute(nl, nic, a)
		if err != nil && a.Gateway.Is6() {
			note(fmt.Errorf("no IPv6 to the outside: %w", err))
			continue
		}
		if err != nil {
			return err
		}
	}
	for _, a := range n.Addresses {
		if a.Gateway.Is4() {
			noteErr("ask for the gateway: %w", askFor(nl, nic, a.Gateway))
		}
	}
	return nil
}

// askFor has the kernel ask who has an address, as if there were something to send to it. The host side takes the guest's
// first frame as a sign that it can be reached: so it is sent when that is true, routes included. Without them the guest
// drops what comes, and the first client waits a second for its retransmission.
func askFor(nl *netlink.Handle, nic netlink.Link, addr netip.Addr) error {
	return nl.NeighSet(&netlink.Neigh{ // which takes one that is there already
		LinkIndex: nic.Attrs().Index, Family: unix.AF_INET, IP: addr.AsSlice(), Flags: unix.NTF_USE,
	})
}

func addAddress(nl *netlink.Handle, nic netlink.Link, prefix netip.Prefix) error {
	addr := &netlink.Addr{IPNet: ipNet(prefix)}
	if prefix.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD // nobody else is on this link
	}
	if err := nl.AddrAdd(nic, addr); err != nil {
		return fmt.Errorf("add address %s: %w", prefix, err)
	}
	return nil
}

func addDefaultRoute(nl *netlink.Handle, nic netlink.Link, a boot.Address) error {
	route := &netlink.Route{LinkIndex: nic.Attrs().Index, Gw: a.Gateway.AsSlice()}
	if !a.Prefix.Contains(a.Gateway) {
		route.Flags = int(netlink.FLAG_ONLINK)
	}
	if err := nl.RouteAdd(route); err != nil {
		return fmt.Errorf("add default route through %s: %w", a.Gateway, err)
	}
	return nil
}

// findNIC returns the first Ethernet interface that a device is behind: virtio's eth0, or vec0 of UML's own transports.
// Virtual ones (dummy0, bond0, gretap0 …) have none.
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
	return nil, errors.New("the kernel has no Ethernet device: is the argument virtio_uml.device= missing, " +
		"or the kernel built without CONFIG_VIRTIO_UML or CONFIG_VIRTIO_NET?")
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// writeSysctl writes a setting below /proc/sys/net.
func writeSysctl(name, value string) error {
	return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0)
}
