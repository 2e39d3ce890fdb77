package userns

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// roleEnv has the test's binary be the program that enters a namespace, and then the one that is in it.
const roleEnv = "TEST_USERNS_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(roleEnv) {
	case "":
		os.Exit(m.Run())
	case "outside":
		fmt.Fprintln(os.Stderr, outside())
		os.Exit(3)
	default:
		os.Exit(inside(os.Args[1:]))
	}
}

// outside returns why it is still there.
func outside() error {
	m, err := Find()
	if err != nil {
		return err
	}
	if !m.Needed() {
		return errors.New("there is nothing to enter")
	}
	env := []string{roleEnv + "=inside", "TEST_USERNS_PID=" + strconv.Itoa(os.Getpid())}
	return m.Enter(context.Background(), os.Args, env)
}

// inside is a program that has entered a namespace: it does what it is told and returns its exit code.
func inside(args []string) int {
	m, err := Find()
	if err != nil || m.Needed() || os.Getuid() != 0 || os.Getgid() != 0 {
		fmt.Printf("root is %d:%d, needs %v, %v\n", os.Getuid(), os.Getgid(), m, err)
		return 1
	}
	if pid := os.Getenv("TEST_USERNS_PID"); pid != strconv.Itoa(os.Getpid()) {
		fmt.Printf("process is %d, was %s\n", os.Getpid(), pid)
		return 1
	}
	switch args[0] {
	case "chown":
		return chown(args[1:])
	case "descriptors":
		entries, _ := os.ReadDir("/proc/self/fd")
		for _, entry := range entries {
			target, err := os.Readlink("/proc/self/fd/" + entry.Name())
			if err == nil && (strings.HasPrefix(target, "user:") || strings.Contains(target, "memfd") || target == executable()) {
				fmt.Printf("%s is still open\n", target)
				return 1
			}
		}
	case "signal":
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGUSR1)
		fmt.Println("ready")
		<-signals
		return 9
	case "die":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	return 0
}

// chown makes a file for each pair of owner and group.
func chown(args []string) int {
	for i := 1; i+1 < len(args); i += 2 {
		uid, _ := strconv.Atoi(args[i])
		gid, _ := strconv.Atoi(args[i+1])
		name := filepath.Join(args[0], args[i])
		if err := errors.Join(os.WriteFile(name, nil, 0o644), os.Lchown(name, uid, gid)); err != nil {
			fmt.Println(err)
			return 1
		}
	}
	return 7
}

// account is a user that tests run programs as.
type account struct {
	name     string
	uid, gid uint32
	dir      string // of the user's own
}

// firstSub is where the subordinate ids of test users start, far from what useradd gives out.
const firstSub = 1_900_000_000

// newAccount makes a user, with options for usermod, where the test runs as root.
func newAccount(t *testing.T, options ...string) account {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("makes a user: needs root")
	}
	for _, program := range []string{"useradd", "usermod", "userdel", "newuidmap"} {
		if _, err := lookPath(program); err != nil {
			t.Skipf("makes a user: %v", err)
		}
	}
	name := "umltest" + strconv.Itoa(os.Getpid())
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	run("useradd", "--system", "--no-create-home", "--user-group", "--shell", "/usr/sbin/nologin", name)
	t.Cleanup(func() { run("userdel", name) })
	if len(options) > 0 {
		run(append(append([]string{"usermod"}, options...), name)...)
	}
	a := account{name: name}
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.ParseUint(u.Uid, 10, 32)
	gid, _ := strconv.ParseUint(u.Gid, 10, 32)
	a.uid, a.gid = uint32(uid), uint32(gid)
	if a.dir, err = os.MkdirTemp("", "userns"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(a.dir) })
	if err := os.Chown(a.dir, int(uid), int(gid)); err != nil {
		t.Fatal(err)
	}
	return a
}

func newAccountWithIDs(t *testing.T) account {
	t.Helper()
	ids := fmt.Sprintf("%d-%d", firstSub, firstSub+65535)
	return newAccount(t, "--add-subuids", ids, "--add-subgids", ids)
}

// command is this binary in the role outside, as the user.
func (a account) command(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Dir = a.dir
	cmd.Env = []string{roleEnv + "=outside", "HOME=" + a.dir, "USER=" + a.name, "PATH=/usr/bin:/bin", "GORACE=exitcode=66"}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: a.uid, Gid: a.gid}, Pdeathsig: syscall.SIGKILL,
	}
	return cmd
}

