// Package pid1 is the role of PID 1 in a container: it starts one child, reaps every orphan, forwards signals to
// the child and ends with the exit code that the child reported.
//
// # Theory of operation
//
// go-reap waits for any process, and throws the status away. Nothing else in this process may wait then: the child
// is forked with [syscall.ForkExec] instead of os/exec (os.StartProcess probes pidfds by way of a child of its own
// that it waits for), and its end is known from the pids that go-reap reports.
//
// As its status is lost, the child hands over its exit code itself: Report writes it to a pipe whose other end Run
// holds. A pipe that ends without a code tells that the child crashed or was killed. The pipe is descriptor
// 3 of the child, the first one that ForkExec can give away after the standard streams; the environment variable
// DUML_STATUS_FD says so, because a supervisor that is started without Run may have anything there. The variable
// is taken out of the environment, and the descriptor made close-on-exec, when the package is initialised and so
// before the child can have children; the kernel process never sees either.
//
// go-reap sleeps until a SIGCHLD and subscribes to that signal in its own time, so a child that dies first would
// never be noticed. The pipe helps here, too: its end of file says that the child is gone, whereupon Run raises
// SIGCHLD until go-reap has found it.
//
// The child dies with PID 1 (PR_SET_PDEATHSIG), and everything else with its pid namespace: once the child is
// gone, Run returns at once.
//
// # Signals and the terminal
//
// The child shares session and process group with PID 1, so that it can read the container's terminal. A signal
// which the terminal itself raises reaches the whole foreground group and is then forwarded to the child once more;
// Go cannot tell the two apart, as os/signal hides siginfo. For SIGWINCH that does no harm. SIGINT and SIGQUIT of a
// key do not occur, as the supervisor puts its terminal into raw mode; until then, or with a terminal that is not
// its standard input, a Ctrl-C counts as two.
//
// A deadly signal kills a child that has not subscribed to it yet. So Run keeps signals, each number once as the kernel
// does with those that are blocked, until the child calls Ready.
//
// # Signals before main
//
// Go's runtime handles all signals from its start, and ends the process for those that nobody has subscribed to: until Run
// does, after the initialisation of all packages, a SIGTERM would end PID 1, and before, when the handlers are not yet
// there, the kernel drops what is sent to a PID 1. To block signals is no help, the runtime unblocks them. So a program
// for PID 1 is linked with -ldflags "-E pid1entry", which has it begin in entry_amd64.s: that installs a handler in the first
// instructions which notes the forwarded signals for Run, and by the runtime's hook for sanitizers (_cgo_sigaction) puts
// the same handler before the runtime's own. A process 1 that does not call Run heeds none of these signals, like any
// process 1 that has no handler. In other processes, and where the linker got no -E, nothing of this happens.
package pid1

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/go-reap"
	"golang.org/x/sys/unix"
)

// CrashCode is the exit code of Run when the child reported none: the one by which docker says that the failure is
// its own and not the program's.
const CrashCode = 125

const (
	// pokeInterval is the time between two SIGCHLD that Run raises for go-reap. As a rule one is enough: go-reap
	// subscribes within microseconds of its start.
	pokeInterval = 10 * time.Millisecond

	// statusGrace bounds the wait for the end of the status pipe once the child is gone. The code is in the pipe by
	// then, and its end of file, too, unless a process that outlived the child has a copy of the descriptor.
	statusGrace = time.Second
)

// Run starts argv, whose first element is the path of a binary, with the environment env as the only child of this
// process. It returns when the child has ended: with the code that the child gave to Report, or with CrashCode and
// an error that says why there is none. Signals that arrive before the child is ready for them are kept for it.
//
// Preconditions: nothing else in this process waits for children or subscribes to the forwarded signals. The
// process is PID 1 of its pid namespace or a child subreaper, else orphans do not become its children. Run is
// called once.
func Run(argv []string, env []string) (code int, err error) {
	return run(argv, env, reap.ReapChildren)
}

