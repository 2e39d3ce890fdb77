package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// buildGuard ends a build that hangs: the first one installs packages.
const buildGuard = 15 * time.Minute

// baseImage is what the image under test was built upon.
func baseImage() string {
	if base := os.Getenv("E2E_BASE_IMAGE"); base != "" {
		return base
	}
	return "debian:trixie-slim"
}

// buildUserland makes the image with a stage of userlands/Dockerfile as its /rootfs.
func buildUserland(t *testing.T, stage string) (tag string) {
	t.Helper()
	return buildImage(t, stage, "userlands", "--build-arg", "USERLAND="+stage)
}

// buildImage makes an image from the one under test and the base image, by the Dockerfile in a directory.
func buildImage(t *testing.T, what, dir string, options ...string) (tag string) {
	t.Helper()
	tag, _ = build(t, what, dir, nil, append([]string{"-q", "--build-arg", "IMAGE=" + image}, options...)...)
	return tag
}

// build makes an image from the base image, by the Dockerfile in a directory and with more in docker's environment, and
// returns what docker printed, too.
func build(t *testing.T, what, dir string, env []string, options ...string) (tag, output string) {
	t.Helper()
	needImage(t)
	tag = name(t, what)
	ctx, cancel := context.WithTimeout(t.Context(), buildGuard)
	defer cancel()
	args := append([]string{"build", "-t", tag, "--build-arg", "BASE_IMAGE=" + baseImage()}, options...)
	cmd := exec.CommandContext(ctx, "docker", append(args, dir)...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("build %s: %v\n%s", what, err, out)
	}
	// The stages stay, for the next run.
	t.Cleanup(func() { docker(t, "image", "rm", "--no-prune", tag) })
	return tag, string(out)
}

// read returns a file of the container, which may be running, and an empty string for one that is not there.
func (c *container) read(path string) string {
	c.t.Helper()
	out, err := exec.Command("docker", "cp", c.id+":"+path, "-").Output()
	if err != nil {
		return ""
	}
	archive := tar.NewReader(bytes.NewReader(out))
	if _, err := archive.Next(); err != nil {
		c.t.Fatalf("docker cp %s: %v", path, err)
	}
	text, err := io.ReadAll(archive)
	if err != nil {
		c.t.Fatalf("docker cp %s: %v", path, err)
	}
	return string(text)
}

// TestUserlands boots guests with other inits than systemd: docker stop has their services stopped in order, what they
// wrote is there after docker start, and they reboot and power off by their own commands.
func TestUserlands(t *testing.T) {
	t.Parallel()
	needImage(t)
	for _, u := range []struct {
		// stage of userlands/Dockerfile, process 1 there, and what we call that.
		stage, init, name string
		// poweroff and reboot are commands of that userland.
		poweroff, reboot string
		// shell is one on the console without a login.
		shell bool
	}{
		{"sysvinit", "/usr/sbin/init", "sysvinit", "poweroff", "reboot", false},
		{"gentoo", "/usr/sbin/init", "sysvinit", "poweroff", "reboot", false},
		{"openrc", "/usr/sbin/openrc-init", "openrc", "openrc-shutdown -p now", "openrc-shutdown -r now", false},
		{"alpine", "/usr/bin/busybox", "busybox", "poweroff", "reboot", false},
		{"runit", "/usr/sbin/runit", "runit", "poweroff", "reboot", false},
		{"busybox", "/bin/busybox", "busybox", "busybox poweroff", "busybox reboot", true},
	} {
		tag := buildUserland(t, u.stage)
		t.Run(u.stage, func(t *testing.T) {
			t.Parallel()
			c := startImage(t, tag, "-it", "-p", "127.0.0.1::22")
			want := ""
			started := func() {
				t.Helper()
				want += "started under " + u.init + "\n"
				waitFor(t, "the userland's service", func() error {
					if got := c.read("/rootfs/marker"); got != want {
						return errors.New(got)
					}
					return nil
				})
			}
			ended := func(how, code string) {
				t.Helper()
				want += "stopped\n"
				if code != "0" {
					t.Errorf("exit code %s after %s, want 0", code, how)
				}
				if got := c.read("/rootfs/marker"); got != want {
					t.Fatalf("after %s, the userland's service wrote\n%swant\n%s", how, got, want)
				}
			}
			started()
			if !u.shell {
				c.ssh()
			}
			ended("docker stop", c.stop())
			if log := c.logs(); strings.Contains(log, "rung=kill") {
				t.Errorf("the guest had to be killed")
			}
			docker(t, "start", c.id)
			started()
			c.waitUp(u.name)
			_, _ = c.exec("sh", "-c", u.reboot) // which may not live to see its end
			want += "stopped\n"
			started()
			c.waitUp(u.name)
			_, _ = c.exec("sh", "-c", u.poweroff)
			ended(u.poweroff, c.wait())
		})
	}
}

