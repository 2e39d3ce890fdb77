//go:build linux

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"docker-usermode-linux/bench/figures"
)

// errGone says that a bridge has crashed.
var errGone = errors.New("the bridge has ended")

// startGuard is far more than a bridge and a kernel take to start.
const startGuard = 30 * time.Second

// world is one guest behind one bridge, and the process at the other end of what is measured.
type world struct {
	peer  peer
	place place
	roots []int // processes that all others descend from
	guest *end
	host  *end
	// started is how long it took until the guest had its network, and all ports were forwarded.
	started  time.Duration
	log      *figures.LastWords
	commands []*exec.Cmd // to wait for
}

// start boots a guest.
func (p peer) start(dir string, mtu, first, count int) (*world, error) {
	w := &world{peer: p, log: &figures.LastWords{}, place: place{
		dir: dir, root: filepath.Join(dir, "root"), mtu: mtu, hostPort: hostPort, first: first, count: count,
	}}
	if err := w.start(); err != nil {
		err = w.explain(err)
		w.stop()
		return nil, err
	}
	return w, nil
}

// explain adds what may be the reason of an error: an end of the bridge, and the last words of all processes.
func (w *world) explain(err error) error {
	if _, gone := w.memory(); gone != nil {
		err = fmt.Errorf("%w; %w", err, gone)
	}
	if words := w.log.String(); words != "" {
		err = fmt.Errorf("%w; last words: %s", err, words)
	}
	return err
}

func (w *world) start() error {
	if err := makeRoot(w.place.root); err != nil {
		return err
	}
	host, err := w.end("host", []string{agentEnv, "/proc/self/exe", "agent"})
	if err != nil {
		return err
	}
	w.host = host
	if _, err := host.wait(eventReady, startGuard); err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	w.roots = nil // what the host's end costs is not the bridge's

	began := time.Now()
	if w.peer.bridge != nil {
		cmd := w.command(w.peer.bridge(w.place))
		cmd.Stdout = w.log
		if err := w.run(cmd); err != nil {
			return err
		}
		if err := waitFile(w.place.socket()); err != nil {
			return fmt.Errorf("bridge: %w", err)
		}
	}
	if w.guest, err = w.end("guest", w.peer.kernel(w.place)); err != nil {
		return err
	}
	if _, err := w.guest.wait(eventReady, startGuard); err != nil {
		return fmt.Errorf("guest: %w", err)
	}
	network := w.peer.nic
	network.MTU = w.place.mtu
	if err := w.guest.tell(order{Job: "network", Network: &network}); err != nil {
		return err
	}
	if _, err := w.guest.wait(eventDone, startGuard); err != nil {
		return fmt.Errorf("guest's network: %w", err)
	}
	if w.peer.forward != nil {
		if err := w.peer.forward(w.place); err != nil {
			return fmt.Errorf("forward ports: %w", err)
		}
	}
	w.started = time.Since(began)
	return nil
}

// makeRoot makes the guest's root file system, in which there is this program and nothing else.
func makeRoot(root string) error {
	for _, dir := range []string{"dev", "etc", "proc", "sys", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(root, guestName), self, 0o755)
}

