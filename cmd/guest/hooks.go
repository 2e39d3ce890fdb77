//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"docker-usermode-linux/internal/agent"
	"docker-usermode-linux/internal/boot"
)

// hooksMount is where the user's scripts can be seen while they run. It is on /dev, to which we can write whatever the
// root file system is, and made and removed for each run.
const hooksMount = "/dev/hooks"

// hookTree is a file system with the scripts of boot.HooksDir in it. It is mounted nowhere: the scripts outlive the
// initramfs without a place in the guest's root file system, and nobody changes by mistake those for the stop.
type hookTree struct {
	// dir is the file system's root, a mount of its own. Whoever inherits it can run what is in it.
	dir *os.File
	// mount is where it is mounted while scripts of it run.
	mount string
}

// takeHooks copies the scripts out of the initramfs. It returns nil if there are none.
func takeHooks() (*hookTree, error) {
	entries, err := os.ReadDir(boot.HooksDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	h, err := newHookTree()
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		if err := h.copy(path.Join(boot.HooksDir, entry.Name()), entry.Name()); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// newHookTree makes an empty one, for root alone, and without a limit: what goes into it has one.
func newHookTree() (*hookTree, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a tmpfs: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetString(fs, "mode", "0700"); err != nil {
		return nil, fmt.Errorf("make a tmpfs: %w", err)
	}
	if err := unix.FsconfigSetString(fs, "size", "0"); err != nil {
		return nil, fmt.Errorf("make a tmpfs: %w", err)
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("make a tmpfs: %w", err)
	}
	dir, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return nil, fmt.Errorf("make a tmpfs: %w", err)
	}
	return &hookTree{dir: os.NewFile(uintptr(dir), "hooks"), mount: hooksMount}, nil
}

// copy copies the files of a directory into one of that name in the tree.
func (h *hookTree) copy(from, name string) error {
	fd := int(h.dir.Fd())
	if err := unix.Mkdirat(fd, name, 0o700); err != nil {
		return fmt.Errorf("copy hooks: %w", err)
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := copyAt(path.Join(from, entry.Name()), fd, path.Join(name, entry.Name())); err != nil {
			return fmt.Errorf("copy hook %s: %w", entry.Name(), err)
		}
	}
	return nil
}

func copyAt(from string, dir int, name string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o700)
	if err != nil {
		return err
	}
	out := os.NewFile(uintptr(fd), name)
	// A file that is open for writing cannot be executed, so it must not stay open.
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}

// run runs the scripts of a stage as runHooks does, in sight of the guest for as long as that takes. A nil tree has none.
//
// Preconditions: the root file system is /, with /dev on it.
func (h *hookTree) run(stage boot.Stage, env []string) (err error) {
	if h == nil {
		return nil
	}
	tree, err := unix.OpenTree(int(h.dir.Fd()), "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("run hooks: %w", err)
	}
	defer unix.Close(tree)
	if err := os.Mkdir(h.mount, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("run hooks: %w", err)
	}
	defer os.Remove(h.mount)
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, h.mount, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("run hooks: mount %s: %w", h.mount, err)
	}
	defer func() { _ = unix.Unmount(h.mount, unix.MNT_DETACH) }()
	return runHooks(path.Join(h.mount, string(stage)), env, stage == boot.StageStop)
}

// runHooks runs the scripts in a directory, one after the other in lexical order, as root at / with the console as their
// output. The first one that fails is the last, unless all are to run; an error has an exitError with its exit code. A
// directory that does not exist has none.
func runHooks(dir string, env []string, all bool) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("run hooks: %w", err)
	}
	var failed []error
	for _, entry := range entries {
		if err := runHook(path.Join(dir, entry.Name()), env); err != nil {
			if !all {
				return err
			}
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// runHook runs one script by its #!, and without one by /bin/sh, as run-parts and a shell would.
func runHook(name string, env []string) error {
	argv := []string{name}
	if head := string(readHead(name)); !strings.HasPrefix(head, "#!") && !strings.HasPrefix(head, "\x7fELF") {
		argv = []string{"/bin/sh", name}
	}
	// Without a standard input: what is typed meanwhile is for the login.
	cmd := &exec.Cmd{Path: argv[0], Args: argv, Env: env, Dir: "/", Stdout: os.Stdout, Stderr: os.Stderr}
	err := runUnprotected(cmd)
	exit, ran := errors.AsType[*exec.ExitError](err)
	switch {
	case err == nil:
		return nil
	case !ran:
		if errno, ok := errors.AsType[syscall.Errno](err); ok {
			err = explainExec(argv[0], errno)
		}
		return &exitError{codeExec, fmt.Errorf("hook %s: %w", path.Base(name), err)}
	}
	return &exitError{exitCode(unix.WaitStatus(exit.Sys().(syscall.WaitStatus))), fmt.Errorf("hook %s: %w", path.Base(name), err)}
}

// runUnprotected is cmd.Run for what the agent starts.
func runUnprotected(cmd *exec.Cmd) error {
	if err := agent.StartUnprotected(cmd.Start); err != nil {
		return err
	}
	return cmd.Wait()
}

// hookEnv is initEnv with the home that root has.
func hookEnv(env []string) []string {
	env = slices.DeleteFunc(slices.Clone(env), func(v string) bool { return strings.HasPrefix(v, "HOME=") })
	return initEnv(append(env, "HOME=/root"))
}