// TestUserlandWithoutInit boots a distribution's image as it is, with a shell whose end is the guest's.
func TestUserlandWithoutInit(t *testing.T) {
	t.Parallel()
	tag := buildUserland(t, "none")
	term := newTerminal(t, "docker", "run", "--rm", "-it", "--name", name(t, "none"), tag)
	term.expect("# ")
	term.send(". /etc/os-release; echo $ID on $(stat -f -c %T /)\r")
	term.expect("debian on ")
	term.send("exit 5\r")
	if code := term.wait(); code != 5 {
		t.Errorf("exit code %d, want 5, the shell's", code)
	}
}

// TestReadOnlyRootfs has a /rootfs that cannot be written, in a container that can.
func TestReadOnlyRootfs(t *testing.T) {
	t.Parallel()
	tag := buildUserland(t, "none")
	volume := name(t, "ro")
	// A new volume gets what the image has there.
	docker(t, "rm", docker(t, "create", "-v", volume+":/rootfs", tag))
	defer docker(t, "volume", "rm", volume)
	// Without a port for SSH: what the agent has to say of it could come in the midst of what touch writes to the console.
	stdout, stderr, code := run(t, "touch /file || ls /etc/debian_version; "+powerOff, append([]string{"-e", "PORTS=", "-v", volume + ":/rootfs:ro"}, shell...)...)
	if code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	for _, want := range []string{"root file system is read-only", "'/file': Read-only file system\n", "\n/etc/debian_version\n"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in\n%s\n%s", want, stdout, stderr)
		}
	}
}

// TestReadOnlyRootfsWithoutMountPoints has nothing but a program in a /rootfs that cannot be written: it needs /proc and /dev
// all the same.
func TestReadOnlyRootfsWithoutMountPoints(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	program, err := os.ReadFile(self(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "peer"), program, 0o755); err != nil {
		t.Fatal(err)
	}
	// It starts itself from /proc, with /dev/null for its standard streams.
	if stdout, stderr, code := run(t, "", "-v", root+":/rootfs:ro", "--", "run", "/peer", "orphans", "1"); code != 0 {
		t.Errorf("exit code %d, want 0\n%s\n%s", code, stdout, stderr)
	}
}

// TestUnusableRootfs has what is mounted at /rootfs by mistake.
func TestUnusableRootfs(t *testing.T) {
	t.Parallel()
	needImage(t)
	foreign := new(bytes.Buffer)
	header := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_AARCH64), Version: 1, Ehsize: 64}
	copy(header.Ident[:], elf.ELFMAG+"\x02\x01\x01")
	if err := binary.Write(foreign, binary.LittleEndian, header); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		// make makes the directory's content.
		make func(root string) error
		args []string
		code int
		want string
	}{
		{"empty", func(string) error { return nil }, nil, 2, `ROOTFS="/rootfs": the directory is empty`},
		{"no such init", func(root string) error {
			return os.WriteFile(filepath.Join(root, "file"), nil, 0o600)
		}, []string{"init=/sbin/nothing"}, 127, "init=/sbin/nothing: no such file in the root file system"},
		{"dangling init", func(root string) error {
			return os.Symlink("/lib/nothing", filepath.Join(root, "sbin/init"))
		}, nil, 126, "/sbin/init: it is a symbolic link to /lib/nothing, which is missing"},
		{"another architecture", func(root string) error {
			return os.WriteFile(filepath.Join(root, "sbin/init"), foreign.Bytes(), 0o755)
		}, nil, 126, "it needs arm64, the guest is amd64"},
		{"no program", func(root string) error {
			return os.WriteFile(filepath.Join(root, "sbin/init"), []byte("exec sh\n"), 0o755)
		}, nil, 126, "/sbin/init: neither a program nor a script"},
		{"not executable", func(root string) error {
			return os.WriteFile(filepath.Join(root, "sbin/init"), foreign.Bytes(), 0o644)
		}, nil, 126, "/sbin/init: not an executable file"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			if test.name != "empty" {
				if err := os.Mkdir(filepath.Join(root, "sbin"), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if err := test.make(root); err != nil {
				t.Fatal(err)
			}
			stdout, stderr, code := run(t, "", append([]string{"-v", root + ":/rootfs", "--", "quiet"}, test.args...)...)
			if code != test.code {
				t.Errorf("exit code %d, want %d", code, test.code)
			}
			if !strings.Contains(stdout+stderr, test.want) {
				t.Errorf("no %q in\n%s\n%s", test.want, stdout, stderr)
			}
		})
	}
}
