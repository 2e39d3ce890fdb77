package agent

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// outputGrace is for how long after the end of a command its output is waited for when a child of it still holds it
// open. A process substitution of the shell, "make > >(tee log)", is done by then; a daemon is not waited for, as
// sshd(8) would for ever.
const outputGrace = 500 * time.Millisecond

// exitError is why a command did not start, with the exit code for that.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// process is a running command, and the leader of a session (setsid(2)) and a process group.
type process struct {
	cmd            *exec.Cmd
	terminal       *terminal // nil: pipes
	stdin          *os.File  // what we write; the terminal's master, or a pipe
	stdout, stderr *os.File  // what we read; without stderr with a terminal
	exited         chan struct{}

	mu     sync.Mutex
	reaped bool // its number may be somebody else's by now
}

// start starts the plan's command. Errors are *exitError. The terminal is the process's, or closed, afterwards.
func (p *plan) start() (*process, error) {
	proc, err := p.startProcess()
	if err != nil {
		if p.terminal != nil {
			p.terminal.close()
		}
		if _, ok := errors.AsType[*exitError](err); !ok {
			err = &exitError{codeAgent, err}
		}
		return nil, err
	}
	return proc, nil
}

func (p *plan) startProcess() (*process, error) {
	attr := &syscall.SysProcAttr{Setsid: true, Setctty: p.terminal != nil}
	if !p.user.isSelf() {
		if os.Geteuid() != 0 {
			return nil, fmt.Errorf("run as user %d: not permitted", p.user.uid)
		}
		attr.Credential = &syscall.Credential{Uid: p.user.uid, Gid: p.user.gid, Groups: p.user.groups}
	}
	if p.terminal != nil {
		p.env = append([]string{"TERM=" + p.terminal.term}, p.env...)
	}
	if err := p.chooseDir(); err != nil {
		return nil, err
	}
	if err := p.findProgram(); err != nil {
		return nil, err
	}
	proc := &process{
		cmd:      &exec.Cmd{Path: p.path, Args: p.argv, Env: lastOfEach(p.env), Dir: p.dir, SysProcAttr: attr},
		terminal: p.terminal,
		exited:   make(chan struct{}),
	}
	theirs, err := proc.connect()
	defer func() {
		for _, file := range theirs {
			file.Close()
		}
	}()
	if err == nil {
		err = StartUnprotected(proc.cmd.Start)
	}
	if err != nil {
		proc.closeStreams()
		return nil, p.startError(err)
	}
	if p.terminal != nil {
		p.terminal.closeSlave()
	}
	return proc, nil
}

// chooseDir fills in dir, and checks that the user may go there: after a failed start nobody could say what the
// "permission denied" was about.
func (p *plan) chooseDir() error {
	asked := p.dir != ""
	if !asked {
		p.dir = p.user.home
	}
	err := p.user.as(func() error {
		fd, err := unix.Open(filepath.Join("/", p.dir)+"/.", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Close(fd)
		}
		return err
	})
	if err == nil {
		return nil
	}
	if !asked {
		p.dir = "/"
		return nil
	}
	return fmt.Errorf("working directory %s: %w", p.dir, err)
}

// findProgram fills in path, searching the PATH that the program will have, with the rights of its user.
func (p *plan) findProgram() error {
	if p.path == "" && strings.Contains(p.name, "/") {
		p.path = p.name
	}
	if p.path != "" {
		return nil
	}
	err := fs.ErrNotExist
	_ = p.user.as(func() error {
		for _, dir := range filepath.SplitList(getenv(p.env, "PATH")) {
			if !filepath.IsAbs(dir) {
				dir = filepath.Join(p.dir, dir)
			}
			file := filepath.Join(dir, p.name)
			info, statErr := os.Stat(file)
			if statErr != nil || info.IsDir() {
				continue
			}
			if unix.Faccessat(unix.AT_FDCWD, file, unix.X_OK, unix.AT_EACCESS) != nil {
				err = fs.ErrPermission // unless there is another one
				continue
			}
			p.path = file
			return nil
		}
		return nil
	})
	if p.path == "" {
		return p.startError(err)
	}
	return nil
}

// startError turns the error of a start into what a shell would say.
func (p *plan) startError(err error) error {
	// Without the names of the system call and the path, which is p.name.
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		err = errno
	}
	if errors.Is(err, fs.ErrNotExist) {
		text := "not found"
		file := p.path
		if !filepath.IsAbs(file) {
			file = filepath.Join(p.dir, file)
		}
		if p.path != "" && isExecutable(file) {
			text = "its interpreter is not found"
		}
		return &exitError{codeNotFound, fmt.Errorf("%s: %s", p.name, text)}
	}
	if errors.Is(err, fs.ErrPermission) {
		return &exitError{codeNotExecutable, fmt.Errorf("%s: permission denied", p.name)}
	}
	switch err {
	case syscall.ENOEXEC, syscall.ENOTDIR, syscall.EISDIR, syscall.ELOOP, syscall.E2BIG, syscall.ETXTBSY,
		syscall.ENAMETOOLONG, syscall.ELIBBAD:
		return &exitError{codeNotExecutable, fmt.Errorf("%s: %w", p.name, err)}
	}
	return fmt.Errorf("%s: %w", p.name, err)
}

