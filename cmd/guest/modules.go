//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"docker-usermode-linux/internal/boot"
)

// loadModules loads files of boot.ModulesDir into the kernel, with the parameters that its command line has for them.
func loadModules(files []string, cmdline string) (errs []error) {
	for _, file := range files {
		params := moduleParams(strings.TrimSuffix(file, ".ko"), cmdline)
		if err := loadModule(path.Join(boot.ModulesDir, file), params); err != nil {
			errs = append(errs, fmt.Errorf("load kernel module %s: %w", file, err))
		}
	}
	return errs
}

func loadModule(name, params string) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := unix.FinitModule(int(file.Fd()), params, 0); err != nil && !errors.Is(err, unix.EEXIST) { // EEXIST: it is there
		return err
	}
	return nil
}

// moduleParams returns the parameters of a module in /proc/cmdline, as modprobe(8) takes them from there: "a=1 b" for
// "name.a=1 name.b". The kernel itself sees to those of what is built in alone.
func moduleParams(name, cmdline string) string {
	same := strings.NewReplacer("-", "_").Replace
	var params []string
	for _, param := range splitParams(cmdline) {
		if param == "--" {
			break // what follows is for init
		}
		key, value, hasValue := strings.Cut(param, "=")
		prefix, key, ok := strings.Cut(key, ".")
		if !ok || same(prefix) != same(name) {
			continue
		}
		if hasValue {
			key += "=" + value
		}
		if strings.ContainsAny(key, " \t") {
			key = `"` + key + `"`
		}
		params = append(params, key)
	}
	return strings.Join(params, " ")
}
