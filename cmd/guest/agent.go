//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"docker-usermode-linux/internal/agent"
)

// The agent is this program once more, as a process of its own that outlives the guest stage, whatever init follows. It
// is forked before the root changes, as there its file is, and changes over when the new root is ready: the guest stage
// then hands it a task. It is nobody's service and in nobody's control group, so an init notices it only when it
// kills all that there is, at the very end.

const (
	// agentRole is the first argument of the agent's process.
	agentRole = "agent"
	// agentName is what ps shows. An @ keeps systemd from killing it with the rest at shutdown (its root storage daemons).
	agentName = "@guest-agent"

	// Descriptors of the agent's process.
	taskFD  = 3 // a pipe with its task
	rootFD  = 4 // the new root directory
	hooksFD = 5 // the root of the hooks' file system; it may be missing

	// portPoll is how often the port is looked for at first, and portRetry later on: for a kernel that has none, and while
	// another process has it, which is somebody's mistake.
	portPoll  = 5 * time.Millisecond
	portPolls = 400
	portRetry = time.Second
	// portPause lets the host notice that the port was closed before it is opened again.
	portPause = 50 * time.Millisecond
	// unkillable is the badness that keeps the kernel from killing a process for its memory (proc_pid_oom_score_adj(5)).
	unkillable = -1000
	// gcPercent keeps the heap small: the guest's memory is the user's.
	gcPercent = 50
)

// agentTask is what the guest stage tells the agent.
type agentTask struct {
	// SSH has the agent serve port 22 where the root file system has no SSH server.
	SSH bool `json:"ssh"`
	// KeysOnly has it accept no passwords there.
	KeysOnly bool `json:"keys_only"`
	// Command says that it is there to run a command.
	Command bool `json:"command"`
	// OwnInit says that this program stays as process 1.
	OwnInit bool `json:"own_init"`
}