func waitFile(path string) error {
	for deadline := time.Now().Add(startGuard); ; time.Sleep(time.Millisecond) {
		_, err := os.Stat(path)
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// command takes environment variables before the program.
func (w *world) command(line []string) *exec.Cmd {
	env := os.Environ()
	for strings.Contains(line[0], "=") {
		env, line = append(env, line[0]), line[1:]
	}
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Env = env
	cmd.Dir = w.place.dir
	cmd.Stderr = w.log
	// A process of its own that outlives it must not keep us waiting for its last words.
	cmd.WaitDelay = time.Second
	return cmd
}

func (w *world) run(cmd *exec.Cmd) error {
	if err := cmd.Start(); err != nil {
		return err
	}
	w.commands = append(w.commands, cmd)
	w.roots = append(w.roots, cmd.Process.Pid)
	return nil
}

// stop ends everything. A guest that answers is powered off; what then still runs is killed.
func (w *world) stop() {
	all, _ := processes()
	rest := below(all, os.Getpid())
	if w.guest != nil && w.guest.tell(order{Job: "off"}) == nil {
		w.guest.waitEnd(3 * time.Second)
	}
	for _, p := range rest {
		if p.pid != os.Getpid() {
			_ = unix.Kill(p.pid, unix.SIGKILL)
		}
	}
	for _, cmd := range w.commands {
		_ = cmd.Wait() // killed, mostly
	}
	_ = os.RemoveAll(w.place.dir)
}

// usage is what the peer's processes have taken so far.
func (w *world) usage() (usage, error) {
	all, err := processes()
	if err != nil {
		return usage{}, err
	}
	u := usage{at: time.Now()}
	for _, p := range below(all, w.roots...) {
		u.all += p.own + p.reaped
		if strings.HasPrefix(p.name, w.peer.process) {
			u.bridge += p.own
		}
	}
	return u, nil
}

// memory is that of the bridge.
func (w *world) memory() (memory, error) {
	all, err := processes()
	if err != nil {
		return memory{}, err
	}
	var m memory
	for _, p := range below(all, w.roots...) {
		if !strings.HasPrefix(p.name, w.peer.process) {
			continue
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
		if err != nil {
			return memory{}, err
		}
		one := parseMemory(string(status))
		m.rss += one.rss
		m.anon += one.anon
	}
	if m.rss == 0 {
		return memory{}, errGone
	}
	return m, nil
}

// hostAddress is where the guest finds the host's end.
func (w *world) hostAddress() netip.AddrPort {
	return netip.AddrPortFrom(w.peer.host(), w.place.hostPort)
}

// hostListens is where it is.
func (w *world) hostListens() netip.AddrPort {
	return netip.AddrPortFrom(netip.IPv4Unspecified(), w.place.hostPort)
}

// end is an agent that takes orders.
type end struct {
	name    string
	in      io.Writer
	answers chan answer // closed when it has ended
}

func (w *world) end(name string, line []string) (*end, error) {
	cmd := w.command(line)
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	// Not StdoutPipe, which Wait closes before all is read.
	out, outWriter, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout = outWriter
	err = w.run(cmd)
	outWriter.Close()
	if err != nil {
		out.Close()
		return nil, err
	}
	e := &end{name: name, in: in, answers: make(chan answer, 8)}
	go e.listen(out, w.log)
	return e, nil
}

// listen reads answers, and everything else that is said, until nobody can say more.
func (e *end) listen(out io.ReadCloser, log io.Writer) {
	defer close(e.answers)
	defer out.Close()
	for lines := bufio.NewScanner(out); lines.Scan(); {
		_, text, found := strings.Cut(lines.Text(), marker)
		var a answer
		if !found || json.Unmarshal([]byte(text), &a) != nil {
			fmt.Fprintln(log, lines.Text())
			continue
		}
		e.answers <- a
	}
}

func (e *end) tell(o order) error {
	line, err := json.Marshal(o)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(e.in, "%s\n", line)
	return err
}

// wait returns the next answer, which has to be event.
func (e *end) wait(event string, timeout time.Duration) (answer, error) {
	select {
	case a, ok := <-e.answers:
		switch {
		case !ok:
			return answer{}, fmt.Errorf("%s has ended", e.name)
		case a.Event == eventFailed:
			return a, fmt.Errorf("%s: %s", e.name, a.Error)
		case a.Event != event:
			return a, fmt.Errorf("%s says %q instead of %q", e.name, a.Event, event)
		}
		return a, nil
	case <-time.After(timeout):
		return answer{}, fmt.Errorf("%s: %w", e.name, errDeadline)
	}
}

// waitEnd waits until the agent's process has closed its output.
func (e *end) waitEnd(timeout time.Duration) {
	for deadline := time.After(timeout); ; {
		select {
		case _, ok := <-e.answers:
			if !ok {
				return
			}
		case <-deadline:
			return
		}
	}
}

// exchange is one measurement: passive waits for active, both do their part, meanwhile during is called. It returns
// what both answered.
func (w *world) exchange(passive *end, p order, active *end, a order, during func() error) (
	fromPassive, fromActive answer, err error,
) {
	p.Listen = true
	timeout := max(p.duration(), a.duration()) + 2*grace
	if err = passive.tell(p); err != nil {
		return
	}
	if _, err = passive.wait(eventListening, timeout); err != nil {
		return
	}
	if err = active.tell(a); err != nil {
		return
	}
	if during != nil {
		if err = during(); err != nil {
			return
		}
	}
	fromActive, errActive := active.wait(eventDone, timeout)
	if p.Job == "accept" {
		if err = passive.tell(order{Job: "stop"}); err != nil {
			return
		}
	}
	fromPassive, errPassive := passive.wait(eventDone, timeout)
	return fromPassive, fromActive, errors.Join(errActive, errPassive)
}
