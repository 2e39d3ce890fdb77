package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/cpu"
)

// TestStockKernel boots the kernel of Debian's package user-mode-linux, with none of our patches and most drivers as modules:
// slower, it has all that ours has. On processors with AMX it does not boot, and the log says why.
func TestStockKernel(t *testing.T) {
	t.Parallel()
	tag := buildImage(t, "stock", "stockkernel")
	const shm = "/dev/shm:exec" // where such a kernel has its RAM

	stdout, stderr, code := runImage(t, tag, "input", "--tmpfs", shm, "--", "run", "sh", "-c", "uname -r; cat; exit 7")
	if cpu.X86.HasAMXTile {
		if code != 134 || !strings.Contains(stderr, "Linux 6.1.") || !strings.Contains(stderr, "a processor with AMX") {
			t.Errorf("run on a processor with AMX: %q, code %d, %s", stdout, code, stderr)
		}
		return
	}
	if code != 7 || !strings.HasPrefix(stdout, "6.1.") || !strings.HasSuffix(stdout, "\ninput") || strings.Count(stderr, "WRN") != 1 ||
		!strings.Contains(stderr, "without our patches") {
		t.Errorf("run: %q, code %d, %s", stdout, code, stderr)
	}

	release, _, _ := strings.Cut(stdout, "\n")
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	driver := "/usr/lib/uml/modules/" + release + "/kernel/drivers/char/virtio_console.ko"
	stdout, stderr, code = runImage(t, tag, "", "--tmpfs", shm, "-v", empty+":"+driver+":ro", "--", "run", "true")
	if code != 125 || !strings.Contains(stderr, "load kernel module virtio_console.ko: ") || !strings.Contains(stderr, "the kernel has no port for it") {
		t.Errorf("run with a module that is broken: %q, code %d, %s", stdout, code, stderr)
	}

	c := startImage(t, tag, "--tmpfs", shm, "-p", "127.0.0.1::22", "-e", "EPHEMERAL=on", "-e", "MEM=512M")
	client := c.ssh()
	if got := remote(t, client, "touch /written; findmnt -n -o FSTYPE /; ip -6 route show default"); !strings.HasPrefix(got, "overlay") ||
		!strings.Contains(got, "dev eth0") {
		t.Errorf("in the guest: %q, want an overlay, and a default route of IPv6", got)
	}
	c.waitUp("systemd")
	waitFor(t, "a healthy guest that has given memory back", func() error {
		s, err := c.status()
		if err == nil && (!s.Healthy || s.HostReturned == 0) {
			err = fmt.Errorf("status: %+v", s)
		}
		return err
	})
	if code := c.stop(); code != "0" {
		t.Errorf("exit code %s", code)
	}
	if got := c.read("/rootfs/written"); got != "" {
		t.Error("what an ephemeral guest wrote is there")
	}
}