// startAgent forks the agent. It waits for its task in task, whose closing without one ends it.
//
// Preconditions: the new root is mounted on newRoot; /proc is mounted.
func startAgent(hooks *hookTree) (task *os.File, err error) {
	root, err := os.OpenFile(newRoot, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	theirs, task, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDONLY, 0)
	if err != nil {
		return nil, errors.Join(err, task.Close())
	}
	defer null.Close()
	files := []uintptr{null.Fd(), 2, 2, taskFD: theirs.Fd(), rootFD: root.Fd()}
	if hooks != nil {
		files = append(files, hooks.dir.Fd())
	}
	_, err = syscall.ForkExec("/proc/self/exe", []string{agentName, agentRole}, &syscall.ProcAttr{
		Env:   initEnv(os.Environ()), // for the hooks at the stop
		Files: files,
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return nil, errors.Join(err, task.Close())
	}
	return task, nil
}

// giveTask lets the agent go to work, now that its root is the guest's.
func giveTask(pipe *os.File, task agentTask) error {
	if pipe == nil {
		return nil
	}
	defer pipe.Close()
	return json.NewEncoder(pipe).Encode(task)
}

// agentMain is the agent's process.
func agentMain() int {
	debug.SetGCPercent(gcPercent)
	hooks, env := inheritHooks(), takeEnv()
	// What the init does to all processes at shutdown is not meant for this one; the kernel ends it.
	// Not by ignoring them: that would be inherited.
	unwanted := []os.Signal{unix.SIGHUP, unix.SIGINT}
	task, err := takeTask()
	if errors.Is(err, io.EOF) {
		return 0 // the guest stage gave up, and has said why
	}
	if err != nil {
		note(fmt.Errorf("agent: %w", err))
		return 1
	}
	if !task.OwnInit { // ours waits for all to end
		unwanted = append(unwanted, unix.SIGTERM)
	}
	signal.Notify(make(chan os.Signal, 1), unwanted...)
	noteErr("agent: %w", os.WriteFile("/proc/self/oom_score_adj", strconv.AppendInt(nil, unkillable, 10), 0))
	ctx := context.Background()
	if task.SSH {
		go keepSSH(task.KeysOnly)
	}
	serveSupervisor(ctx, &requests{hooks: hooks, hookEnv: env, ownInit: task.OwnInit}, task.Command)
	return 0
}

// inheritHooks returns the hooks that the guest stage handed over, or nil. Commands that the agent runs do not get them.
func inheritHooks() *hookTree {
	var st unix.Stat_t
	if unix.Fstat(hooksFD, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	unix.CloseOnExec(hooksFD)
	return &hookTree{dir: os.NewFile(hooksFD, "hooks"), mount: hooksMount}
}

// takeEnv returns the environment of the hooks, which is the kernel's NAME=value, and leaves none but a PATH: what else
// the agent starts is not to inherit it, and the init's tools are not searched in a PATH that is meant for hooks.
func takeEnv() []string {
	env := hookEnv(os.Environ())
	os.Clearenv()
	name, value, _ := strings.Cut(defaultPath, "=")
	_ = os.Setenv(name, value) // fails for a name that is none
	return env
}

// takeTask waits for the task, and makes the new root the agent's.
func takeTask() (agentTask, error) {
	var task agentTask
	pipe := os.NewFile(taskFD, "task")
	defer pipe.Close()
	defer unix.Close(rootFD)
	if err := json.NewDecoder(pipe).Decode(&task); err != nil {
		return task, err
	}
	if err := unix.Fchdir(rootFD); err != nil {
		return task, fmt.Errorf("change to the new root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return task, fmt.Errorf("change to the new root: %w", err)
	}
	return task, nil
}

// serveSupervisor serves the supervisor for ever: a connection that fails is followed by another. A kernel that has no port
// for it cannot have the command that the guest was booted for.
func serveSupervisor(ctx context.Context, r *requests, command bool) {
	server := agent.NewServer(agent.ServerOptions{Handle: r.handle, Log: noteAgent})
	for tries := 0; ; tries++ {
		port, err := openPort()
		if err != nil && tries < portPolls {
			time.Sleep(portPoll)
			continue
		}
		if err != nil {
			if command && tries == portPolls && errors.Is(err, os.ErrNotExist) {
				openExitCode()
				powerOff(errors.New("agent: the kernel has no port for it: is CONFIG_VIRTIO_UML or CONFIG_VIRTIO_CONSOLE missing?"))
			}
			time.Sleep(portRetry)
			continue
		}
		// There is one, and will be: a failure now is no kernel without.
		tries = portPolls + 1
		if err := server.Serve(ctx, port); err != nil && !errors.Is(err, unix.ENODEV) { // as it is when the kernel ends
			noteAgent(err)
		}
		_ = port.Close()
		time.Sleep(portPause)
	}
}

// openPort opens the agent's port, which the kernel makes a moment after it has found the device.
func openPort() (*os.File, error) {
	ports, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
	for _, path := range ports {
		if name, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(name)) == agent.PortName {
			return os.OpenFile("/dev/"+filepath.Base(filepath.Dir(path)), os.O_RDWR, 0)
		}
	}
	return nil, os.ErrNotExist
}

// noteAgent is the agent's log.
func noteAgent(err error) { note(fmt.Errorf("agent: %w", err)) }

// requests answers the supervisor.
type requests struct {
	hooks    *hookTree // nil: none
	hookEnv  []string
	ownInit  bool // this program stays as process 1
	stopping sync.Once
	up       atomic.Bool // what the init last answered; not after a question without an answer
}

func (r *requests) handle(name string, payload []byte) ([]byte, error) {
	switch name {
	case agent.RequestStatus:
		return answer(payload, r.status)
	case agent.RequestPowerOff:
		return answer(payload, func(struct{}) (agent.PowerOff, error) { return r.powerOff() })
	case agent.RequestSetTime:
		return answer(payload, setTime)
	}
	return nil, fmt.Errorf("no such request: %q", name)
}

// answer decodes a request, has it handled and encodes the answer.
func answer[Q, A any](payload []byte, f func(Q) (A, error)) ([]byte, error) {
	var q Q
	if len(payload) > 0 {
		if err := json.Unmarshal(payload, &q); err != nil {
			return nil, err
		}
	}
	a, err := f(q)
	if err != nil {
		return nil, err
	}
	return json.Marshal(a)
}

func setTime(q agent.SetTime) (struct{}, error) {
	ts := unix.NsecToTimespec(q.Time)
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return struct{}{}, fmt.Errorf("set the clock: %w", err)
	}
	return struct{}{}, nil
}
