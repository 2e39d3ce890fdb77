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
)

// guestName is what this program is called as the init of a guest.
const guestName = "guest"

// nic is the configuration of the guest's network interface.
type nic struct {
	// Address with the length of the prefix; the zero value leaves the address as it is.
	Address netip.Prefix `json:"address,omitzero"`
	Gateway netip.Addr   `json:"gateway,omitzero"`
	MTU     int          `json:"mtu,omitempty"`
}

// guestMain is process 1 of a guest.
func guestMain() error {
	for _, fs := range []string{"proc", "sysfs"} {
		dir := map[string]string{"proc": "/proc", "sysfs": "/sys"}[fs]
		// EBUSY: something mounted it before us.
		if err := unix.Mount(fs, dir, fs, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	if t, err := unix.IoctlGetTermios(0, unix.TCGETS); err == nil {
		t.Lflag &^= unix.ECHO
		t.Oflag &^= unix.OPOST
		_ = unix.IoctlSetTermios(0, unix.TCSETS, t)
	}
	if err := errors.Join(serve(os.Stdin, os.Stdout), powerOff()); err != nil {
		return err
	}
	return errors.New("still here after a power-off")
}

func powerOff() error {
	return os.NewSyscallError("reboot", unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
}

// setUpNetwork configures the only interface that has a device behind it.
func setUpNetwork(n nic) error {
	// Thousands of connections in a second, all to the same port: what ended must not keep its port for a minute. And
	// none may have a port that is forwarded.
	for name, value := range map[string]string{"tcp_tw_reuse": "1", "ip_local_port_range": "20000 65535"} {
		if err := os.WriteFile("/proc/sys/net/ipv4/"+name, []byte(value), 0); err != nil {
			return err
		}
	}
	link, err := findNIC()
	if err != nil {
		return err
	}
	if err := netlink.LinkSetMTU(link, n.MTU); err != nil {
		return fmt.Errorf("set MTU %d: %w", n.MTU, err)
	}
	if !n.Address.IsValid() {
		return nil
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{
		IP: n.Address.Addr().AsSlice(), Mask: net.CIDRMask(n.Address.Bits(), n.Address.Addr().BitLen()),
	}}
	if err := netlink.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("add address %s: %w", n.Address, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: n.Gateway.AsSlice()}
	if err := netlink.RouteAdd(route); err != nil {
		return fmt.Errorf("add route through %s: %w", n.Gateway, err)
	}
	return nil
}

// findNIC returns the NIC, which is called eth0 with virtio and the classic stack and vec0 with the vector driver.
func findNIC() (netlink.Link, error) {
	var errs []error
	for _, name := range []string{"eth0", "vec0"} {
		link, err := netlink.LinkByName(name)
		if err == nil {
			return link, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", name, err))
	}
	return nil, errors.Join(errs...)
}
