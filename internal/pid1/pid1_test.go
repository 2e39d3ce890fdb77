package pid1

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-reap"
	"golang.org/x/sys/unix"
)

// The tests start this binary again, in two roles: roleInit imitates PID 1, as a child subreaper, and calls Run;
// roleChild is its child and plays what its next argument names.
const (
	roleInit  = "role-init"
	roleChild = "role-child"
)

// timeout ends a test that hangs.
const timeout = 30 * time.Second

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case roleInit:
			os.Exit(runInit(os.Args[2:]))
		case roleChild:
			runChild(os.Args[2], os.Args[3:])
		}
	}
	os.Exit(m.Run())
}

// runInit runs argv as often as $RUNS says and returns the last code.
func runInit(argv []string) int {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "prctl:", err)
		return 99
	}
	runs, err := strconv.Atoi(os.Getenv("RUNS"))
	if err != nil {
		runs = 1
	}
	reapChildren := reap.ReapChildren
	if os.Getenv("LATE") != "" {
		reapChildren = reapLate
	}
	code := 0
	for range runs {
		if code, err = run(argv, os.Environ(), reapChildren); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	return code
}

// reapLate subscribes to SIGCHLD when a child that exits at once is long dead.
func reapLate(pids reap.PidCh, errs reap.ErrorCh, done chan struct{}, lock *sync.RWMutex) {
	time.Sleep(100 * time.Millisecond)
	reap.ReapChildren(pids, errs, done, lock)
}

// children are the roles of Run's child.
var children = map[string]func(args []string) error{
	"report":  reportCode,
	"silent":  func([]string) error { return nil },
	"killed":  func([]string) error { return unix.Kill(os.Getpid(), unix.SIGKILL) },
	"panics":  func([]string) error { panic("on purpose") },
	"orphans": makeOrphans,
	"signals": printSignals,
	"late":    subscribeLate,
	"starts":  startProgram,
	"leaks":   leakPipe,
	"sleeps":  printPIDAndSleep,
}

func runChild(name string, args []string) {
	if err := children[name](args); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(98)
	}
	os.Exit(0) // not what Run is to return
}

func reportCode(args []string) error {
	for _, arg := range args {
		code, err := strconv.Atoi(arg)
		if err != nil {
			return err
		}
		if err := Report(code); err != nil {
			return err
		}
	}
	return nil
}

// makeOrphans has a shell fork that many processes twice, ends them all at once, and waits until PID 1 has reaped
// them.
func makeOrphans(args []string) error {
	count, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	orphansEnd, ourEnd, err := os.Pipe()
	if err != nil {
		return err
	}
	// Every orphan lives until the pipe ends.
	shell := exec.Command("/bin/sh", "-c", `i=0; while [ $i -lt $0 ]; do (cat <&3 &); i=$((i+1)); done`, args[0])
	shell.ExtraFiles = []*os.File{orphansEnd}
	if err := shell.Run(); err != nil {
		return err
	}
	siblings, err := childrenOf(os.Getppid())
	if got := len(siblings) - 1; err != nil || got != count { // less this process
		return fmt.Errorf("%d orphans became children of the subreaper, %v, want %d", got, err, count)
	}
	if err := ourEnd.Close(); err != nil {
		return err
	}
	for deadline := time.Now().Add(timeout / 2); ; time.Sleep(time.Millisecond) {
		siblings, err := childrenOf(os.Getppid())
		if err != nil {
			return err
		}
		if len(siblings) == 1 {
			return Report(0)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d of %d orphans are left", len(siblings)-1, count)
		}
	}
}