// getenv returns the value that a variable ends up with.
func getenv(env []string, name string) string {
	for i := len(env) - 1; i >= 0; i-- {
		if value, ok := strings.CutPrefix(env[i], name+"="); ok {
			return value
		}
	}
	return ""
}

// lastOfEach drops variables that are set again later on. It is done here, for programs differ in which they take.
func lastOfEach(env []string) []string {
	last := make(map[string]int, len(env))
	for i, variable := range env {
		name, _, _ := strings.Cut(variable, "=")
		last[name] = i
	}
	var out []string
	for i, variable := range env {
		if name, _, _ := strings.Cut(variable, "="); last[name] == i {
			out = append(out, variable)
		}
	}
	return out
}

// connect makes the standard streams. theirs are the ends of the command.
func (p *process) connect() (theirs []*os.File, err error) {
	if t := p.terminal; t != nil {
		p.stdin, p.stdout = t.master, t.master
		p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = t.slave, t.slave, t.slave
		return nil, nil
	}
	pipe := func() (r, w *os.File) {
		if err == nil {
			r, w, err = os.Pipe()
			widen(w, pipeSize) // of nil: nothing
		}
		return r, w
	}
	in, stdin := pipe()
	stdout, out := pipe()
	stderr, errs := pipe()
	p.stdin, p.stdout, p.stderr = stdin, stdout, stderr
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = in, out, errs
	return []*os.File{in, out, errs}, err
}

// closeStreams closes our ends, which a nil one does not mind. A terminal hangs up.
func (p *process) closeStreams() {
	for _, file := range []*os.File{p.stdin, p.stdout, p.stderr} {
		file.Close()
	}
}

// closeInput is the end of the command's input. A terminal has none, and gets the character that says so, as from
// script(1).
func (p *process) closeInput() {
	if p.terminal == nil {
		p.stdin.Close()
		return
	}
	_, _ = p.stdin.Write([]byte{endOfFile}) // nobody is there if it fails
}

// wait waits for the command and reaps it, after which exited is closed.
func (p *process) wait() {
	for {
		// Not Wait: between its system call and its return a signal could hit another process.
		err := unix.Waitid(unix.P_PID, p.cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			break
		}
	}
	p.mu.Lock()
	_ = p.cmd.Wait() // the state is all that it has to say
	p.reaped = true
	p.mu.Unlock()
	close(p.exited)
}

// signal sends a signal to the command's process group.
func (p *process) signal(sig unix.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.reaped {
		// It may fail as the group changes its user (set-user-ID): not ours to judge.
		_ = unix.Kill(-p.cmd.Process.Pid, sig)
	}
}

// hangUp is the end of a client that did not wait for the command's end.
func (p *process) hangUp() {
	p.signal(unix.SIGHUP)
	p.signal(unix.SIGCONT) // a stopped one could not see it
	p.closeStreams()
}

// copyOutput copies from one of the command's outputs until its end, or, after outputGrace has been called, until it
// is empty. It returns an error of dst only.
func (p *process) copyOutput(dst io.Writer, src *os.File) error {
	buf := make([]byte, outputSize)
	rest := -1 // bytes still to be copied; unknown
	for rest != 0 {
		chunk := buf
		if rest > 0 {
			chunk = buf[:min(rest, len(buf))]
		}
		n, err := src.Read(chunk)
		if n > 0 {
			if _, err := dst.Write(chunk[:n]); err != nil {
				return err
			}
			if rest > 0 {
				rest -= n
			}
		}
		if errors.Is(err, os.ErrDeadlineExceeded) && rest < 0 {
			// What is in the pipe by now was written in time, even if dst was slow. It can be read at once.
			rest = pending(src)
			err = src.SetReadDeadline(time.Time{})
		}
		if err != nil {
			return nil // io.EOF; EIO of a terminal that nobody has open
		}
	}
	return nil
}

// limitOutput gives children that hold the output open outputGrace to end, after the command itself.
func (p *process) limitOutput() {
	deadline := time.Now().Add(outputGrace)
	for _, file := range []*os.File{p.stdout, p.stderr} {
		if file != nil {
			_ = file.SetReadDeadline(deadline) // fails on a closed file only
		}
	}
}

// pending returns how many bytes are there to be read.
func pending(file *os.File) (n int) {
	_ = control(file, func(fd int) (err error) {
		n, err = unix.IoctlGetInt(fd, unix.TIOCINQ)
		return err
	})
	return max(n, 0)
}
