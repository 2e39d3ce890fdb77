//go:build linux

package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"docker-usermode-linux/bench/figures"
)

func TestMain(m *testing.M) {
	if err := adoptOrphans(); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

func shell(t *testing.T, script string) result {
	t.Helper()
	return run([]string{"GREETING=hello", "sh", "-c", script}, t.TempDir())
}

// TestRun: of what a console says, work's lines count, wherever they stand.
func TestRun(t *testing.T) {
	r := shell(t, `echo "[ 0.1] booted $GREETING"
echo; echo '@work begin'
echo '[ 0.2] noise @work find 3.5 us/file'
echo '@work compile fails: gcc: not found'
echo '@work two words'
echo '@work end 0.000'`)
	if r.err != nil {
		t.Fatal(r.err)
	}
	if want := []value{{"find", 3.5, "us/file"}}; !slices.Equal(r.values, want) {
		t.Errorf("values %v, want %v", r.values, want)
	}
	if want := []failure{{"compile", "gcc: not found"}}; !slices.Equal(r.failures, want) {
		t.Errorf("failures %v, want %v", r.failures, want)
	}
	if r.begin.Before(r.started) || r.end.Before(r.begin) || r.gone.Before(r.started) {
		t.Errorf("started %v, begin %v, end %v, gone %v", r.started, r.begin, r.end, r.gone)
	}
}

// TestRunFails: what has not come to its end says why, with its last words, and so does what is not there. Those of a
// kernel that panics are before its dump.
func TestRunFails(t *testing.T) {
	r := shell(t, `echo '@work begin'; echo "$GREETING" >&2; exit 3`)
	if r.err == nil || !strings.HasSuffix(r.err.Error(), "exit status 3; last words: hello") {
		t.Errorf("error %v", r.err)
	}
	dump := shell(t, `printf 'because\nKernel panic, %s\n' "$GREETING" >&2; seq 1000 >&2; exit 3`)
	if dump.err == nil || !strings.HasSuffix(dump.err.Error(), "last words: because Kernel panic, hello") {
		t.Errorf("error %v", dump.err)
	}
	if r.begin.IsZero() || !r.end.IsZero() {
		t.Errorf("begin %v, end %v", r.begin, r.end)
	}
	if r := run([]string{"/nowhere/peer"}, t.TempDir()); r.err == nil || !strings.Contains(r.err.Error(), "/nowhere/peer") {
		t.Errorf("error %v", r.err)
	}
}

// TestRunLeavesNothing: what a command leaves behind is killed, although it holds on to the console.
func TestRunLeavesNothing(t *testing.T) {
	if lists, _ := filepath.Glob("/proc/self/task/*/children"); len(lists) == 0 {
		t.Skip("this kernel does not list children")
	}
	dir := t.TempDir()
	const script = `echo '@work begin'; sleep 1000 & echo $! >pid; echo '@work end 0.000'`
	if r := run([]string{"sh", "-c", script}, dir); r.err != nil {
		t.Fatal(r.err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("process %d: %v, want it to be gone", pid, err)
	}
}

func TestClock(t *testing.T) {
	began := time.Now()
	for _, tt := range []struct {
		our, guest time.Duration
		ok         bool
	}{
		{10 * time.Second, 10 * time.Second, true},
		{10 * time.Second, 9900 * time.Millisecond, true},
		{10 * time.Second, 9 * time.Second, false},
		{10 * time.Second, 12 * time.Second, false},
		{20 * time.Millisecond, 0, true},
	} {
		r := result{begin: began, end: began.Add(tt.our), guestTime: tt.guest}
		if err := r.clock(); (err == nil) != tt.ok {
			t.Errorf("%s by ours, %s by the guest's: %v", tt.our, tt.guest, err)
		}
	}
}

// TestCommands: each environment's command has what it runs, where it is, and the measurements that are asked for.
func TestCommands(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{
		"boot/vmlinuz-6.1-cloud", "usr/lib/modules/6.1-cloud/kernel/drivers/block/virtio_blk.ko.xz", "work",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	where := turn{dir: dir, tests: []string{"find", "compile"}, paths: paths{
		work: filepath.Join(dir, "work"), qemuKernel: dir, runsc: "runsc", qemu: "qemu", entrypoint: "ours",
		unpatched: "unpatched", classic: "uml61",
	}}
	for _, e := range environments {
		line, err := e.command(where)
		if err != nil {
			t.Errorf("%s: %v", e.name, err)
			continue
		}
		text := strings.Join(line, " ")
		root := where.rootDir()
		if e.disk {
			root = where.disk()
		}
		for _, part := range []string{root, strings.Split(e.name, "-")[0]} {
			if e.name != "native" && !strings.Contains(text, part) {
				t.Errorf("%s: no %s in %s", e.name, part, text)
			}
		}
		if !strings.Contains(text, "find,compile") && !strings.HasSuffix(text, " find compile") {
			t.Errorf("%s: no measurements in %s", e.name, text)
		}
	}
}

func TestBzImageVersion(t *testing.T) {
	dir := t.TempDir()
	image := make([]byte, 0x400)
	image[0x20e], image[0x20f] = 0x10, 0x01
	copy(image[0x310:], "6.12.1-cloud-amd64 (debian-kernel)")
	path := filepath.Join(dir, "vmlinuz-x")
	for _, tt := range []struct {
		image []byte
		want  string
	}{
		{image, "6.12.1-cloud-amd64"},
		{image[:0x300], path + " says no version"},
		{image[:4], path + " is too short for a kernel"},
	} {
		if err := os.WriteFile(path, tt.image, 0o644); err != nil {
			t.Fatal(err)
		}
		if got := bzImageVersion(dir); got != tt.want {
			t.Errorf("bzImageVersion of %d bytes = %q, want %q", len(tt.image), got, tt.want)
		}
	}
}

func TestTable(t *testing.T) {
	const raw = `# 2026-11-23, 2 rounds
BenchmarkGuest/on=native/test=find 1 3 us/file
BenchmarkGuest/on=native/test=find 1 4 us/file
BenchmarkGuest/on=qemu/test=boot 1 5600 ms
# on=qemu test=find fails: no find
# on=uml61 test=boot fails: no uml
# on=uml61 test=boot fails: no uml
`
	const want = `| | native | UML 6.1 | QEMU TCG |
|---|---|---|---|
| find over /usr, µs a file | 3.50 (3.00–4.00) | – | fails |
| start to the first instruction of the init, ms | – | fails | 5,600 |
`
	f, err := figures.Read(strings.NewReader(raw), benchmark)
	if err != nil {
		t.Fatal(err)
	}
	if got := table(f); got != want {
		t.Errorf("table =\n%s\nwant\n%s", got, want)
	}
	if got, want := reasons(f), "- qemu, find: no find\n- uml61, boot: no uml\n"; got != want {
		t.Errorf("reasons = %q, want %q", got, want)
	}
}
