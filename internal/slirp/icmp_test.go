package slirp

import (
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

func TestPingOurs(t *testing.T) {
	b := newBridge(t, Options{}, nil)
	for _, a := range []netip.Addr{GatewayAddr, DNSAddr} {
		for _, size := range []int{0, 56, 1472, 5000} {
			want := strings.Repeat("p", size)
			got, err := b.guest.Ping(a, []byte(want), hang)
			if err != nil || string(got) != want {
				t.Errorf("Ping(%s, %d bytes) = %d bytes, %v", a, size, len(got), err)
			}
		}
	}
}

// TestPingNobody checks that an address without a host never answers. Netstack in promiscuous mode takes packets to
// all addresses.
func TestPingNobody(t *testing.T) {
	b := newBridge(t, Options{}, nil)
	for _, a := range []string{"10.0.2.99", "169.254.169.254", "192.0.2.1", "240.0.0.1"} {
		if got, err := b.guest.Ping(netip.MustParseAddr(a), []byte("hello"), 200*time.Millisecond); err == nil {
			t.Errorf("Ping(%s) = %q, want no answer", a, got)
		}
	}
}

// pingNamespace is set in the process that inPingNamespace starts.
const pingNamespace = "SLIRP_TEST_PING_NAMESPACE"

// inPingNamespace runs the calling test once more, in a network namespace of its own whose net.ipv4.ping_group_range
// includes it, and reports true in that process. It skips where namespaces are not to be had either.
func inPingNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(pingNamespace) != "" {
		if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 0"), 0); err != nil {
			t.Fatal(err)
		}
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err != nil {
			t.Fatal(err)
		}
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), pingNamespace+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		t.Skipf("neither ping sockets nor a namespace that has them: %v", err)
	}
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("in a namespace of its own: %v\n%s", err, out)
	}
	return false
}

// TestPingOutside needs ping sockets: net.ipv4.ping_group_range has to include the group of this process.
func TestPingOutside(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	if err == nil {
		unix.Close(fd)
	} else if !inPingNamespace(t) {
		return
	}
	b := newBridge(t, Options{Policy: testPolicy}, nil)
	if _, err := b.pingFlow(netip.AddrPortFrom(GuestAddr, 1)); err != nil {
		t.Fatal(err)
	}
	// The fake guest cannot send to the loopback, so the request is made by hand.
	f, err := b.pingFlow(netip.AddrPortFrom(GuestAddr, 2))
	if err != nil {
		t.Fatal(err)
	}
	msg := make([]byte, header.ICMPv4MinimumSize)
	header.ICMPv4(msg).SetType(header.ICMPv4Echo)
	header.ICMPv4(msg).SetSequence(7)
	if err := f.socket.send(netip.AddrPortFrom(loopback4, 0), msg, []byte("payload")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "an echo reply in the guest", func() bool {
		return b.guest.Stack.Stats().ICMP.V4.PacketsReceived.EchoReply.Value() == 1
	})
	if got := b.Snapshot().LivePing; got != 2 {
		t.Errorf("Snapshot().LivePing = %d, want 2", got)
	}
}

// TestARP checks that the gateway answers for its own addresses and for no other, the guest's least of all: duplicate
// address detection in the guest would fail.
func TestARP(t *testing.T) {
	b := newBridge(t, Options{}, nil)
	replies := func() uint64 { return b.guest.Stack.Stats().ARP.RepliesReceived.Value() }
	for _, a := range []netip.Addr{GuestAddr, netip.MustParseAddr("10.0.2.99"), netip.MustParseAddr("192.0.2.1")} {
		b.guest.SendARP(header.ARPRequest, [4]byte{}, a.As4())
	}
	for i, a := range []netip.Addr{GatewayAddr, DNSAddr} {
		b.guest.SendARP(header.ARPRequest, GuestAddr.As4(), a.As4())
		eventually(t, "a reply", func() bool { return replies() >= uint64(i)+1 })
	}
	if got := replies(); got != 2 {
		t.Errorf("%d ARP replies, want 2", got)
	}
}