// run lets tests replace go-reap.
func run(argv, env []string, reapChildren reapFunc) (code int, err error) {
	if len(argv) == 0 {
		return CrashCode, errors.New("start the child of PID 1: no command given")
	}
	// The child's Pdeathsig takes the end of the thread that forked for the end of the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	// os/signal drops what does not fit: this holds one signal of every number. They stay subscribed to, since the process is
	// about to end when the child has: nobody is to wait for it to give up each of them.
	signals := make(chan os.Signal, len(forwarded))
	signal.Notify(signals, deadly...)

	reaper := startReaper(reapChildren)
	defer reaper.stop()

	pid, pipe, err := start(argv, env)
	if err != nil {
		return CrashCode, fmt.Errorf("start %s: %w", strings.Join(argv, " "), err)
	}
	defer pipe.Close()
	// Not before the child starts, for which it would have to wait: each signal takes two changes of the thread, 30 µs.
	signal.Notify(signals, forwarded...)
	kept := release() // what came before the child was ready

	status := make(chan report, 1)
	ready := make(chan struct{})
	go readStatus(pipe, ready, status)

	var (
		reported report           // what came through the pipe
		last     syscall.Signal   // forwarded, for the error
		poke     <-chan time.Time // ticks once the pipe has ended
		reaped   bool
	)
	forward := func(signo syscall.Signal) {
		if !reaped && unix.Kill(pid, signo) == nil {
			last = signo
		}
	}
	for !reaped || status != nil {
		select {
		case s := <-signals:
			switch signo := s.(syscall.Signal); {
			case ready == nil:
				forward(signo)
			case !slices.Contains(kept, signo):
				kept = append(kept, signo)
			}
		case <-ready:
			ready = nil
			for _, signo := range kept {
				forward(signo)
			}
		case dead := <-reaper.pids:
			if dead == pid {
				reaped = true
				_ = pipe.SetReadDeadline(time.Now().Add(statusGrace)) // only fails on a closed file
			}
		case reported = <-status:
			status = nil
			ticker := time.NewTicker(pokeInterval)
			defer ticker.Stop()
			poke = ticker.C
		case <-poke:
			_ = unix.Kill(os.Getpid(), unix.SIGCHLD) // to oneself it cannot fail
		}
	}
	if !reported.ok {
		return CrashCode, crashError(argv, pid, last)
	}
	return int(reported.code), nil
}

// start forks the child, and returns the end of the status pipe that is ours.
func start(argv, env []string) (pid int, status *os.File, err error) {
	status, theirs, err := os.Pipe()
	if err != nil {
		return 0, nil, err
	}
	defer theirs.Close() // else the pipe never ends
	pid, err = syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{
		Env:   statusEnv(env),
		Files: []uintptr{0, 1, 2, statusFD: theirs.Fd()},
		Sys:   &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		return 0, nil, errors.Join(err, status.Close())
	}
	return pid, status, nil
}

// report is an exit code, if there was one.
type report struct {
	code byte
	ok   bool
}

// readStatus closes ready when the child says so, and sends the last code that it reported when the pipe ends. An error
// is but the deadline that Run sets, or a child that is not ours and writes what it likes.
func readStatus(pipe io.Reader, ready chan<- struct{}, status chan<- report) {
	var last report
	messages := bufio.NewReader(pipe)
	for {
		kind, err := messages.ReadByte()
		switch {
		case err != nil:
			status <- last
			return
		case kind == messageReady && ready != nil:
			close(ready)
			ready = nil
		case kind == messageCode:
			if code, err := messages.ReadByte(); err == nil {
				last = report{code: code, ok: true}
			}
		}
	}
}

// crashError explains a status pipe without a code as well as can be without the child's wait status.
func crashError(argv []string, pid int, last syscall.Signal) error {
	hint := "it crashed or was killed; with a memory limit, check whether it was reached"
	if last != 0 {
		hint = fmt.Sprintf("it crashed or was killed; the last signal forwarded to it was %s", unix.SignalName(last))
	}
	return fmt.Errorf("%s (pid %d) ended without an exit code: %s", strings.Join(argv, " "), pid, hint)
}
