//go:build linux

package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"docker-usermode-linux/internal/boot"
)

func TestChooseInit(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"whole/bin/sh", "whole/sbin/x", "whole/usr/lib/systemd/systemd", "shell/bin/sh", "data/file"} {
		writeFile(t, filepath.Join(dir, name), "")
	}
	for name, target := range map[string]string{"sbin/init": "/usr/lib/systemd/systemd", "dangling": "/nowhere"} {
		if err := os.Symlink(target, filepath.Join(dir, "whole", name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		tree, init  string
		none        bool
		want, shell string // both "" for an error, unless none
	}{
		{tree: "whole", want: "/sbin/init /usr/lib/systemd/systemd"},
		{tree: "whole", init: "/bin/sh", want: "/bin/sh"},
		{tree: "whole", init: "/dangling", want: "/dangling"},
		{tree: "whole", init: "/no/such"},
		{tree: "whole", none: true},
		{tree: "shell", shell: "/bin/sh"},
		{tree: "shell", init: "/sbin/init"},
		{tree: "data"},
		{tree: "data", none: true},
	} {
		root, err := os.OpenRoot(filepath.Join(dir, tt.tree))
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		got, shell, err := chooseInit(root, tt.init, boot.Settings{NoInit: tt.none})
		var exit *exitError
		if tt.want+tt.shell == "" && !tt.none && (!errors.As(err, &exit) || exit.code != codeNotFound) {
			t.Errorf("chooseInit(%s, %q) error = %v, want one with code %d", tt.tree, tt.init, err, codeNotFound)
		}
		if strings.Join(got, " ") != tt.want || shell != tt.shell {
			t.Errorf("chooseInit(%+v) = %q, %q, %v", tt, got, shell, err)
		}
	}
}

func TestWantsTerminal(t *testing.T) {
	for _, init := range []string{"/bin/sh", "/usr/bin/bash", "/root/test.sh", "/usr/bin/python3"} {
		if !wantsTerminal(init) {
			t.Errorf("wantsTerminal(%q) = false, want true", init)
		}
	}
	for _, init := range []string{
		"/sbin/init", "/usr/lib/systemd/systemd", "/sbin/openrc-init", "/sbin/runit-init", "/sbin/runit", "/bin/s6-svscan",
		"/sbin/finit", "/sbin/dinit",
	} {
		if wantsTerminal(init) {
			t.Errorf("wantsTerminal(%q) = true, want false", init)
		}
	}
}

func TestInitEnv(t *testing.T) {
	tests := []struct{ env, want []string }{
		{[]string{"HOME=/", "TERM=linux"}, []string{"HOME=/", "TERM=linux", defaultPath}},
		{[]string{"PATH=/x"}, []string{"PATH=/x"}},
	}
	for _, tt := range tests {
		if got := initEnv(tt.env); !slices.Equal(got, tt.want) {
			t.Errorf("initEnv(%q) = %q, want %q", tt.env, got, tt.want)
		}
	}
}

func TestExplainExec(t *testing.T) {
	const (
		elf64  = "\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00"
		elf64b = "\x7fELF\x02\x02\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02"
	)
	dir := t.TempDir()
	dangling := filepath.Join(dir, "dangling")
	if err := os.Symlink("/no/where", dangling); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, text string
		errno      error
		want       string
	}{
		{"sparc", elf64 + "\x2b\x00", unix.ENOEXEC, "built for another architecture: it needs machine 43, "},
		{"s390x", elf64b + "\x00\x16", unix.ENOEXEC, "built for another architecture: it needs s390x, "},
		{"text", "hello", unix.ENOEXEC, "neither a program nor a script with #!"},
		{"script", "#! /no/such -x\nexit", unix.ENOENT, "its interpreter is missing: /no/such -x"},
		{"dynamic", elf64 + "\x3e\x00", unix.ENOENT, "its dynamic linker is missing"},
		{"dangling", "", unix.ENOENT, "it is a symbolic link to /no/where, which is missing"},
		{"text", "hello", unix.EACCES, "not an executable file: permission denied"},
		{"text", "hello", unix.ENOMEM, "cannot allocate memory"},
	}
	for _, tt := range tests {
		name := filepath.Join(dir, tt.name)
		if name != dangling {
			writeFile(t, name, tt.text)
		}
		if got := explainExec(name, tt.errno).Error(); !strings.HasPrefix(got, "execute "+name+": "+tt.want) {
			t.Errorf("explainExec(%s, %v) = %q, want %q", tt.name, tt.errno, got, tt.want)
		}
	}
}

func TestForeignKnowsItself(t *testing.T) {
	if got := foreign(readHead("/proc/self/exe")); got != "" {
		t.Errorf("foreign(this program) = %q, want none", got)
	}
}

func writeFile(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