// run returns the exit code and what was printed.
func (a account) run(t *testing.T, args ...string) (int, string) {
	t.Helper()
	cmd := a.command(args...)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	if strings.Contains(string(out), ErrForbidden.Error()) {
		t.Skipf("%s", out)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// TestEnterChown has files of many owners made in the namespace, and looks at them from outside.
func TestEnterChown(t *testing.T) {
	a := newAccountWithIDs(t)
	code, out := a.run(t, "chown", a.dir, "0", "0", "1", "2", "1000", "1001", "65534", "65534", "65536", "65536")
	if code != 7 {
		t.Fatalf("exit code %d, want the 7 of the program inside: %s", code, out)
	}
	for name, want := range map[string]string{
		"0":     fmt.Sprintf("%d:%d", a.uid, a.gid),
		"1":     fmt.Sprintf("%d:%d", firstSub, firstSub+1),
		"1000":  fmt.Sprintf("%d:%d", firstSub+999, firstSub+1000),
		"65534": fmt.Sprintf("%d:%d", firstSub+65533, firstSub+65533),
		"65536": fmt.Sprintf("%d:%d", firstSub+65535, firstSub+65535),
	} {
		info, err := os.Stat(filepath.Join(a.dir, name))
		if err != nil {
			t.Error(err)
			continue
		}
		stat := info.Sys().(*syscall.Stat_t)
		if got := fmt.Sprintf("%d:%d", stat.Uid, stat.Gid); got != want {
			t.Errorf("owner of the file that is %s's inside = %s, want %s", name, got, want)
		}
	}
}

// TestEnterSameProcess has signals and the end of the process be those of the one that was started.
func TestEnterSameProcess(t *testing.T) {
	a := newAccountWithIDs(t)
	if code, out := a.run(t, "descriptors"); code != 0 {
		t.Errorf("descriptors: exit code %d: %s", code, out)
	}
	cmd := a.command("signal")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
		t.Errorf("the program inside says %q, %v", line, err)
	}
	if err := cmd.Process.Signal(syscall.SIGUSR1); err != nil {
		t.Error(err)
	}
	if _ = cmd.Wait(); cmd.ProcessState.ExitCode() != 9 {
		t.Errorf("after a signal: %v, want exit code 9", cmd.ProcessState)
	}
	cmd = a.command("die")
	_ = cmd.Run()
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signal() != syscall.SIGKILL {
		t.Errorf("killed inside: %v", cmd.ProcessState)
	}
}

func TestEnterWithoutIDs(t *testing.T) {
	a := newAccount(t)
	code, out := a.run(t, "chown", a.dir)
	if code != 3 || !strings.Contains(out, "user "+a.name+" has 0 in /etc/subuid") {
		t.Errorf("exit code %d: %s", code, out)
	}
}

// TestEnterRefused has newuidmap refuse a map, as it does when the file has changed meanwhile. The caller is still what
// it was.
func TestEnterRefused(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may write any map: needs a plain user")
	}
	helper, err := lookPath("newuidmap")
	if err != nil {
		t.Skip(err)
	}
	m := Mapping{UIDs: []Range{{0, 0, 65536}}, GIDs: []Range{{0, 0, 65536}}, newuidmap: helper, newgidmap: helper}
	if err := m.Enter(t.Context(), os.Args, os.Environ()); !errors.Is(err, ErrNoHelper) && !errors.Is(err, ErrForbidden) {
		t.Errorf("Enter() = %v, want %v", err, ErrNoHelper)
	}
}

// TestEnterFails has a helper that cannot be started.
func TestEnterFails(t *testing.T) {
	m := Mapping{UIDs: []Range{{0, 0, 1}}, newuidmap: "/does/not/exist"}
	if err := m.Enter(t.Context(), os.Args, os.Environ()); !errors.Is(err, ErrNoHelper) && !errors.Is(err, ErrForbidden) {
		t.Errorf("Enter() = %v, want %v", err, ErrNoHelper)
	}
}

// TestStageFile reads the stage's file as others read programs.
func TestStageFile(t *testing.T) {
	file, err := elf.NewFile(bytes.NewReader(stageFile(make([]byte, codeSize), stageParams{3, 4}, "/bin/true")))
	if err != nil {
		t.Fatal(err)
	}
	segment := file.Progs[0]
	data := make([]byte, segment.Filesz)
	if _, err := segment.ReadAt(data, 0); err != nil {
		t.Fatal(err)
	}
	const want = "\x03\x00\x00\x00\x04\x00\x00\x00/bin/true\x00"
	if got := string(data[paramsOffset:]); got != want {
		t.Errorf("parameters %q, want %q", got, want)
	}
	if got := string(data[failureOffset:paramsOffset]); strings.TrimRight(got, "\x00") != strings.TrimRight(failure, "\x00") {
		t.Errorf("message %q, want %q", got, failure)
	}
	if file.Entry != segment.Vaddr+codeOffset || segment.Flags != elf.PF_R|elf.PF_X {
		t.Errorf("entry %#x, segment %+v", file.Entry, segment.ProgHeader)
	}
}

// TestStageFails has a stage that cannot join: it says so.
func TestStageFails(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	f, err := newStage(stage{join: null, program: null, path: "/bin/true"})
	if err != nil {
		t.Skip(err)
	}
	defer f.Close()
	cmd := exec.Command(fdPath(f))
	out, _ := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 125 || string(out) != strings.TrimRight(failure, "\x00") {
		t.Errorf("%v, says %q", cmd.ProcessState, out)
	}
}
