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

func writeHook(t *testing.T, name, script string) {
	t.Helper()
	writeFile(t, name, script)
	if err := os.Chmod(name, 0o700); err != nil {
		t.Fatal(err)
	}
}

func TestRunHooks(t *testing.T) {
	for _, test := range []struct {
		name     string
		hooks    map[string]string
		out      string // what they write to $OUT
		want     string // the error, "" for none
		wantCode int
	}{
		{"none", nil, "", "", 0},
		{
			"in order",
			map[string]string{"b": "#!/bin/sh\necho b >>$OUT", "a": "#!/bin/sh\necho a >>$OUT", "10": "#!/bin/sh\necho 10 >>$OUT"},
			"10\na\nb\n", "", 0,
		},
		{"without #!", map[string]string{"a.sh": "echo $0 | sed 's:.*/::' >>$OUT"}, "a.sh\n", "", 0},
		{"empty", map[string]string{"a.sh": ""}, "", "", 0},
		{"by its #!", map[string]string{"a": "#!/bin/sh -e\nfalse\necho a >>$OUT"}, "", "hook a: exit status 1", 1},
		{"where", map[string]string{"a": "#!/bin/sh\npwd >>$OUT; cat; echo end >>$OUT"}, "/\nend\n", "", 0},
		{"failure", map[string]string{"a": "#!/bin/sh\nexit 3", "b": "#!/bin/sh\necho b >>$OUT"}, "", "hook a: exit status 3", 3},
		{"signal", map[string]string{"a": "kill -9 $$"}, "", "hook a: signal: killed", 128 + 9},
		{"no interpreter", map[string]string{"a": "#!/no/such\n"}, "", "/a: its interpreter is missing: /no/such", codeExec},
		{
			"foreign",
			map[string]string{"a": "\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x2b\x00"},
			"",
			"/a: built for another architecture: it needs machine 43", codeExec,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir, out := t.TempDir(), filepath.Join(t.TempDir(), "out")
			for name, script := range test.hooks {
				writeHook(t, filepath.Join(dir, name), script)
			}
			err := runHooks(dir, []string{"OUT=" + out, defaultPath}, false)
			if data, _ := os.ReadFile(out); string(data) != test.out {
				t.Errorf("the hooks wrote %q, want %q", data, test.out)
			}
			var exit *exitError
			if test.want == "" && err != nil || test.want != "" &&
				(!errors.As(err, &exit) || exit.code != test.wantCode || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("runHooks() = %v, want %q, exit code %d", err, test.want, test.wantCode)
			}
			if err != nil && (!strings.HasPrefix(err.Error(), "hook a: ") || strings.Contains(err.Error(), "\n")) {
				t.Errorf("runHooks() = %q, want one line that names the hook", err)
			}
		})
	}
	if err := runHooks("/does/not/exist", nil, false); err != nil {
		t.Errorf("runHooks without a directory = %v", err)
	}
}

// TestRunAllHooks checks that at the stop those behind one that fails run, too: they may have data to save.
func TestRunAllHooks(t *testing.T) {
	dir, out := t.TempDir(), filepath.Join(t.TempDir(), "out")
	for name, script := range map[string]string{"a": "exit 3", "b": "echo b >>$OUT", "c": "exit 4", "d": "echo d >>$OUT"} {
		writeHook(t, filepath.Join(dir, name), script)
	}
	err := runHooks(dir, []string{"OUT=" + out, defaultPath}, true)
	if want := "hook a: exit status 3\nhook c: exit status 4"; err == nil || err.Error() != want {
		t.Errorf("runHooks() = %v, want %q", err, want)
	}
	if data, _ := os.ReadFile(out); string(data) != "b\nd\n" {
		t.Errorf("the hooks wrote %q, want those behind the failures as well", data)
	}
}

// TestHookTree has hooks of either stage run from the tree, twice, and nothing of it in sight afterwards.
func TestHookTree(t *testing.T) {
	tree, err := newHookTree()
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS) {
		t.Skip("mounting is not allowed here")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer tree.dir.Close()
	tree.mount = filepath.Join(t.TempDir(), "hooks")
	from := t.TempDir()
	writeHook(t, filepath.Join(from, "start/a"), "#!/bin/sh\necho start ${0##*/} >>$OUT")
	writeHook(t, filepath.Join(from, "stop/a"), "#!/bin/sh\necho stop >>$OUT; exit 4")
	for _, stage := range []string{"start", "stop"} {
		if err := tree.copy(filepath.Join(from, stage), stage); err != nil {
			t.Fatal(err)
		}
	}
	out := filepath.Join(t.TempDir(), "out")
	env := []string{"OUT=" + out, defaultPath}
	for range 2 {
		if err := tree.run(boot.StageStart, env); err != nil {
			t.Errorf("run(start) = %v", err)
		}
		if err := tree.run(boot.StageStop, env); err == nil || err.Error() != "hook a: exit status 4" {
			t.Errorf("run(stop) = %v, want exit status 4", err)
		}
		if exists(tree.mount) {
			t.Errorf("%s is still there", tree.mount)
		}
	}
	if data, _ := os.ReadFile(out); string(data) != "start a\nstop\nstart a\nstop\n" {
		t.Errorf("the hooks wrote %q", data)
	}
	var none *hookTree
	if err := none.run(boot.StageStart, nil); err != nil {
		t.Errorf("run of none = %v", err)
	}
}

func TestHookEnv(t *testing.T) {
	env := []string{"HOME=/", "TERM=linux", "MINE=1"}
	want := []string{"TERM=linux", "MINE=1", "HOME=/root", defaultPath}
	if got := hookEnv(env); !slices.Equal(got, want) || env[0] != "HOME=/" {
		t.Errorf("hookEnv(%q) = %q, want %q", env, got, want)
	}
}

// TestStopHooksGetKernelArguments has the agent keep NAME=value of the kernel's command line for its hooks, as those at
// the start have it, and for them alone.
func TestStopHooksGetKernelArguments(t *testing.T) {
	before := os.Environ()
	t.Cleanup(func() {
		os.Clearenv()
		for _, v := range before {
			name, value, _ := strings.Cut(v, "=")
			os.Setenv(name, value)
		}
	})
	os.Clearenv()
	for name, value := range map[string]string{"HOME": "/", "MINE": "a=b", "PATH": "/mine"} {
		os.Setenv(name, value)
	}
	start := hookEnv(os.Environ())
	if stop := takeEnv(); !slices.Equal(stop, start) || !slices.Contains(stop, "MINE=a=b") {
		t.Errorf("takeEnv() = %q, want %q, as at the start", stop, start)
	}
	if got := os.Environ(); !slices.Equal(got, []string{defaultPath}) {
		t.Errorf("the agent keeps %q, want %q", got, defaultPath)
	}
}