// childrenOf includes zombies.
func childrenOf(parent int) ([]int, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, stat := range stats {
		if pid, ppid, _, err := readStat(stat); err == nil && ppid == parent { // gone meanwhile is no error
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// readStat reads the fields of proc_pid_stat(5) up to the parent.
func readStat(path string) (pid, ppid int, state string, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, 0, "", err
	}
	end := bytes.LastIndexByte(data, ')') // of the name, which may hold anything
	if pid, err = strconv.Atoi(strings.Fields(string(data))[0]); err != nil {
		return 0, 0, "", err
	}
	fields := strings.Fields(string(data[end+1:]))
	ppid, err = strconv.Atoi(fields[1])
	return pid, ppid, fields[0], err
}

// printSignals prints every signal that it gets, until SIGTERM.
func printSignals([]string) error {
	signals := make(chan os.Signal, 64)
	signal.Notify(signals, forwarded...)
	if err := Ready(); err != nil {
		return err
	}
	fmt.Println("ready")
	for s := range signals {
		fmt.Println(int(s.(syscall.Signal)))
		if s == syscall.SIGTERM {
			break
		}
	}
	return Report(7)
}

// subscribeLate is a child that a signal kills until it is told to go on.
func subscribeLate([]string) error {
	fmt.Println(os.Getppid())
	if _, err := os.Stdin.Read(make([]byte, 1)); err != nil {
		return err
	}
	signals := make(chan os.Signal, 64)
	signal.Notify(signals, unix.SIGTERM, unix.SIGHUP)
	if err := Ready(); err != nil {
		return err
	}
	fmt.Println(<-signals, <-signals)
	return Report(9)
}

func startProgram(args []string) error {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return err
	}
	return Report(0)
}

// leakPipe leaves a process behind that holds the status pipe.
func leakPipe([]string) error {
	cmd := exec.Command("/bin/sleep", "20")
	cmd.ExtraFiles = []*os.File{os.NewFile(uintptr(reportFD), "status")}
	if err := cmd.Start(); err != nil {
		return err
	}
	fmt.Println(cmd.Process.Pid)
	return Report(3)
}

func printPIDAndSleep([]string) error {
	fmt.Println(os.Getpid())
	time.Sleep(2 * timeout) // longer than the test waits
	return nil
}

// initCommand is a process that passes argv to Run.
func initCommand(t *testing.T, argv ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if len(argv) > 0 && argv[0] == roleChild {
		argv = append([]string{exe}, argv...)
	}
	cmd := exec.CommandContext(t.Context(), exe, append([]string{roleInit}, argv...)...)
	cmd.WaitDelay = timeout
	// The race detector sleeps for a second at every exit otherwise.
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0")
	return cmd
}

// runCommand runs what initCommand made.
func runCommand(t *testing.T, cmd *exec.Cmd) (code int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	watchdog := time.AfterFunc(timeout, func() { cmd.Process.Kill() })
	defer watchdog.Stop()
	err := cmd.Wait()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errOut.String()
}

func TestRunReturnsCode(t *testing.T) {
	for _, test := range []struct {
		args []string
		want int
	}{
		{[]string{"report", "0"}, 0},
		{[]string{"report", "1"}, 1},
		{[]string{"report", "255"}, 255},
		{[]string{"report", "256"}, 0}, // as exit(2)
		{[]string{"report", "1", "2"}, 2},
	} {
		code, _, stderr := runCommand(t, initCommand(t, append([]string{roleChild}, test.args...)...))
		if code != test.want || stderr != "" {
			t.Errorf("Run() of %v = %d, %q, want %d", test.args, code, stderr, test.want)
		}
	}
}

func TestRunReportsCrash(t *testing.T) {
	for _, child := range []string{"silent", "killed", "panics"} {
		code, _, stderr := runCommand(t, initCommand(t, roleChild, child))
		if code != CrashCode || !strings.Contains(stderr, ") ended without an exit code: it crashed or was killed;") {
			t.Errorf("Run() of child %s = %d, %q, want %d and a crash", child, code, stderr, CrashCode)
		}
	}
}

func TestRunReportsFailedStart(t *testing.T) {
	for _, test := range []struct {
		argv []string
		want string
	}{
		{nil, "start the child of PID 1: no command given\n"},
		{[]string{"/nonexistent", "x"}, "start /nonexistent x: no such file or directory\n"},
		{[]string{"/dev/null"}, "start /dev/null: permission denied\n"},
	} {
		code, _, stderr := runCommand(t, initCommand(t, test.argv...))
		if code != CrashCode || stderr != test.want {
			t.Errorf("Run(%q) = %d, %q, want %d, %q", test.argv, code, stderr, CrashCode, test.want)
		}
	}
}

// A child that is dead before go-reap has subscribed to SIGCHLD must not go unnoticed.
func TestRunNoticesChildThatExitsAtOnce(t *testing.T) {
	for _, test := range []struct {
		late string
		runs int
	}{{"", 100}, {"1", 5}} {
		cmd := initCommand(t, "/bin/true")
		cmd.Env = append(cmd.Env, fmt.Sprintf("RUNS=%d", test.runs), "LATE="+test.late)
		code, _, stderr := runCommand(t, cmd)
		if got := strings.Count(stderr, "ended without an exit code"); code != CrashCode || got != test.runs {
			t.Errorf("%d times Run() with LATE=%q = %d and %d crashes, want %d and %d",
				test.runs, test.late, code, got, CrashCode, test.runs)
		}
	}
}

func TestRunReapsOrphans(t *testing.T) {
	if code, _, stderr := runCommand(t, initCommand(t, roleChild, "orphans", "200")); code != 0 {
		t.Errorf("Run() = %d, %q, want 0 once all orphans are reaped", code, stderr)
	}
}

func TestRunForwardsSignals(t *testing.T) {
	cmd := initCommand(t, roleChild, "signals")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	watchdog := time.AfterFunc(timeout, func() { cmd.Process.Kill() })
	defer watchdog.Stop()
	lines := bufio.NewScanner(stdout)
	expect := func(want string) {
		t.Helper()
		if lines.Scan(); lines.Text() != want {
			t.Fatalf("child printed %q, want %q", lines.Text(), want)
		}
	}
	expect("ready")
	if err := cmd.Process.Signal(syscall.SIGURG); err != nil { // kept: the next line is not 23
		t.Fatal(err)
	}
	rtMin3 := syscall.Signal(37)
	for _, s := range []syscall.Signal{
		syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH,
		syscall.SIGTSTP, rtMin3, syscall.SIGTERM,
	} {
		if err := cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
		expect(strconv.Itoa(int(s)))
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 7 {
		t.Errorf("Run() = %d, want 7", code)
	}
}

// What arrives before the child has subscribed must not kill it: docker stop right after docker run.
func TestRunKeepsSignalsUntilReady(t *testing.T) {
	cmd := initCommand(t, roleChild, "late")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	watchdog := time.AfterFunc(timeout, func() { cmd.Process.Kill() })
	defer watchdog.Stop()
	lines := bufio.NewScanner(stdout)
	lines.Scan() // the child runs
	// The second SIGHUP is merged into the first.
	for _, s := range []syscall.Signal{syscall.SIGHUP, syscall.SIGTERM, syscall.SIGHUP} {
		if err := cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond) // in this order
	}
	if _, err := stdin.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	lines.Scan()
	got := strings.Fields(lines.Text())
	slices.Sort(got)
	if want := []string{"hangup", "terminated"}; !slices.Equal(got, want) {
		t.Errorf("child that was not ready got %q, want %q", got, want)
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 9 {
		t.Errorf("Run() = %d, want 9", code)
	}
}

func TestForwardedSignals(t *testing.T) {
	for s, want := range map[syscall.Signal]bool{
		syscall.SIGTERM: true, syscall.SIGINT: true, syscall.SIGCONT: true, syscall.SIGPWR: true, 35: true, 64: true,
		syscall.SIGKILL: false, syscall.SIGSTOP: false, syscall.SIGCHLD: false, syscall.SIGURG: false,
		syscall.SIGPIPE: false, syscall.SIGSEGV: false, syscall.SIGTTIN: false, syscall.SIGTTOU: false,
	} {
		if got := slices.Contains(forwarded, os.Signal(s)); got != want {
			t.Errorf("forwarded has signal %d: %v, want %v", s, got, want)
		}
	}
}

func TestReleaseReturnsHeldSignals(t *testing.T) {
	defer atomic.StoreUint32(&released, 0)
	atomic.StoreUint64(&held, 1<<(syscall.SIGHUP-1)|1<<(syscall.SIGTERM-1)|1<<(lastSignal-1))
	if got, want := release(), []syscall.Signal{syscall.SIGHUP, syscall.SIGTERM, lastSignal}; !slices.Equal(got, want) {
		t.Errorf("release() = %v, want %v", got, want)
	}
	if got := release(); got != nil {
		t.Errorf("second release() = %v, want none", got)
	}
}

func TestCrashErrorNamesSignal(t *testing.T) {
	got := crashError([]string{"/entrypoint", "supervise"}, 7, syscall.SIGTERM).Error()
	const want = "/entrypoint supervise (pid 7) ended without an exit code: " +
		"it crashed or was killed; the last signal forwarded to it was SIGTERM"
	if got != want {
		t.Errorf("crashError() = %q, want %q", got, want)
	}
}

func TestChildrenOfChildDoNotSeePipe(t *testing.T) {
	cmd := initCommand(t, roleChild, "starts", "/bin/sh", "-c", "readlink /proc/self/fd/3; env | grep DUML; true")
	if code, stdout, stderr := runCommand(t, cmd); code != 0 || stdout != "" {
		t.Errorf("process under the child prints %q, Run() = %d, %q, want nothing and 0", stdout, code, stderr)
	}
}

func TestRunReturnsDespiteLeakedPipe(t *testing.T) {
	code, stdout, stderr := runCommand(t, initCommand(t, roleChild, "leaks"))
	if pid, err := strconv.Atoi(strings.TrimSpace(stdout)); err == nil {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	if code != 3 {
		t.Errorf("Run() = %d, %q, want 3", code, stderr)
	}
}

func TestChildDiesWithInit(t *testing.T) {
	cmd := initCommand(t, roleChild, "sleeps")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	for deadline := time.Now().Add(timeout); ; time.Sleep(5 * time.Millisecond) {
		_, _, state, err := readStat("/proc/" + strings.TrimSpace(line) + "/stat")
		if err != nil || state == "Z" { // who adopted it may be slow to reap
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("child %s is in state %s after PID 1 died, want it dead", strings.TrimSpace(line), state)
		}
	}
}

// The real thing, where the test may have it.
func TestRunAsPID1(t *testing.T) {
	cmd := initCommand(t, roleChild, "report", "42")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Skipf("no pid namespace to be had: %v", err)
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 42 || stderr.Len() > 0 {
		t.Errorf("Run() as PID 1 = %d, %q, want 42", code, stderr.String())
	}
}

func TestReportOutsideRun(t *testing.T) {
	if reportFD != -1 {
		t.Fatalf("reportFD = %d, want -1", reportFD)
	}
	if err := Report(1); err != nil {
		t.Errorf("Report(1) = %v, want nil", err)
	}
}

func TestInheritLeavesStrangeDescriptorsAlone(t *testing.T) {
	for _, value := range []string{"", "x", "-1", "1", "4", "999999"} {
		t.Setenv(statusVariable, value)
		if got := Inherit(statusVariable, statusFD); got != -1 {
			t.Errorf("Inherit() with %s=%q = %d, want -1", statusVariable, value, got)
		}
		if _, ok := os.LookupEnv(statusVariable); ok {
			t.Errorf("Inherit() left %s in the environment", statusVariable)
		}
	}
}

func TestStatusEnv(t *testing.T) {
	got := statusEnv([]string{"A=1", statusVariable + "=9", "B=2"})
	if want := []string{"A=1", "B=2", statusVariable + "=3"}; !slices.Equal(got, want) {
		t.Errorf("statusEnv() = %q, want %q", got, want)
	}
}
