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

// kernelScript is a program that answers --showconfig.
func kernelScript(t *testing.T, config, rest string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "linux")
	text := fmt.Sprintf("#!/bin/sh\ncat <<'E'\n%s\nE\nexit 0\n%s", config, rest)
	if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

const allOptions = "CONFIG_BLK_DEV_INITRD=y\nCONFIG_HOSTFS=y\nCONFIG_MCONSOLE=y\nCONFIG_VIRTIO_UML=y\nCONFIG_VIRTIO_NET=y\n" +
	"CONFIG_VIRTIO_CONSOLE=y\nCONFIG_VIRTIO_BALLOON=y\nCONFIG_OVERLAY_FS=y\nCONFIG_TMPFS=y"

func TestLook(t *testing.T) {
	// The mark lies across two reads.
	f, err := Look(kernelScript(t, allOptions, strings.Repeat("#", 1<<20-len(allOptions)-45)+RestartMessage))
	if err != nil || !f.Patched || f.Lacks() != nil || f.CheckAgent() != nil {
		t.Errorf("Look() at a kernel of ours = %+v, %v, it lacks %q", f, err, f.Lacks())
	}
	foreign := strings.NewReplacer("HOSTFS=y", "HOSTFS=m", "CONFIG_VIRTIO_UML=y", "# CONFIG_VIRTIO_UML is not set").Replace(allOptions)
	f, err = Look(kernelScript(t, foreign, ""))
	got := f.Lacks()
	if err != nil || f.Patched || len(got) != 5 || !strings.HasPrefix(got[0], "without CONFIG_HOSTFS built in, ") ||
		!slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, "no network") }) {
		t.Errorf("Look() at a foreign kernel = %+v, %v, it lacks %q", f, err, got)
	}
	if err := f.CheckAgent(); err == nil || !strings.HasSuffix(err.Error(), "a kernel with CONFIG_VIRTIO_UML built in") {
		t.Errorf("CheckAgent() of a foreign kernel = %v", err)
	}
	for _, path := range []string{kernelScript(t, "hello", ""), filepath.Join(t.TempDir(), "none")} {
		if f, err := Look(path); err == nil {
			t.Errorf("Look() at what is no kernel = %+v, want an error", f)
		}
	}
}

// FuzzParseOptions takes whatever a program says that is called a kernel.
func FuzzParseOptions(f *testing.F) {
	f.Add([]byte(allOptions))
	f.Add([]byte("CONFIG_=y\n=y\nCONFIG_A=y=y\r\n\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for name := range parseOptions(bytes.NewReader(data)) {
			if strings.ContainsAny(name, "=\n") || !bytes.Contains(data, []byte("CONFIG_"+name+"=y")) {
				t.Errorf("option %q is not in %q", name, data)
			}
		}
	})
}
