//go:build linux

package main

import (
	"errors"
	"os"
	"testing"
)

func TestModuleParams(t *testing.T) {
	const cmdline = `quiet virtio-uml.device=a:1 virtio_uml.device=b:3 ipv6.disable=1 ipv6.flag "x.y=a b" root=ipv6.none -- ipv6.late=1`
	for name, want := range map[string]string{
		"virtio_uml": "device=a:1 device=b:3",
		"virtio-uml": "device=a:1 device=b:3",
		"ipv6":       "disable=1 flag",
		"x":          `"y=a b"`,
		"quiet":      "",
		"root=ipv6":  "",
	} {
		if got := moduleParams(name, cmdline); got != want {
			t.Errorf("moduleParams(%s) = %q, want %q", name, got, want)
		}
	}
}

// TestLoadModules notes each module that cannot be loaded, and goes on.
func TestLoadModules(t *testing.T) {
	errs := loadModules([]string{"a.ko", "b.ko"}, "")
	if len(errs) != 2 || !errors.Is(errs[1], os.ErrNotExist) {
		t.Errorf("loadModules of files that do not exist = %v", errs)
	}
	if errs := loadModules(nil, ""); errs != nil {
		t.Errorf("loadModules of nothing = %v", errs)
	}
}
