package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"docker-usermode-linux/internal/command"
	"docker-usermode-linux/internal/control"
	"docker-usermode-linux/internal/pid1"
	"docker-usermode-linux/internal/supervisor"
)

// Theory of operation
//
// up -d starts this program once more, in a session of its own, with the same arguments and a pipe on which the child
// says how far it is: "name NAME" when it has entered the guest and writes to its log, "started" when the guest has
// started. Until the first of these the child's stderr is ours, so that mistakes are told where they were made; after
// it they are in the log, of which the parent shows the end if there was no second one.

const (
	// linkVariable tells the child the number of the pipe. It is taken out of the environment at once.
	linkVariable = "UML_DETACHED_FD"
	linkFD       = 3

	messageName    = "name "
	messageStarted = "started"

	// shownLines is how much of the log of a start that failed is shown.
	shownLines = 20
	// healthPoll is how often a guest is asked whether it is healthy.
	healthPoll = 200 * time.Millisecond
)

// detachedLink is the pipe to the parent in a child of up -d, nil in any other process.
func detachedLink() *os.File {
	fd := pid1.Inherit(linkVariable, linkFD)
	if fd < 0 {
		return nil
	}
	return os.NewFile(uintptr(fd), "link")
}

// bootDetached is boot in the child.
func (b *guestBoot) bootDetached(job supervisor.Job, link *os.File) error {
	cfg, err := b.settings.load(upDefaults)
	if err != nil {
		return usageError(err)
	}
	if err := os.Chdir("/"); err != nil { // no file system is kept from being unmounted
		return err
	}
	var log *logFile
	defer func() {
		if log != nil {
			log.close()
		}
	}()
	_ = os.WriteFile("/proc/self/comm", []byte(program), 0) // for ps, which would show "exe"
	b.detached = true
	b.entered = func(g control.Guest) error {
		registry, err := openRegistry()
		if err != nil {
			return err
		}
		path, err := registry.LogPath(g.Name)
		if err != nil {
			return err
		}
		opened, err := openLog(path, maxLog, true)
		if err != nil {
			return err
		}
		out, err := opened.stream()
		if err != nil {
			return err
		}
		log = opened
		b.streams = &supervisor.Streams{Stdin: os.Stdin, Stdout: out, Stderr: out}
		_, _ = fmt.Fprintln(link, messageName+g.Name)
		return nil
	}
	b.started = func() {
		_, _ = fmt.Fprintln(link, messageStarted)
		_ = link.Close()
	}
	return b.boot(job, cfg)
}

// startDetached starts the child, waits until the guest has started, or is healthy, and prints its name.
func startDetached(wait bool) error {
	ours, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ours.Close()
	// Not by its name, which may be another program's by now.
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", linkVariable, linkFD))
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the guest's supervisor: %w", err)
	}
	_ = theirs.Close()

	// Who breaks off a start does not want the guest.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	go func() {
		for range signals {
			_ = cmd.Process.Signal(unix.SIGTERM)
		}
	}()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()

	name, started := readLink(ours)
	if started && wait {
		err = waitHealthy(name, ended)
	}
	switch {
	case !started, errors.Is(err, errEnded):
		<-ended
		return startFailed(name, cmd.ProcessState.ExitCode())
	case err != nil:
		return err
	}
	signal.Stop(signals)
	fmt.Println(name)
	if registry, err := openRegistry(); err == nil { // else nothing to tell
		if warning := lingerWarning(registry.Dir()); warning != "" {
			fmt.Fprintf(os.Stderr, "%s: WARNING: %s\n", program, warning)
		}
	}
	return nil
}

// readLink reads what the child says, until the guest has started or the child is gone.
func readLink(r io.Reader) (name string, started bool) {
	for lines := bufio.NewScanner(r); lines.Scan(); {
		if text, ok := strings.CutPrefix(lines.Text(), messageName); ok {
			name = text
		}
		if lines.Text() == messageStarted {
			return name, true
		}
	}
	return name, false
}

// errEnded says that the guest ended while it was waited for.
var errEnded = errors.New("the guest ended before it was healthy")

// waitHealthy waits until the guest is healthy. When it ends before, ended has it again.
func waitHealthy(name string, ended chan error) error {
	registry, err := openRegistry()
	if err != nil {
		return err
	}
	for {
		if g, err := registry.Guest(name); err == nil {
			if s, err := status(context.Background(), g); err == nil && s.Healthy {
				return nil
			}
		}
		select {
		case err := <-ended:
			ended <- err
			return errEnded
		case <-time.After(healthPoll):
		}
	}
}

// startFailed says why a guest did not start, and returns an error with its exit code. Without a name the child has said
// it.
func startFailed(name string, code int) error {
	if code <= 0 {
		code = command.ExitFailed // it went down before it could start anything, or was killed
	}
	if name == "" {
		return exit(code)
	}
	registry, err := openRegistry()
	if err != nil {
		return err
	}
	path, err := registry.LogPath(name)
	if err != nil {
		return err
	}
	lines, err := lastLines(path, shownLines)
	if err != nil {
		return err
	}
	for _, line := range lines {
		fmt.Fprintln(os.Stderr, line)
	}
	return &exitError{
		code, fmt.Errorf("guest %s ended with exit code %d when it had hardly started; what it said is in %s", name, code, path),
	}
}
