package uml

import (
	"net"
	"os"
	"slices"
	"strings"
	"testing"
)

func testOptions(t *testing.T) Options {
	t.Helper()
	file := func() *os.File {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	return Options{
		Path:      "/linux",
		Mem:       256 << 20,
		HostFS:    "/rootfs",
		Dir:       "/run/uml-1",
		ID:        "guest",
		Notify:    "/run/uml-1/notify",
		Initramfs: file(),
		NIC:       &NIC{Socket: file(), MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, MTU: 1500},
	}
}

func TestCmdline(t *testing.T) {
	want := []string{
		"mem=268435456", "hostfs=/rootfs", "uml_dir=/run/uml-1", "umid=guest", "mconsole=notify:/run/uml-1/notify",
		"initrd=/proc/self/fd/3", "vec0:transport=fd,fd=4,mtu=1500,depth=64,mac=02:00:00:00:00:01",
		"con0=fd:0,fd:1", "con=null", "noreboot", "sysrq_always_enabled", "seccomp=auto", "lpj=20000000",
		"fb_tunnels=none", "dummy.numdummies=0", "ifb.numifbs=0", "bonding.max_bonds=0",
	}
	if got := testOptions(t).Cmdline(); !slices.Equal(got, want) {
		t.Errorf("Cmdline() = %q, want %q", got, want)
	}
}

func TestCmdlineWithoutParts(t *testing.T) {
	o := testOptions(t)
	o.Initramfs = nil
	got := strings.Join(o.Cmdline(), " ")
	if strings.Contains(got, "initrd=") || !strings.Contains(got, "fd=3,") {
		t.Errorf("Cmdline() without initramfs = %q, want no initrd= and the NIC as 3", got)
	}
	o.NIC = nil
	if got := strings.Join(o.Cmdline(), " "); strings.Contains(got, "vec0") {
		t.Errorf("Cmdline() without NIC = %q", got)
	}
}

// TestCmdlineUserWins has the user's arguments replace ours, not merely follow them: the first con0= would
// already have claimed its descriptors.
func TestCmdlineUserWins(t *testing.T) {
	for _, user := range []string{
		"mem=1G", "con0=null", "con=pts", "seccomp=off", "initrd=/mine", "vec0:transport=tap,ifname=tap0",
		"vec0=x", "hostfs=/", "lpj=1", "umid=mine", "noreboot",
	} {
		o := testOptions(t)
		o.Args = []string{"quiet", user, "--", "single"}
		got := o.Cmdline()
		var same []string
		for _, arg := range got {
			if argKey(arg) == argKey(user) {
				same = append(same, arg)
			}
		}
		if !slices.Equal(same, []string{user}) {
			t.Errorf("Cmdline() with %s has %q", user, same)
		}
		if !slices.Equal(got[len(got)-len(o.Args):], o.Args) {
			t.Errorf("Cmdline() = %q, want the user's arguments at the end, in order", got)
		}
	}
}

func TestMemArg(t *testing.T) {
	for _, test := range []struct {
		args string
		want uint64
		ok   bool
	}{
		{"", 0, false},
		{"quiet", 0, false},
		{"mem=128M", 128 << 20, true},
		{"mem=1g quiet", 1 << 30, true},
		{"mem=0x1000", 0x1000, true},
		{"mem=64M mem=65536K", 64 << 20, true},
		{"mem=", 0, false},
		{"mem=12MM", 0, false},
		{"mem=lots", 0, false},
	} {
		got, ok := MemArg(strings.Fields(test.args))
		if got != test.want || ok != test.ok {
			t.Errorf("MemArg(%q) = %d, %v, want %d, %v", test.args, got, ok, test.want, test.ok)
		}
	}
}

func TestIsQuery(t *testing.T) {
	for args, want := range map[string]bool{
		"--help": true, "quiet --version": true, "--showconfig": true, "": false, "help": false, "--": false,
	} {
		if got := IsQuery(strings.Fields(args)); got != want {
			t.Errorf("IsQuery(%q) = %v, want %v", args, got, want)
		}
	}
}
