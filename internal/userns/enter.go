package userns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Enter executes this program anew, as root of a user namespace with the mapping's ids, and returns only if it cannot;
// then nothing has changed. The process and its open files stay as exec(2) leaves them, so that a file to be passed on
// must not have close-on-exec set, and standard input, output and error are.
//
// Preconditions: m.Needed().
func (m Mapping) Enter(ctx context.Context, argv, env []string) error {
	// The helper process dies with the thread that has started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	namespace, err := m.namespace(ctx)
	if err != nil {
		return err
	}
	defer namespace.Close()
	self, err := os.Open("/proc/self/exe")
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("enter user namespace: %s may be executed, but not read: chmod +r", executable())
	}
	if err != nil {
		return fmt.Errorf("enter user namespace: %w", err)
	}
	defer self.Close()
	joiner, err := newStage(stage{join: namespace, program: self, path: nameOf(self)})
	if err != nil {
		return fmt.Errorf("enter user namespace: %w", err)
	}
	defer joiner.Close()

	// The stage sets it again.
	for _, f := range []*os.File{namespace, self} {
		if _, err := unix.FcntlInt(f.Fd(), unix.F_SETFD, 0); err != nil {
			return fmt.Errorf("enter user namespace: %w", err)
		}
		defer syscall.CloseOnExec(int(f.Fd()))
	}
	err = syscall.Exec(fdPath(joiner), argv, env)
	return fmt.Errorf("enter user namespace: execute the program that joins it: %w", explainExec(err))
}

// namespace makes a user namespace with the mapping's ids and returns it, open.
func (m Mapping) namespace(ctx context.Context) (*os.File, error) {
	idle, err := newStage(stage{})
	if err != nil {
		return nil, fmt.Errorf("make user namespace: %w", err)
	}
	defer idle.Close()
	holder := &exec.Cmd{
		Path:        fdPath(idle),
		Args:        []string{"userns"},
		Env:         []string{},
		SysProcAttr: &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, Pdeathsig: syscall.SIGKILL},
	}
	if err := holder.Start(); err != nil {
		return nil, explainClone(err)
	}
	defer func() {
		_ = holder.Process.Kill()
		_ = holder.Wait()
	}()
	proc := filepath.Join("/proc", strconv.Itoa(holder.Process.Pid))
	if err := checkLabel(proc); err != nil {
		return nil, err
	}
	if err := writeMap(ctx, m.newuidmap, holder.Process.Pid, m.UIDs); err != nil {
		return nil, err
	}
	if err := writeMap(ctx, m.newgidmap, holder.Process.Pid, m.GIDs); err != nil {
		return nil, err
	}
	namespace, err := os.Open(filepath.Join(proc, "ns/user"))
	if err != nil {
		return nil, fmt.Errorf("open user namespace: %w", err)
	}
	return namespace, nil
}

// writeMap has a map written by newuidmap(1) or newgidmap(1), which check it against /etc/subuid or /etc/subgid.
func writeMap(ctx context.Context, helper string, pid int, ranges []Range) error {
	args := []string{strconv.Itoa(pid)}
	for _, r := range ranges {
		for _, n := range []uint32{r.Inside, r.Outside, r.Count} {
			args = append(args, strconv.FormatUint(uint64(n), 10))
		}
	}
	out, err := exec.CommandContext(ctx, helper, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s: %w: %s", ErrNoHelper, strings.Join(append([]string{helper}, args...), " "), err,
			strings.Join(strings.Fields(string(out)), " "))
	}
	return nil
}

// explainClone says why no user namespace could be made (clone(2)). By then the settings that Find knows are right.
func explainClone(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EUSERS):
		return fmt.Errorf("%w: no more of them are left: sysctl user.max_user_namespaces: %w", ErrForbidden, err)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%w: the kernel has none (CONFIG_USER_NS): %w", ErrForbidden, err)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("%w: by a container, a chroot or a security module: %w", ErrForbidden, err)
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w: by a security module, or no anonymous file may be executed: %w", ErrForbidden, err)
	}
	return fmt.Errorf("make user namespace: %w", err)
}

// explainExec is for the execution of an anonymous file.
func explainExec(err error) error {
	if errors.Is(err, unix.EACCES) {
		return fmt.Errorf("sysctl vm.memfd_noexec, or a security module: %w", err)
	}
	return err
}

// checkLabel finds a process that AppArmor has put into a profile without capabilities because it has made a user
// namespace: that is how Ubuntu restricts them since 23.10 (kernel.apparmor_restrict_unprivileged_userns), for programs
// without a profile of their own that allows it.
func checkLabel(proc string) error {
	for _, name := range []string{"attr/apparmor/current", "attr/current"} {
		label, err := os.ReadFile(filepath.Join(proc, name))
		if err == nil {
			return checkProfile(string(bytes.TrimRight(label, "\x00\n")))
		}
	}
	return nil // no security module
}

func checkProfile(label string) error {
	// unprivileged_userns (enforce); unshare//&unpriv_unshare and the like are for programs that we do not run.
	if !strings.HasPrefix(label, "unprivileged_userns") && !strings.Contains(label, "//&unprivileged_userns") {
		return nil
	}
	return fmt.Errorf("%w: AppArmor takes all capabilities away in them: "+
		"set sysctl kernel.apparmor_restrict_unprivileged_userns=0, or load a profile from /etc/apparmor.d: "+
		"profile uml %s flags=(unconfined) { userns, }", ErrForbidden, executable())
}

// nameOf is the path to execute the program by. A descriptor's, which always works, would be what ps shows as its name,
// so that the program's own is taken as long as it leads to the same file.
func nameOf(self *os.File) string {
	name := executable()
	if here, err := os.Stat(name); err == nil {
		if there, err := self.Stat(); err == nil && os.SameFile(here, there) && unix.Access(name, unix.X_OK) == nil {
			return name
		}
	}
	return fdPath(self)
}

// executable is the program's path, for a text.
func executable() string {
	name, err := os.Executable()
	if err != nil {
		return "/proc/self/exe"
	}
	return name
}

func fdPath(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }
