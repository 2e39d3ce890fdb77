// Package bench measures the image as a whole (make bench). Nothing here is a test: the figures are for people, and
// the raw output is kept in results/.
package bench

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"
)

// hangGuard is far more than a boot takes.
const hangGuard = time.Minute

// guestStage is the log line of the first program in the guest, with the time since the kernel's start.
var guestStage = regexp.MustCompile(`guest reports dur=(\S+) event="guest stage"`)

// BenchmarkBoot takes a container from docker run to the greeting of its SSH server, once for each iteration, and
// reports the time from the start of the kernel to the first program in the guest (s/guest-stage), from docker run to
// the greeting (s/ssh-banner), and that of docker stop (s/stop).
func BenchmarkBoot(b *testing.B) {
	image := os.Getenv("E2E_IMAGE")
	if image == "" {
		b.Skip("E2E_IMAGE is not set: make bench builds the image and sets it")
	}
	var stage, banner, stop time.Duration
	for b.Loop() {
		began := time.Now()
		id := docker(b, "run", "-d", "-e", "LOG_LEVEL=debug", "-p", "127.0.0.1::22", image)
		b.Cleanup(func() { docker(b, "rm", "-f", "-v", id) })
		waitBanner(b, docker(b, "port", id, "22/tcp"))
		banner += time.Since(began)

		log, err := exec.Command("docker", "logs", id).CombinedOutput()
		if err != nil {
			b.Fatal(err)
		}
		match := guestStage.FindSubmatch(log)
		if match == nil {
			b.Fatalf("no guest stage in the log:\n%s", log)
		}
		d, err := time.ParseDuration(string(match[1]))
		if err != nil {
			b.Fatal(err)
		}
		stage += d

		began = time.Now()
		docker(b, "stop", id)
		stop += time.Since(began)
	}
	for unit, total := range map[string]time.Duration{
		"s/guest-stage": stage, "s/ssh-banner": banner, "s/stop": stop,
	} {
		b.ReportMetric(total.Seconds()/float64(b.N), unit)
	}
	b.ReportMetric(0, "ns/op") // the sum of all that means nothing
}

func docker(b *testing.B, args ...string) string {
	b.Helper()
	out, err := exec.Command("docker", args...).Output()
	if err != nil {
		b.Fatalf("docker %s: %v", strings.Join(args, " "), err)
	}
	first, _, _ := strings.Cut(string(out), "\n")
	return first
}

// waitBanner returns when an SSH server has greeted.
func waitBanner(b *testing.B, address string) {
	b.Helper()
	for deadline := time.Now().Add(hangGuard); ; time.Sleep(10 * time.Millisecond) {
		err := readBanner(address)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			b.Fatal(err)
		}
	}
}

func readBanner(address string) error {
	conn, err := net.DialTimeout("tcp", address, hangGuard)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(hangGuard)); err != nil {
		return err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err == nil && !strings.HasPrefix(line, "SSH-2.0-") {
		err = fmt.Errorf("greeting is %q", line)
	}
	return err
}
