package uml

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
)

// Kernel is a running kernel process. It dies with the process that started it.
type Kernel struct {
	// Args are the arguments that it got.
	Args []string

	cmd   *exec.Cmd
	exit  chan Exit
	ended chan struct{}
}

// Exit tells how a kernel process ended.
type Exit struct {
	// Code is the process's exit code, which the guest can set in /proc/exitcode; 128+n after a signal.
	Code int
	// Signal ended the process; 0 when it exited.
	Signal syscall.Signal
}

// String is a phrase for a log.
func (e Exit) String() string {
	if e.Signal != 0 {
		return fmt.Sprintf("was killed by signal %d (%v)", int(e.Signal), e.Signal)
	}
	return fmt.Sprintf("exited with code %d", e.Code)
}

// Start runs the kernel. The files of o stay the caller's, who may close them once Start has returned.
func Start(o Options) (*Kernel, error) {
	args := o.Cmdline()
	cmd := exec.Command(o.Path, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = o.Console, o.Console, o.Stderr
	cmd.ExtraFiles = o.files() // from firstFD on
	// PATH only keeps UML from making one up. TMPDIR and the like would lead its RAM to a disk.
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=/", "TERM=linux"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}

	k := &Kernel{Args: args, cmd: cmd, exit: make(chan Exit, 1), ended: make(chan struct{})}
	started := make(chan error)
	go k.run(started)
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start kernel %s: %w", o.Path, err)
	}
	if o.Place {
		go k.place()
	}
	return k, nil
}

// run starts the process and waits for it on one OS thread, since the parent-death signal follows the thread
// that forked (prctl(2), PR_SET_PDEATHSIG).
func (k *Kernel) run(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// The modes of files on hostfs are the guest's to decide; our umask would cut them a second time. It belongs to
	// the whole process, but while a kernel starts nothing else makes files here.
	umask := syscall.Umask(0)
	err := k.cmd.Start()
	syscall.Umask(umask)
	started <- err
	if err != nil {
		return
	}
	// A non-zero exit is no error of ours: ProcessState tells all of it.
	_ = k.cmd.Wait()
	close(k.ended)
	k.exit <- exitOf(k.cmd.ProcessState)
}

func exitOf(state *os.ProcessState) Exit {
	status, ok := state.Sys().(syscall.WaitStatus)
	if ok && status.Signaled() {
		return Exit{Code: 128 + int(status.Signal()), Signal: status.Signal()}
	}
	return Exit{Code: state.ExitCode()}
}

// Exited delivers the kernel's end, once.
func (k *Kernel) Exited() <-chan Exit { return k.exit }

// PID of the kernel process, which leads a session and process group of its own.
func (k *Kernel) PID() int { return k.cmd.Process.Pid }

// Kill ends the kernel and all processes of its group at once, without a word to the guest.
func (k *Kernel) Kill() error {
	if err := syscall.Kill(-k.PID(), syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill kernel process group %d: %w", k.PID(), err)
	}
	return nil
}

// ConsoleSocket is the path of the management console's socket (package mconsole) under o.
func (o Options) ConsoleSocket() string { return filepath.Join(o.Dir, o.ID, "mconsole") }

// Query runs the kernel with args alone on the given streams and returns its exit code.
func Query(path string, args []string, stdout, stderr *os.File) (int, error) {
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		return 0, fmt.Errorf("start kernel %s: %w", path, err)
	}
	return exitOf(cmd.ProcessState).Code, nil
}
