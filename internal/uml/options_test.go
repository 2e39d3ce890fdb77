package uml

import (
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
		Path:       "/linux",
		Mem:        256 << 20,
		CPUs:       2,
		Userspace:  ModeAuto,
		HostFS:     "/rootfs",
		Dir:        "/run/uml-1",
		ID:         "guest",
		Notify:     "/run/uml-1/notify",
		Initramfs:  file(),
		NIC:        "/run/uml-1/nic",
		NoTerminal: true,
	}
}

func TestCmdline(t *testing.T) {
	want := []string{
		"mem=268435456", "ncpus=2", "rcupdate.rcu_expedited=1", "seccomp=auto", "hostfs=/rootfs", "uml_dir=/run/uml-1", "umid=guest", "mconsole=notify:/run/uml-1/notify",
		"initrd=/proc/self/fd/3", "virtio_uml.device=/run/uml-1/nic:1",
		"con0=fd:0,fd:1", "con=null", "noreboot", "sysrq_always_enabled", "lpj=20000000",
		"fb_tunnels=none", "dummy.numdummies=0", "ifb.numifbs=0", "bonding.max_bonds=0",
		"systemd.tty.rows.console=24", "systemd.tty.columns.console=80",
	}
	if got := testOptions(t).Cmdline(); !slices.Equal(got, want) {
		t.Errorf("Cmdline() = %q, want %q", got, want)
	}
}

// TestCmdlinePtrace has one CPU in the mode that has no more, whoever asks for it.
func TestCmdlinePtrace(t *testing.T) {
	o := testOptions(t)
	o.Userspace, o.CPUs = ModePtrace, 1
	if got := o.Cmdline(); !slices.Contains(got, "seccomp=off") || slices.Contains(got, "ncpus=1") {
		t.Errorf("Cmdline() in mode ptrace = %q, want seccomp=off and no ncpus=", got)
	}
	o.Userspace, o.CPUs, o.Args = ModeAuto, 2, []string{"seccomp=off"}
	if got := o.Cmdline(); slices.Contains(got, "ncpus=2") {
		t.Errorf("Cmdline() with the user's seccomp=off = %q, want no ncpus=", got)
	}
}

// TestCmdlineChanges has a disk stay as it is, and each file its number.
func TestCmdlineChanges(t *testing.T) {
	changes, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer changes.Close()
	o := testOptions(t)
	o.Disk, o.Changes = "/srv/disk", changes
	if got := o.Cmdline(); !slices.Contains(got, "ubd0=/proc/self/fd/4,/srv/disk") || !slices.Contains(got, "initrd=/proc/self/fd/3") {
		t.Errorf("Cmdline() with changes = %q, want descriptors 3 and 4", got)
	}
	o.Initramfs, o.DiskHeld = nil, true
	if got := o.Cmdline(); !slices.Contains(got, "ubd0c=/proc/self/fd/3,/srv/disk") {
		t.Errorf("Cmdline() with changes alone = %q, want descriptor 3", got)
	}
	if got := o.files(); !slices.Equal(got, []*os.File{changes}) {
		t.Errorf("files() = %v", got)
	}
}

// TestCmdlineDisk has the root file system on a disk, unless the user names another root.
func TestCmdlineDisk(t *testing.T) {
	o := testOptions(t)
	o.Disk = "/srv/disk"
	if got := o.Cmdline(); !slices.Contains(got, "ubd0=/srv/disk") || !slices.Contains(got, "root=/dev/ubda") {
		t.Errorf("Cmdline() with a disk = %q, want ubd0= and root=", got)
	}
	o.Args = []string{"root=/dev/ubda1"}
	if got := o.Cmdline(); !slices.Contains(got, "ubd0=/srv/disk") || slices.Contains(got, "root=/dev/ubda") {
		t.Errorf("Cmdline() with a disk and the user's root = %q, want ubd0= and that root alone", got)
	}
}

func TestCmdlineWithoutParts(t *testing.T) {
	o := testOptions(t)
	o.Initramfs = nil
	got := strings.Join(o.Cmdline(), " ")
	if strings.Contains(got, "initrd=") {
		t.Errorf("Cmdline() without initramfs = %q, want no initrd=", got)
	}
	if strings.Contains(got, "page_reporting") {
		t.Errorf("Cmdline() without a balloon = %q", got)
	}
	o.NIC = ""
	if got := strings.Join(o.Cmdline(), " "); strings.Contains(got, "virtio") {
		t.Errorf("Cmdline() without NIC = %q", got)
	}
}

// TestCmdlineDevices has the user's devices come on top of ours, but for a NIC of their own.
func TestCmdlineDevices(t *testing.T) {
	const ours = "virtio_uml.device=/run/uml-1/nic:1"
	for user, want := range map[string]bool{
		"virtio_uml.device=/run/fs:26":   true,
		"vec1:transport=tap,ifname=tap1": true,
		"vec0:transport=tap,ifname=tap0": false,
	} {
		o := testOptions(t)
		o.Args = []string{user}
		if got := o.Cmdline(); slices.Contains(got, ours) != want || !slices.Contains(got, user) {
			t.Errorf("Cmdline() with %s = %q, want ours too: %v", user, got, want)
		}
	}
}

// TestCmdlineUserWins has the user's arguments replace ours, not merely follow them: the first con0= would
// already have claimed its descriptors.
func TestCmdlineUserWins(t *testing.T) {
	for _, user := range []string{
		"mem=1G", "con0=null", "con=pts", "seccomp=on", "ncpus=3", "initrd=/mine", "vec0:transport=tap,ifname=tap0",
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

func TestCmdlineQuiet(t *testing.T) {
	for user, want := range map[string]int{
		"":                              1,
		"init=/bin/sh":                  1,
		"-- debug":                      1,
		"systemd.log_level=debug":       1,
		"quiet":                         1,
		"debug":                         0,
		"loglevel=7":                    0,
		"mem=1G ignore_loglevel -- x":   0,
		"earlyprintk":                   0,
		"earlyprintk=stderr0 -- single": 0,
	} {
		o := testOptions(t)
		o.Quiet, o.Args = true, strings.Fields(user)
		got := 0
		for _, arg := range o.Cmdline() {
			if arg == "quiet" {
				got++
			}
		}
		if got != want {
			t.Errorf("Cmdline() with Quiet and %q has quiet %d times, want %d", user, got, want)
		}
	}
	if got := testOptions(t).Cmdline(); slices.Contains(got, "quiet") {
		t.Errorf("Cmdline() without Quiet = %q", got)
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
