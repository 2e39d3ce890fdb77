package uml

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// kernelScript is a program that answers --showconfig and --version, in the directory bin of a prefix.
func kernelScript(t *testing.T, config, rest string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bin", "linux")
	text := fmt.Sprintf("#!/bin/sh\n[ $1 = --version ] && exec echo 6.1.0-test\ncat <<'E'\n%s\nE\nexit 0\n%s", config, rest)
	write(t, path, text)
	if err := os.Chmod(path, 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

const allOptions = "CONFIG_BLK_DEV_INITRD=y\nCONFIG_HOSTFS=y\nCONFIG_MCONSOLE=y\nCONFIG_VIRTIO_UML=y\nCONFIG_VIRTIO_NET=y\n" +
	"CONFIG_VIRTIO_CONSOLE=y\nCONFIG_VIRTIO_BALLOON=y\nCONFIG_OVERLAY_FS=y\nCONFIG_TMPFS=y\nCONFIG_IPV6=y"

// processor has the test run on one with or without AMX.
func processor(t *testing.T, withAMX bool) {
	t.Helper()
	before := amx
	t.Cleanup(func() { amx = before })
	amx = withAMX
}

// TestLookOnAMX: the kernel of the script, Linux 6.1, is too old for such a processor.
func TestLookOnAMX(t *testing.T) {
	processor(t, true)
	f, err := Look(kernelScript(t, allOptions, RestartMessage))
	if got := f.Lacks(); err != nil || len(got) != 1 || !strings.HasPrefix(got[0], "Linux 6.1.0-test has no room for the registers") {
		t.Errorf("it lacks %q, %v", got, err)
	}
	for version, want := range map[string]bool{"5.19": true, "6.1.176": true, "6.12.0-rc1": true, "6.13.0": false, "7.2.12": false, "": false, "new": false} {
		if olderThan(version, 6, 13) != want {
			t.Errorf("%q older than 6.13: %v", version, !want)
		}
	}
}

func TestLook(t *testing.T) {
	processor(t, false)
	// The mark lies across two reads.
	f, err := Look(kernelScript(t, allOptions, strings.Repeat("#", 1<<20-len(allOptions)-86)+RestartMessage))
	if err != nil || !f.Patched || f.Lacks() != nil || f.CheckAgent() != nil {
		t.Errorf("Look() at a kernel of ours = %+v, %v, it lacks %q", f, err, f.Lacks())
	}
	foreign := strings.NewReplacer("HOSTFS=y", "HOSTFS=m", "CONFIG_VIRTIO_UML=y", "# CONFIG_VIRTIO_UML is not set").Replace(allOptions)
	f, err = Look(kernelScript(t, foreign, ""))
	got := f.Lacks()
	if err != nil || f.Patched || len(got) != 5 || !strings.HasPrefix(got[0], "without CONFIG_HOSTFS=y, ") ||
		!slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, "no network") }) {
		t.Errorf("Look() at a foreign kernel = %+v, %v, it lacks %q", f, err, got)
	}
	if err := f.CheckAgent(); err == nil || !strings.HasSuffix(err.Error(), "a kernel with CONFIG_VIRTIO_UML=y") {
		t.Errorf("CheckAgent() of a foreign kernel = %v", err)
	}
	for _, path := range []string{kernelScript(t, "hello", ""), filepath.Join(t.TempDir(), "none")} {
		if f, err := Look(path); err == nil {
			t.Errorf("Look() at what is no kernel = %+v, want an error", f)
		}
	}
}

// TestLookForModules has a kernel like Debian's, with some of its modules installed.
func TestLookForModules(t *testing.T) {
	processor(t, false)
	config := strings.NewReplacer("NET=y", "NET=m", "VIRTIO_CONSOLE=y", "VIRTIO_CONSOLE=m", "OVERLAY_FS=y", "OVERLAY_FS=m", "IPV6=y", "IPV6=m").
		Replace(allOptions)
	kernel := kernelScript(t, config, RestartMessage)
	write(t, filepath.Join(filepath.Dir(kernel), "lib"), "no directory") // is in the way of one of those that are searched
	f, err := Look(kernel)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(filepath.Dir(filepath.Dir(kernel)), "lib/uml/modules/6.1.0-test")
	lacks := f.Lacks()
	if want := "not found as .ko, not compressed: module ipv6, overlay, virtio_console, virtio_net in " + dir + ", "; len(lacks) != 5 || f.Modules != nil ||
		!strings.HasPrefix(lacks[0], want) || !strings.Contains(lacks[0], " not a directory), ") || !strings.HasSuffix(lacks[0], "/lib/modules/6.1.0-test") {
		t.Errorf("without modules it lacks %q, want %q first", lacks, want)
	}
	if err := f.CheckAgent(); err == nil || !strings.Contains(err.Error(), "a kernel with module virtio_console; not found as .ko, ") {
		t.Errorf("CheckAgent() without modules = %v", err)
	}

	opt := filepath.Join(t.TempDir(), "virtio_console.ko")
	for _, file := range []string{
		opt, dir + "/kernel/a/failover.ko", dir + "/kernel/a/net_failover.ko", dir + "/kernel/a/virtio-net.ko", dir + "/kernel/ipv6.ko.xz",
	} {
		write(t, file, "")
	}
	write(t, filepath.Join(dir, "modules.dep"), "kernel/a/virtio-net.ko: kernel/a/net_failover.ko kernel/a/failover.ko\n"+
		"kernel/a/failover.ko:\nkernel/a/net_failover.ko: kernel/a/failover.ko\n"+
		opt+": kernel/a/failover.ko\nkernel/ipv6.ko.xz:\nkernel/overlay.ko:\nnonsense\n")
	f, err = Look(kernel)
	want := []string{dir + "/kernel/a/failover.ko", opt, dir + "/kernel/a/net_failover.ko", dir + "/kernel/a/virtio-net.ko"}
	if err != nil || !slices.Equal(f.Modules, want) || f.CheckAgent() != nil {
		t.Errorf("Modules = %q, %v, %v, want %q", f.Modules, err, f.CheckAgent(), want)
	}
	lacks = f.Lacks()
	if want := "not found as .ko, not compressed: module ipv6, overlay in " + dir; len(lacks) != 3 || lacks[0] != want {
		t.Errorf("with half of the modules it lacks %q, want %q first", lacks, want)
	}
}

// FuzzParseOptions takes whatever a program says that is called a kernel.
func FuzzParseOptions(f *testing.F) {
	f.Add([]byte(allOptions))
	f.Add([]byte("CONFIG_=y\n=y\nCONFIG_A=y=y\r\n\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for name, value := range parseOptions(bytes.NewReader(data)) {
			if strings.ContainsAny(name, "=\n") || !bytes.Contains(data, []byte("CONFIG_"+name+"="+value)) {
				t.Errorf("option %q is not in %q", name, data)
			}
		}
	})
}
