// Package uml runs a User-Mode Linux kernel as a child process: Options say what it gets, Cmdline turns them
// into the kernel's arguments without touching anything, Start runs it, and the Kernel is waited for, or
// killed. It knows neither what the guest runs nor who is at the other end of its network.
//
// The files that the kernel inherits, and their numbers: the console as 0 and 1, its diagnostics as 2, then, as
// far as given, the initramfs and the changes to the disk.
package uml

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// loopsPerJiffy spares the kernel the calibration of its delay loop, 0.1 s of every boot. The loop only serves
// udelay() of device drivers, and UML has no hardware to wait for: the figure (2 GHz at 100 Hz) may be off by
// any factor.
const loopsPerJiffy = 20_000_000

// virtioDevice is the argument that adds a vhost-user device; the others are numbers of kinds of them
// (include/uapi/linux/virtio_ids.h).
const (
	virtioDevice  = "virtio_uml.device"
	virtioNet     = 1
	virtioConsole = 3
	virtioBalloon = 5
)

// rootDisk is the guest's name of the disk ubd0.
const rootDisk = "/dev/ubda"

// reportingOrder has free memory reported in blocks of 2^6 pages, 256 KiB: what programs leave behind is seldom free in
// the blocks of 4 MiB that would be the kernel's choice.
const reportingOrder = 6

// noSpareDevices keeps drivers that are built in from making devices nobody asked for: the guest's list of network
// interfaces is to be lo and eth0.
var noSpareDevices = []string{"fb_tunnels=none", "dummy.numdummies=0", "ifb.numifbs=0", "bonding.max_bonds=0"}

// consoleSize tells systemd what it would ask the console for, again and again, and wait a third of a second each time.
// The kernel takes them for parameters of a module and lets them be.
var consoleSize = []string{"systemd.tty.rows.console=24", "systemd.tty.columns.console=80"}

// Options describe one kernel process. The zero value of a field leaves that part out.
type Options struct {
	// Path of the kernel binary.
	Path string
	// Mem is the guest's RAM in bytes.
	Mem uint64
	// CPUs is the number of virtual CPUs; several need the userspace mode seccomp.
	CPUs int
	// Userspace is how guest processes are run: ModeAuto, ModeSeccomp or ModePtrace.
	Userspace string
	// Place has the virtual CPUs kept on CPUs of the host, by Start.
	Place bool
	// HostFS is the only directory of the host whose files the guest can mount (as type hostfs).
	HostFS string
	// Disk is the image or block device that has the guest's root file system; without it that is HostFS.
	Disk string
	// DiskHeld has the kernel set no lock on it, because whoever starts it holds one that would be in the way.
	DiskHeld bool
	// Changes gets what the guest writes to Disk, which is only read then (package disk, Ephemeral).
	Changes *os.File
	// Dir is a writable directory for the pid file and the management console's socket, which is
	// Dir/ID/mconsole. With Dir unset the kernel would take ~/.uml, and hang where that cannot be written.
	Dir, ID string
	// Notify is the socket to which the kernel sends its notifications (package mconsole).
	Notify string
	// Initramfs is a cpio archive, read by the kernel before anything else runs.
	Initramfs *os.File
	// NIC is the path of the unix socket of a vhost-user network device; without it the guest has no network.
	NIC string
	// Port is the path of the unix socket of a vhost-user console device.
	Port string
	// Balloon is the path of the unix socket of a vhost-user balloon device, which gets reports of free pages.
	Balloon string
	// Console becomes the main console, tty0: a terminal or a pipe. UML cannot poll a plain file.
	Console *os.File
	// NoTerminal says that nobody at the other end of Console answers a question, such as how large the terminal is.
	NoTerminal bool
	// Stderr gets what the kernel says before it has a console, and why it gave up.
	Stderr *os.File
	// Quiet has the kernel print nothing below an error on its console (loglevel 4), and an init that knows the word
	// nothing but failures. An argument of the user's that says how much is printed wins; see loudness.
	Quiet bool
	// Args are raw kernel arguments of the user. One that sets what an argument of ours sets replaces it.
	Args []string
}

// firstFD is the number of the first file that the kernel inherits besides its standard streams.
const firstFD = 3

// files are those that it inherits besides these.
func (o Options) files() []*os.File {
	return slices.DeleteFunc([]*os.File{o.Initramfs, o.Changes}, func(f *os.File) bool { return f == nil })
}

// inherited is the path by which the kernel opens one of files.
func (o Options) inherited(f *os.File) string {
	return fmt.Sprintf("/proc/self/fd/%d", firstFD+slices.Index(o.files(), f))
}

