//go:build linux

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"docker-usermode-linux/bench/figures"
)

const (
	// marker begins work's lines.
	marker = "@work "
	// hangGuard is a multiple of what the slowest environment takes.
	hangGuard = 20 * time.Minute
	// clockError is by how much a guest's clock may differ from ours over all its measurements: the larger of a share and
	// what the console takes to say it.
	clockShare, clockLag = 0.03, 50 * time.Millisecond
)

// result is what one process has said, and when.
type result struct {
	values           []value
	failures         []failure
	started          time.Time
	begin, end, gone time.Time
	guestTime        time.Duration // from begin to end by the guest's clock
	err              error         // why there is no end
}

type value struct {
	test  string
	value float64
	unit  string
}

type failure struct{ test, why string }

// run starts a command line with environment variables before the program, listens to it, and returns when nothing of
// it is left.
func run(line []string, dir string) result {
	env := os.Environ()
	for strings.Contains(line[0], "=") {
		env, line = append(env, line[0]), line[1:]
	}
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Env, cmd.Dir = env, dir
	var r result
	words := &figures.LastWords{}
	cmd.Stderr = words
	// A helper that outlives it must not keep us waiting for its last words.
	cmd.WaitDelay = time.Second
	// Not StdoutPipe, which Wait closes before all is read.
	out, in, err := os.Pipe()
	if err != nil {
		return result{err: err}
	}
	defer out.Close()
	cmd.Stdout = in
	r.started = time.Now()
	err = cmd.Start()
	in.Close()
	if err != nil {
		return result{err: err}
	}
	guard := time.AfterFunc(hangGuard, func() { _ = cmd.Process.Kill() })
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		r.listen(out, words)
	}()
	err = cmd.Wait()
	r.gone = time.Now()
	if !guard.Stop() {
		err = fmt.Errorf("still runs after %s", hangGuard)
	}
	endOrphans()
	<-heard
	if r.end.IsZero() {
		if err == nil {
			err = errors.New("no error")
		}
		r.err = fmt.Errorf("%s has ended early: %w", filepath.Base(line[0]), err)
		if text := words.String(); text != "" {
			r.err = fmt.Errorf("%w; last words: %s", r.err, text)
		}
	}
	return r
}

// listen reads until nobody can say more.
func (r *result) listen(out io.Reader, others io.Writer) {
	for lines := bufio.NewScanner(out); lines.Scan(); {
		_, text, found := strings.Cut(lines.Text(), marker)
		if !found || !r.hear(strings.TrimSpace(text), time.Now()) {
			fmt.Fprintln(others, lines.Text())
		}
	}
}

// hear takes one line of work's, and says whether it was one.
func (r *result) hear(text string, at time.Time) bool {
	if test, why, ok := strings.Cut(text, " fails: "); ok {
		r.failures = append(r.failures, failure{test, why})
		return true
	}
	words := strings.Fields(text)
	switch {
	case len(words) == 1 && words[0] == "begin":
		r.begin = at
		return true
	case len(words) == 2 && words[0] == "end":
		seconds, err := strconv.ParseFloat(words[1], 64)
		r.end, r.guestTime = at, time.Duration(seconds*float64(time.Second))
		return err == nil
	case len(words) == 3:
		v, err := strconv.ParseFloat(words[1], 64)
		if err == nil {
			r.values = append(r.values, value{words[0], v, words[2]})
		}
		return err == nil
	}
	return false
}

// emit writes all of it as raw output.
func (r *result) emit(e environment) {
	const unit = "ms"
	ms := func(d time.Duration) float64 { return d.Seconds() * 1e3 }
	if !r.begin.IsZero() {
		emit(e, testBoot, ms(r.begin.Sub(r.started)), unit)
	}
	for _, v := range r.values {
		emit(e, v.test, v.value, v.unit)
	}
	for _, f := range r.failures {
		missing(e, f.test, verdictFails, errors.New(f.why))
	}
	switch {
	case r.begin.IsZero():
		missing(e, testBoot, verdictFails, r.err)
	case r.end.IsZero():
		missing(e, testOff, verdictFails, r.err)
	default:
		emit(e, testOff, ms(r.gone.Sub(r.end)), unit)
		if err := r.clock(); err != nil {
			missing(e, "clock", verdictClock, err)
		}
	}
}

// clock compares the guest's with ours: what it measured is worth no more than that.
func (r *result) clock() error {
	our := r.end.Sub(r.begin)
	lag := math.Abs((our - r.guestTime).Seconds())
	if lag <= max(clockLag.Seconds(), clockShare*our.Seconds()) {
		return nil
	}
	return fmt.Errorf("all took %s by the guest's clock and %s by the host's", r.guestTime, our.Round(time.Millisecond))
}

// adoptOrphans makes what a command leaves behind our own children.
func adoptOrphans() error {
	return os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
}

// endOrphans kills all our children, and theirs. No command of ours runs now.
func endOrphans() {
	for {
		lists, _ := filepath.Glob("/proc/self/task/*/children")
		if len(lists) == 0 {
			return // a kernel without CONFIG_PROC_CHILDREN
		}
		for _, list := range lists {
			pids, _ := os.ReadFile(list)
			for pid := range strings.FieldsSeq(string(pids)) {
				if n, err := strconv.Atoi(pid); err == nil {
					_ = unix.Kill(n, unix.SIGKILL)
				}
			}
		}
		if _, err := unix.Wait4(-1, nil, 0, nil); err != nil && !errors.Is(err, unix.EINTR) {
			return // ECHILD
		}
	}
}
