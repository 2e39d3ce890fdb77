package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"
)

const (
	// maxCommand bounds a Command in JSON, in bytes: what x/crypto/ssh sends in one packet, 256 KiB, less the rest of it.
	maxCommand = 255 << 10
	// maxEnv bounds the variables of a session, from "env" requests too.
	maxEnv = 4096
)

// The exit codes of a command that did not start, as those of docker-run(1).
const (
	codeAgent         = 125
	codeNotExecutable = 126
	codeNotFound      = 127
)

// Size is the size of a terminal in characters.
type Size struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// PTY asks for a terminal.
type PTY struct {
	Term string `json:"term"` // the variable TERM; empty: xterm
	Size
}

// Command is what to run in the guest.
type Command struct {
	// Args is the program and its arguments. Without a slash the program is searched in the PATH that it gets. No Args:
	// the user's shell, as a login shell.
	Args []string `json:"args,omitempty"`
	// Env holds NAME=VALUE. HOME, USER, LOGNAME, SHELL and PATH are there before, and TERM with a terminal.
	Env []string `json:"env,omitempty"`
	// Dir is absolute. Empty: the user's home, or / without one.
	Dir string `json:"dir,omitempty"`
	// User is USER or USER:GROUP, names or numbers, as for docker-exec(1). Empty: root.
	User string `json:"user,omitempty"`
	// PTY, unless it is nil, makes a terminal of the three standard streams.
	PTY *PTY `json:"pty,omitempty"`
}

// parseCommand parses and checks a Command in JSON. An unknown field is an error: it could be a restriction.
func parseCommand(data []byte) (Command, error) {
	var c Command
	if len(data) > maxCommand {
		return c, fmt.Errorf("command is %d bytes long, at most %d are possible", len(data), maxCommand)
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&c); err != nil {
		return c, fmt.Errorf("parse command: %w", err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return c, errors.New("parse command: more than one value")
	}
	return c, c.check()
}

// check reports the first thing that no system call would take.
func (c Command) check() error {
	if len(c.Env) > maxEnv {
		return fmt.Errorf("%d variables in the environment, at most %d are possible", len(c.Env), maxEnv)
	}
	for _, arg := range c.Args {
		if strings.ContainsRune(arg, 0) {
			return fmt.Errorf("argument %q holds a NUL byte", arg)
		}
	}
	if len(c.Args) > 0 && c.Args[0] == "" {
		return errors.New("the name of the command is empty")
	}
	for _, variable := range c.Env {
		if name, _, ok := strings.Cut(variable, "="); !ok || name == "" || strings.ContainsRune(variable, 0) {
			return fmt.Errorf("environment: %q is not NAME=VALUE", variable)
		}
	}
	if c.Dir != "" && !filepath.IsAbs(c.Dir) || strings.ContainsRune(c.Dir, 0) {
		return fmt.Errorf("working directory %q is not an absolute path", c.Dir)
	}
	if c.PTY != nil && strings.ContainsRune(c.PTY.Term, 0) {
		return fmt.Errorf("terminal %q holds a NUL byte", c.PTY.Term)
	}
	for _, s := range slices.Concat(c.Args, c.Env, []string{c.Dir, c.User}) {
		if !utf8.ValidString(s) {
			return fmt.Errorf("%q is not UTF-8, which JSON is", s)
		}
	}
	return nil
}

// plan is a command that is ready to be started.
type plan struct {
	user *user
	// name is what argv[0] of a message is; path is empty until it was looked up.
	name, path string
	argv       []string
	env        []string // later ones win
	dir        string   // empty: home, or /
	terminal   *terminal
}

// plan says how to execute a command as a user.
func (c Command) plan(u *user) *plan {
	p := &plan{user: u, env: append(u.environment(), c.Env...), dir: c.Dir}
	if len(c.Args) == 0 {
		p.loginShell()
	} else {
		p.name, p.argv = c.Args[0], c.Args
	}
	return p
}

// loginShell makes it the user's login shell, which is told so by a dash before its name.
func (p *plan) loginShell() {
	shell := p.user.shell
	if !isExecutable(shell) {
		shell = defaultShell
	}
	p.name, p.path = shell, shell
	p.argv = []string{"-" + path.Base(shell)}
}

// shellCommand makes it a command line for the user's shell.
func (p *plan) shellCommand(line string) {
	p.name, p.path = p.user.shell, p.user.shell
	p.argv = []string{path.Base(p.user.shell), "-c", line}
}

func isExecutable(file string) bool {
	info, err := os.Stat(file)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}
