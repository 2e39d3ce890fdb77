//go:build linux

package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"docker-usermode-linux/internal/boot"
)

// defaultInits are tried in this order when the command line names no init. They are the kernel's, with the one
// place of systemd where no link to it was made, and without the shell, which is no init.
var defaultInits = []string{"/sbin/init", "/etc/init", "/bin/init", "/usr/lib/systemd/systemd"}

// defaultShell is what runs on the console where there is no init.
const defaultShell = "/bin/sh"

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// chooseInit returns the programs to try as init, in this order: init, or without one those of defaultInits that exist.
// Where it returns none, this program is to stay as process 1, with a shell on the console if that is not "". It is
// asked before anything is written, so that a directory that is no root file system stays as it is.
func chooseInit(root *os.Root, init string, s boot.Settings) (inits []string, shell string, err error) {
	if s.NoInit {
		return nil, "", nil
	}
	dir, err := root.Open(".")
	if err != nil {
		return nil, "", fmt.Errorf("open root file system: %w", err)
	}
	defer dir.Close()
	candidates := defaultInits
	if init != "" {
		candidates = []string{init}
	}
	for _, candidate := range candidates {
		if isThere(dir, candidate) {
			inits = append(inits, candidate)
		}
	}
	switch {
	case len(inits) > 0:
		return inits, "", nil
	case init != "":
		return nil, "", &exitError{codeNotFound, fmt.Errorf("init=%s: no such file in the root file system", init)}
	case isThere(dir, defaultShell):
		return nil, defaultShell, nil
	default:
		return nil, "", &exitError{codeNotFound, fmt.Errorf(
			"no init in the root file system, tried %s, and no %s; name one with init=, or run a single program with run",
			strings.Join(candidates, " "), defaultShell)}
	}
}

// isThere says whether there is a program of that name in the root file system. A dangling link counts: that it dangles
// is what the user has to be told.
func isThere(root *os.File, name string) bool {
	fd, err := openInRoot(int(root.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

// execInit replaces this program by the first of inits that can be executed. It returns only with an error.
//
// Preconditions: the root file system is /, and inits is not empty.
func execInit(inits []string) error {
	env := initEnv(os.Environ())
	var reason error
	for _, init := range inits {
		noteErr("%w", reason) // why not the one before
		if wantsTerminal(init) {
			noteErr("no job control on the console: %w", takeTerminal())
		}
		argv := append([]string{init}, os.Args[1:]...)
		reason = explainExec(init, unix.Exec(init, argv, env))
	}
	return &exitError{codeExec, reason}
}

// wantsTerminal says whether a program run as init should get the console as its controlling terminal: everything
// but an init. A real one makes its own sessions, and a Ctrl-C on its terminal would be a signal to it, which for
// many means a reboot.
func wantsTerminal(init string) bool {
	name := path.Base(init)
	return !strings.Contains(name, "init") && !strings.HasPrefix(name, "systemd") &&
		!strings.HasPrefix(name, "runit") && !strings.HasPrefix(name, "s6-")
}

// initEnv is what the kernel gave us (HOME, TERM and the parameters that it does not know), with a PATH.
func initEnv(env []string) []string {
	if slices.ContainsFunc(env, func(v string) bool { return strings.HasPrefix(v, "PATH=") }) {
		return env
	}
	return append(slices.Clone(env), defaultPath)
}

// explainExec says in the user's terms why a program that exists could not be executed.
func explainExec(name string, err error) error {
	switch {
	case errors.Is(err, unix.ENOEXEC):
		if reason := foreign(readHead(name)); reason != "" {
			return fmt.Errorf("execute %s: built for another architecture: %s", name, reason)
		}
		return fmt.Errorf("execute %s: neither a program nor a script with #!: %w", name, err)
	case errors.Is(err, unix.ENOENT):
		if line, ok := interpreterLine(readHead(name)); ok {
			return fmt.Errorf("execute %s: its interpreter is missing: %s", name, line)
		}
		if target, err := os.Readlink(name); err == nil && !exists(name) {
			return fmt.Errorf("execute %s: it is a symbolic link to %s, which is missing", name, target)
		}
		return fmt.Errorf("execute %s: its dynamic linker is missing", name)
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("execute %s: not an executable file: %w", name, err)
	default:
		return fmt.Errorf("execute %s: %w", name, err)
	}
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// headSize is as much as the kernel looks at to choose a loader (BINPRM_BUF_SIZE).
const headSize = 256

func readHead(name string) []byte {
	file, err := os.Open(name)
	if err != nil {
		return nil
	}
	defer file.Close()
	head := make([]byte, headSize)
	n, _ := io.ReadFull(file, head)
	return head[:n]
}

// interpreterLine returns what follows "#!" in a script.
func interpreterLine(head []byte) (string, bool) {
	rest, ok := bytes.CutPrefix(head, []byte("#!"))
	if !ok {
		return "", false
	}
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	return strings.TrimSpace(string(line)), true
}

// Machines of elf(5), with Go's names for them.
var machines = map[uint16]string{
	3: "386", 8: "mips", 20: "ppc", 21: "ppc64", 22: "s390x", 40: "arm", 62: "amd64", 183: "arm64", 243: "riscv64",
	258: "loong64",
}

// foreign says what an ELF program was built for, if that is not what we were built for.
func foreign(head []byte) string {
	const machineOffset = 18
	if len(head) < machineOffset+2 || !bytes.HasPrefix(head, []byte("\x7fELF")) {
		return ""
	}
	var order binary.ByteOrder = binary.LittleEndian
	if head[5] == 2 {
		order = binary.BigEndian
	}
	number := order.Uint16(head[machineOffset:])
	name, ok := machines[number]
	if !ok {
		name = fmt.Sprintf("machine %d", number)
	}
	if name == runtime.GOARCH {
		return ""
	}
	return fmt.Sprintf("it needs %s, the guest is %s", name, runtime.GOARCH)
}
