//go:build linux

package main

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"docker-usermode-linux/bench/figures"
)

const (
	benchmark = "BenchmarkGuest"
	// What stands in the table for a figure that there is not.
	verdictFails = "fails"
	verdictClock = "clock"
	// diskSize in bytes is for the root file system several times.
	diskSize = 3 << 30
)

// The measurements that are not work's.
const (
	testBoot = "boot" // from the start to the first instruction of work
	testOff  = "off"  // from work's last word until the command has ended
)

// settings are the flags of a run.
type settings struct {
	paths
	rounds    int
	on, tests string
	dir       string
	force     bool
}

func runMain(args []string) error {
	var s settings
	f := flag.NewFlagSet("run", flag.ContinueOnError)
	f.IntVar(&s.rounds, "rounds", 5, "how often everything is measured")
	f.StringVar(&s.on, "on", "", "only in these environments, separated by commas")
	f.StringVar(&s.tests, "tests", "", "only these; boot and off always")
	f.StringVar(&s.dir, "dir", "/scratch", "a tmpfs of some GiB, without noexec")
	f.BoolVar(&s.force, "force", false, "on a busy machine, too")
	f.StringVar(&s.root, "root", "/guest", "the root file system; has /bench with micro and a package to install")
	f.StringVar(&s.work, "work", "/work", "bench/work")
	f.StringVar(&s.entrypoint, "entrypoint", "/entrypoint", "ours")
	f.StringVar(&s.kernel, "kernel", "/linux", "our kernel")
	f.StringVar(&s.initramfs, "initramfs", "/initramfs", "our guest stage")
	f.StringVar(&s.unpatched, "unpatched", "", "the same kernel without our patches (make kernel UNPATCHED=1), if any")
	f.StringVar(&s.classic, "uml61", "linux.uml", "Debian's UML")
	f.StringVar(&s.runsc, "runsc", "runsc", "gVisor")
	f.StringVar(&s.qemu, "qemu", "qemu-system-x86_64", "QEMU")
	f.StringVar(&s.qemuKernel, "qemu-kernel", "/qemu", "where a package linux-image-…-cloud-amd64 is unpacked")
	if err := f.Parse(args); err != nil {
		return err
	}
	chosen, err := s.chosen()
	if err != nil {
		return err
	}
	if err := adoptOrphans(); err != nil {
		return err
	}
	machine, err := figures.Machine(s.force)
	if err != nil {
		return err
	}
	s.head(machine, chosen)
	fresh, err := s.prepare(chosen)
	if err != nil {
		return err
	}
	defer remove(fresh.dir)
	for round := range s.rounds {
		for _, e := range chosen {
			fmt.Fprintf(os.Stderr, "round %d of %d: %s\n", round+1, s.rounds, e.name)
			if err := s.measure(e, fresh); err != nil {
				return err
			}
		}
	}
	return nil
}

// chosen are the environments that are measured.
func (s settings) chosen() ([]environment, error) {
	var chosen []environment
	for _, e := range environments {
		if e.optional != nil && e.optional(s.paths) {
			continue
		}
		if s.on == "" || slices.Contains(strings.Split(s.on, ","), e.name) {
			chosen = append(chosen, e)
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("no environment is called %s", s.on)
	}
	return chosen, nil
}

// head says where and what this is.
func (s settings) head(machine string, chosen []environment) {
	fmt.Printf("# %s, %d rounds\n", time.Now().UTC().Format(time.DateOnly), s.rounds)
	fmt.Print(machine)
	fmt.Printf("# guests: %s MiB; one CPU but for ours-cpus2\n", guestMem)
	for _, e := range chosen {
		fmt.Printf("# %s: %s\n", e.name, e.version(s.paths))
	}
}

// prepare makes what each turn begins with a copy of: the root file system with work and a tree for git, and an image
// of it where one is needed.
func (s settings) prepare(chosen []environment) (turn, error) {
	fresh := turn{paths: s.paths, dir: filepath.Join(s.dir, "fresh")}
	if err := remove(fresh.dir); err != nil {
		return fresh, err
	}
	if err := os.Mkdir(fresh.dir, 0o755); err != nil {
		return fresh, err
	}
	if err := command("cp", "-a", s.root, fresh.rootDir()); err != nil {
		return fresh, err
	}
	if err := command("cp", s.work, filepath.Join(fresh.rootDir(), guestWork)); err != nil {
		return fresh, err
	}
	if err := makeDevices(filepath.Join(fresh.rootDir(), "dev")); err != nil {
		return fresh, err
	}
	if err := command("chroot", fresh.rootDir(), guestWork, "tree", "/bench/tree"); err != nil {
		return fresh, err
	}
	if !slices.ContainsFunc(chosen, func(e environment) bool { return e.disk }) {
		return fresh, nil
	}
	fresh.noDisk = makeDisk(fresh)
	return fresh, nil
}

// makeDevices makes the nodes that programs take for granted (mem(4), random(4)), as far as they are missing: an image has
// none.
func makeDevices(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, minor := range map[string]string{"null": "3", "zero": "5", "random": "8", "urandom": "9"} {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := command("mknod", "-m", "666", path, "c", "1", minor); err != nil {
			return err
		}
	}
	return nil
}

func makeDisk(t turn) error {
	image, err := os.Create(t.disk())
	if err != nil {
		return err
	}
	defer image.Close()
	if err := image.Truncate(diskSize); err != nil {
		return err
	}
	return command("mkfs.ext4", "-q", "-d", t.rootDir(), t.disk())
}

func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
}

// remove takes away a directory, but nothing that is mounted below it.
func remove(dir string) error { return command("rm", "-rf", "--one-file-system", dir) }

// measure gives one environment its turn. Its error is of what all need; what the environment lacks is output.
func (s settings) measure(e environment, fresh turn) error {
	t := fresh
	t.dir = filepath.Join(s.dir, "turn")
	if s.tests != "" {
		t.tests = strings.Split(s.tests, ",")
	}
	if e.disk && fresh.noDisk != nil {
		missing(e, testBoot, verdictFails, fresh.noDisk)
		return nil
	}
	if err := remove(t.dir); err != nil {
		return err
	}
	if err := os.Mkdir(t.dir, 0o755); err != nil {
		return err
	}
	defer remove(t.dir)
	from, to := fresh.rootDir(), t.rootDir()
	if e.disk {
		from, to = fresh.disk(), t.disk()
		// Ours has a directory, too, though it does not look at it.
		if err := os.Mkdir(t.rootDir(), 0o755); err != nil {
			return err
		}
	}
	if err := command("cp", "-a", "--sparse=always", from, to); err != nil {
		return err
	}
	line, err := e.command(t)
	if err != nil {
		missing(e, testBoot, verdictFails, err)
		return nil
	}
	r := run(line, t.dir)
	r.emit(e)
	return nil
}

// measurement is its name in the raw output.
func (e environment) measurement(test string) string {
	return fmt.Sprintf("on=%s/test=%s", e.name, test)
}

func emit(e environment, test string, value float64, unit string) {
	fmt.Println(figures.Line(benchmark, e.measurement(test), figures.Metric{Value: value, Unit: unit}))
}

func missing(e environment, test, verdict string, why error) {
	fmt.Println(figures.MissingLine(e.measurement(test), verdict, why))
}
