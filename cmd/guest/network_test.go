//go:build linux

package main

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"docker-usermode-linux/internal/boot"
)

// namespaceEnv is set in the process that inNamespace starts.
const namespaceEnv = "GUEST_TEST_NAMESPACE"

// inNamespace runs the calling test once more, in a process with a network namespace of its own, and reports true
// there. It skips where namespaces are not to be had.
func inNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(namespaceEnv) != "" {
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), namespaceEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	switch {
	case err != nil && cmd.ProcessState == nil:
		t.Skipf("no network namespace to be had: %v", err)
	case err == nil && strings.Contains(string(out), "--- SKIP: "+t.Name()):
		t.Skipf("in a namespace of its own:\n%s", out)
	case err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()):
		t.Errorf("in a namespace of its own: %v\n%s", err, out)
	}
	return false
}

// TestConfigureWithoutIPv6 checks that a guest without IPv6 (ipv6.disable_ipv6=1) still gets IPv4, and one with it both.
func TestConfigureWithoutIPv6(t *testing.T) {
	if !inNamespace(t) {
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
