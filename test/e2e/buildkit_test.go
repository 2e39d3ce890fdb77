package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// stubs stand in a build for what takes minutes to compile: the kernel is a text, and the programs do nothing. Their
// names are those in the directory of the build.
var stubs = map[string]string{
	"kernel-config/build": `#!/bin/sh
set -eu
test -f "$1"/linux-source-*.tar.xz
rmdir "$(mktemp -d)"
echo "no kernel" >"$2"
`,
	"go.mod":                 "module stub\n",
	"go.sum":                 "",
	"internal/stub.go":       "package internal\n",
	"cmd/guest/main.go":      "package main\n\nfunc main() {}\n",
	"cmd/entrypoint/main.go": "package main\n\nfunc main() {}\n",
	"cmd/entrypoint/entry_amd64.s": `#include "textflag.h"
TEXT pid1entry(SB), NOSPLIT|NOFRAME, $0
	JMP _rt0_amd64_linux(SB)
`,
}

// TestBuildKit builds the image by BuildKit, too, from the same Dockerfile and with the same recipes, but with stubs of
// what is compiled: it has the same settings as the one of the other builder, and each file in its place.
func TestBuildKit(t *testing.T) {
	t.Parallel()
	needImage(t)
	dir := t.TempDir()
	for _, part := range []string{"Dockerfile", ".dockerignore", "certs", "kernel-config", "rootfs"} {
		if out, err := exec.Command("cp", "-r", "../../"+part, dir).CombinedOutput(); err != nil {
			t.Fatalf("cp %s: %v\n%s", part, err, out)
		}
	}
	for path, text := range stubs {
		path = filepath.Join(dir, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}

	env := []string{"DOCKER_BUILDKIT=1"}
	if config := os.Getenv("E2E_DOCKER_CONFIG"); config != "" {
		env = append(env, "DOCKER_CONFIG="+config)
	}
	tag, output := build(t, "buildkit", dir, env, "--progress=plain")
	if !strings.Contains(output, "[kernel ") {
		t.Errorf("not BuildKit's output:\n%s", output)
	}

	for _, setting := range []string{
		"Entrypoint", "Cmd", "Env", "User", "WorkingDir", "ExposedPorts", "Volumes", "Healthcheck", "Labels", "StopSignal",
	} {
		format := "{{json .Config." + setting + "}}"
		if got, want := docker(t, "inspect", "-f", format, tag), docker(t, "inspect", "-f", format, image); got != want {
			t.Errorf("%s is %s with BuildKit, %s with the classic builder", setting, got, want)
		}
	}

	c := &container{t: t, id: docker(t, "create", tag)}
	defer docker(t, "rm", c.id)
	for _, path := range []string{
		"/entrypoint", "/guest", "/initramfs", "/run", "/rootfs/dev", "/rootfs/sbin/init",
		"/rootfs/usr/lib/systemd/systemd", "/rootfs/etc/ssh/sshd_config",
	} {
		if _, err := dockerErr("cp", c.id+":"+path, "-"); err != nil {
			t.Errorf("BuildKit's image: %v", err)
		}
	}
	if got := c.read("/linux"); got != "no kernel\n" {
		t.Errorf("/linux is %q", got)
	}
	// A builder mounts its own over these.
	for _, file := range []string{"hostname", "hosts", "resolv.conf"} {
		want, err := os.ReadFile("../../rootfs/debian/etc/" + file)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.read("/rootfs/etc/" + file); got != string(want) {
			t.Errorf("/rootfs/etc/%s is %q, want %q", file, got, want)
		}
	}
}
