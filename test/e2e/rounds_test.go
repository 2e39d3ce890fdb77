package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// stopRounds is how often TestStopRounds stops its guest, without STOP_ROUNDS in the environment.
const stopRounds = 3

// diskHook mounts the disk, counts the round and syncs that, and leaves somebody behind who writes until the end.
const diskHook = `#!/bin/sh -e
mkdir -p /mnt/disk
mount /dev/ubda /mnt/disk
n=$(cat /mnt/disk/count 2>/dev/null || echo 0)
echo $((n+1)) >/mnt/disk/count
echo $((n+1)) >/count
sync
(while :; do head -c 300000 /dev/urandom >/mnt/disk/busy; cp /mnt/disk/busy /mnt/disk/copy; done) >/dev/null 2>&1 &
`

// TestStopRounds starts and stops one guest again and again, at whatever moment of its boot and life: it always ends by
// itself, what was synced is there, and the file system of its disk is in order. `make rounds` does so 500 times.
func TestStopRounds(t *testing.T) {
	t.Parallel()
	needImage(t)
	rounds := stopRounds
	if s := os.Getenv("STOP_ROUNDS"); s != "" {
		var err error
		if rounds, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk")
	if err := os.Mkdir(filepath.Join(dir, "hooks"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hooks", "10-disk"), []byte(diskHook), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(disk, 64<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("/sbin/mkfs.ext4", "-q", disk).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v\n%s", err, out)
	}
	id := docker(t, "create", "--name", name(t, "rounds"), "-e", "PORTS=", "-v", dir+"/hooks:/docker-entrypoint.d:ro",
		"-v", disk+":/disk", image, "ubd0=/disk")
	c := &container{t: t, id: id}
	t.Cleanup(func() { docker(t, "rm", "-f", "-v", id) })
	var slowest time.Duration
	for round := 1; round <= rounds; round++ {
		docker(t, "start", id)
		c.mustExec("true") // the hook has run
		time.Sleep(rand.N(3 * time.Second))
		began := time.Now()
		docker(t, "stop", id)
		took := time.Since(began)
		slowest = max(slowest, took)
		state := docker(t, "inspect", "-f", "{{.State.ExitCode}}", id)
		out, err := exec.Command("/sbin/e2fsck", "-fn", disk).CombinedOutput()
		if state != "0" || err != nil {
			t.Fatalf("round %d: exit code %s after %.1f s, e2fsck: %v\n%s\n%s", round, state, took.Seconds(), err, out, c.logs())
		}
		if got := strings.TrimSpace(c.read("/rootfs/count")); got != fmt.Sprint(round) {
			t.Fatalf("round %d: the disk has counted %s", round, got)
		}
	}
	t.Logf("%d rounds, the slowest docker stop took %.1f s", rounds, slowest.Seconds())
	if log := c.logs(); strings.Contains(log, "rung=halt") || strings.Contains(log, "was killed") {
		t.Errorf("the guest did not always power off by itself:\n%s", log)
	}
}
