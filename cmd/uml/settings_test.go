package main

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/spf13/pflag"

	"docker-usermode-linux/internal/config"
)

// TestSettings checks that each variable is an option, and that none is forgotten.
func TestSettings(t *testing.T) {
	var variables []string
	for _, s := range settings {
		variables = append(variables, s.variable)
	}
	slices.Sort(variables)
	if want := slices.Sorted(slices.Values(config.Settings())); !slices.Equal(variables, want) {
		t.Errorf("options are there for %v, want %v", variables, want)
	}
}

// parse reads options.
func parse(t *testing.T, args ...string) guestSettings {
	t.Helper()
	flags := pflag.NewFlagSet("up", pflag.ContinueOnError)
	all := addSettings(flags)
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestApply(t *testing.T) {
	for _, s := range settings {
		t.Setenv(s.variable, "") // has the test restore it
		if err := os.Unsetenv(s.variable); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("MEM", "64M")
	t.Setenv("CPUS", "2")
	names, err := parse(t, "-m", "128M", "-p", "80", "-p", "53/udp", "--rootfs", "root", "--ephemeral", "--net-pcap=").apply()
	if err != nil {
		t.Fatal(err)
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for variable, want := range map[string]string{
		"MEM": "128M", "CPUS": "2", "PORTS": "80 53/udp", "ROOTFS": filepath.Join(here, "root"), "EPHEMERAL": "on", "NET_PCAP": "",
	} {
		if got, set := os.LookupEnv(variable); got != want || !set {
			t.Errorf("%s = %q, want %q", variable, got, want)
		}
	}
	for variable, want := range map[string]string{"MEM": "--mem", "CPUS": "CPUS", "NET_ALLOW": "--net-allow"} {
		if got := names.Of(variable); got != want {
			t.Errorf("the name of %s = %s, want %s", variable, got, want)
		}
	}
	if _, set := os.LookupEnv("NET_ALLOW"); set {
		t.Error("a variable is set that nobody gave")
	}
}

// TestDefaults checks that a guest has an SSH port of the host's loopback, unless it has no network.
func TestDefaults(t *testing.T) {
	t.Setenv("NET", "")
	if got := upDefaults(); !maps.Equal(got, map[string]string{"PORTS": defaultPorts}) {
		t.Errorf("upDefaults() = %v", got)
	}
	if _, err := config.ParsePorts(defaultPorts, os.DirFS("/proc")); err != nil {
		t.Errorf("ParsePorts(%s) = %v", defaultPorts, err)
	}
	t.Setenv("NET", "Off")
	if got := upDefaults(); got != nil {
		t.Errorf("upDefaults() with NET=off = %v, want none", got)
	}
}

func TestNameOf(t *testing.T) {
	for path, want := range map[string]string{
		"/srv/debian": "debian", "/srv/debian-12.5": "debian-12.5", "/srv/disk.img": "disk", "/srv/a.b.ext4": "a.b",
		"/dev/vg/root": "root", "/srv/root.raw": "root", "/srv/.img": "guest", "/": "guest",
	} {
		if got := nameOf(path); got != want {
			t.Errorf("nameOf(%s) = %q, want %q", path, got, want)
		}
	}
}

func TestHostnameOf(t *testing.T) {
	for name, want := range map[string]string{"box": "box", "my_box": "my-box", "a..b": "a.b", "a-.b_": "a.b", "debian.12": "debian.12"} {
		if got := hostnameOf(name); got != want {
			t.Errorf("hostnameOf(%q) = %q, want %q", name, got, want)
		}
	}
}