// Cmdline returns the kernel's arguments, ours first. It has no side effects.
func (o Options) Cmdline() []string {
	var ours []string
	add := func(format string, a ...any) { ours = append(ours, fmt.Sprintf(format, a...)) }
	if o.Mem != 0 {
		add("mem=%d", o.Mem)
	}
	if o.CPUs > 1 && !refusesSeccomp(o.Args) {
		// Else whatever waits until no CPU uses an object any more (mounts, network interfaces, the end of the guest) waits for
		// ticks of all CPUs, 30 ms and more each time.
		add("ncpus=%d", o.CPUs)
		add("rcupdate.rcu_expedited=1")
	}
	if o.Userspace != "" {
		add("seccomp=%s", seccompArg[o.Userspace])
	}
	if o.HostFS != "" {
		add("hostfs=%s", o.HostFS)
	}
	if o.Disk != "" {
		name, files := "ubd0", o.Disk
		if o.DiskHeld {
			name = "ubd0c"
		}
		if o.Changes != nil {
			files = o.inherited(o.Changes) + "," + files
		}
		add("%s=%s", name, files)
		add("root=%s", rootDisk)
	}
	if o.Dir != "" {
		add("uml_dir=%s", o.Dir)
		add("umid=%s", o.ID)
	}
	if o.Notify != "" {
		add("mconsole=notify:%s", o.Notify)
	}
	if o.Initramfs != nil {
		add("initrd=%s", o.inherited(o.Initramfs))
	}
	if o.NIC != "" && !slices.ContainsFunc(o.Args, isVector) {
		add("%s=%s:%d", virtioDevice, o.NIC, virtioNet)
	}
	if o.Port != "" {
		add("%s=%s:%d", virtioDevice, o.Port, virtioConsole)
	}
	if o.Balloon != "" {
		add("%s=%s:%d", virtioDevice, o.Balloon, virtioBalloon)
		add("page_reporting.page_reporting_order=%d", reportingOrder)
	}
	// A guest's reboot must end the process; without noreboot UML executes itself anew, for ever.
	add("con0=fd:0,fd:1")
	add("con=null")
	add("noreboot")
	// Else the guest's kernel.sysrq decides whether a sync and a remount that we ask for are done.
	add("sysrq_always_enabled")
	add("lpj=%d", loopsPerJiffy)
	ours = append(ours, noSpareDevices...)
	if o.NoTerminal {
		ours = append(ours, consoleSize...)
	}
	if o.Quiet && !setsLoudness(o.Args) {
		add("quiet")
	}

	ours = slices.DeleteFunc(ours, func(arg string) bool {
		return argKey(arg) != virtioDevice && // each one adds a device
			slices.ContainsFunc(o.Args, func(user string) bool { return argKey(user) == argKey(arg) })
	})
	return append(ours, o.Args...)
}

// refusesSeccomp says whether the user chooses the mode that has one CPU.
func refusesSeccomp(args []string) bool { return slices.Contains(args, "seccomp=off") }

// isVector says whether an argument sets the first interface of UML's vector driver: a NIC of the user's own, in place
// of ours.
func isVector(arg string) bool { return argKey(arg) == "vec0" }

// loudness are the kernel's arguments that decide how much it prints on its console (init/main.c, kernel/printk).
var loudness = []string{"quiet", "debug", "loglevel", "ignore_loglevel", "earlyprintk"}

// setsLoudness says whether the user does; what follows "--" is the init's.
func setsLoudness(args []string) bool {
	if i := slices.Index(args, "--"); i >= 0 {
		args = args[:i]
	}
	return slices.ContainsFunc(args, func(arg string) bool { return slices.Contains(loudness, argKey(arg)) })
}

// argKey is the name that an argument sets: "mem" of "mem=1G", "vec0" of "vec0:transport=tap".
func argKey(arg string) string {
	if i := strings.IndexAny(arg, "=:"); i >= 0 {
		return arg[:i]
	}
	return arg
}

// MemArg finds the guest RAM in bytes that the last mem= of args asks for, with the kernel's own suffixes
// (memparse in lib/cmdline.c).
func MemArg(args []string) (size uint64, ok bool) {
	for _, arg := range args {
		value, found := strings.CutPrefix(arg, "mem=")
		if !found {
			continue
		}
		digits := strings.TrimRight(value, "kKmMgGtT")
		n, err := strconv.ParseUint(digits, 0, 64)
		if err != nil || len(value)-len(digits) > 1 {
			continue
		}
		shift := map[string]int{"k": 10, "m": 20, "g": 30, "t": 40}[strings.ToLower(value[len(digits):])]
		size, ok = n<<shift, true
	}
	return size, ok
}

// queries are the arguments at which the kernel prints something about itself and exits.
var queries = []string{"--help", "--version", "--showconfig"}

// IsQuery reports whether args only ask the kernel about itself.
func IsQuery(args []string) bool {
	return slices.ContainsFunc(args, func(arg string) bool { return slices.Contains(queries, arg) })
}
