package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// BenchmarkGuest runs bench/work in a plain container and in guests with different settings: what a system call, a
// switch, a page fault, a fork with an exec and a file of a tree cost there, and what a second CPU brings.
func BenchmarkGuest(b *testing.B) {
	image, base := os.Getenv("E2E_IMAGE"), os.Getenv("E2E_BASE_IMAGE")
	if image == "" || base == "" {
		b.Skip("E2E_IMAGE and E2E_BASE_IMAGE are not set: make bench sets them")
	}
	work := filepath.Join(b.TempDir(), "work")
	build := exec.Command("go", "build", "-trimpath", "-o", work, "./work")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("build work: %v\n%s", err, out)
	}
	native := []string{"-v", work + ":/work:ro", base, "/work"}
	guest := func(options ...string) []string {
		return append(options, "-v", work+":/rootfs/work:ro", image, "run", "/work")
	}
	for _, where := range []struct {
		name    string
		options []string
	}{
		{"native", native},
		{"guest", guest()},
		{"guest,CPUS=2", guest("-e", "CPUS=2")},
		{"guest,CPU_PLACEMENT=off", guest("-e", "CPU_PLACEMENT=off")},
		{"guest,USERSPACE=ptrace", guest("-e", "USERSPACE=ptrace")},
	} {
		b.Run(where.name, func(b *testing.B) {
			sums := map[string]float64{}
			for b.Loop() {
				out, err := exec.Command("docker", append([]string{"run", "--rm"}, where.options...)...).Output()
				if err != nil {
					b.Fatalf("docker run %v: %v", where.options, err)
				}
				for line := range strings.Lines(string(out)) {
					var name, unit string
					var value float64
					if _, err := fmt.Sscan(line, &name, &value, &unit); err != nil {
						b.Fatalf("line %q: %v", line, err)
					}
					sums[unit+"/"+name] += value
				}
			}
			for unit, sum := range sums {
				b.ReportMetric(sum/float64(b.N), unit)
			}
			b.ReportMetric(0, "ns/op") // the sum of all that means nothing
		})
	}
}
