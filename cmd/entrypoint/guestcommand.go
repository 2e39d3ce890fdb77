package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"

	"docker-usermode-linux/internal/agent"
	"docker-usermode-linux/internal/attach"
)

// exitNotRun is the exit code when a command could not be run in the guest, as docker-run(1) has it.
const exitNotRun = 125

// guestCommand is a command for the guest, as the arguments of exec and run describe it.
type guestCommand struct {
	agent.Command
	tty attach.TTY
	// init is run's, dir exec's.
	init bool
	dir  string
}

// parseGuestCommand reads the options of "exec" or "run" as far as they come before the command, and the command. A help
// that was asked for is flag.ErrHelp.
func parseGuestCommand(name string, args []string) (guestCommand, error) {
	var c guestCommand
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(io.Discard) // usage and error are ours to place
	var env envList
	var force, never, interactive bool
	for _, name := range []string{"u", "user"} {
		flags.StringVar(&c.User, name, "", "")
	}
	for _, name := range []string{"w", "workdir"} {
		flags.StringVar(&c.Dir, name, "", "")
	}
	for _, name := range []string{"e", "env"} {
		flags.Var(&env, name, "")
	}
	for name, p := range map[string]*bool{
		"t": &force, "tty": &force, "T": &never, "no-tty": &never, "i": &interactive, "interactive": &interactive,
	} {
		flags.BoolVar(p, name, false, "")
	}
	// How everyone writes them for Docker; package flag knows no other letters in one word.
	for _, name := range []string{"it", "ti"} {
		flags.BoolVar(&force, name, false, "") // -i is ignored
	}
	switch name {
	case "exec":
		flags.StringVar(&c.dir, "dir", "", "")
	case "run":
		flags.BoolVar(&c.init, "init", false, "")
	}
	if err := flags.Parse(args); err != nil {
		return c, err
	}
	switch {
	case force && never:
		return c, errors.New("--tty and --no-tty exclude each other")
	case force:
		c.tty = attach.Force
	case never:
		c.tty = attach.Never
	}
	c.Env = env
	c.Args = flags.Args()
	return c, nil
}

// envList is a list of variables: NAME=VALUE, or NAME for one that is set here.
type envList []string

func (l *envList) String() string { return strings.Join(*l, " ") }

// Set implements flag.Value.
func (l *envList) Set(s string) error {
	name, _, given := strings.Cut(s, "=")
	if name == "" {
		return errors.New("not NAME=VALUE")
	}
	if !given {
		value, ok := os.LookupEnv(name)
		if !ok {
			return nil // as docker does
		}
		s = name + "=" + value
	}
	*l = append(*l, s)
	return nil
}

// guestOptions is what both commands take.
const guestOptions = `
Without a command: a login shell. Options come before it:
  -u, --user USER[:GROUP]  run as that user, names or numbers; root without it
  -w, --workdir DIR        run in that directory of the guest
  -e, --env NAME[=VALUE]   set a variable; without a value that of the same name here; may be repeated
  -t, --tty                a terminal even where stdin and stdout are none
  -T, --no-tty             no terminal even where they are one
  -i, --interactive        ignored: stdin is always passed on
`

// ownOptions are those of one command.
var ownOptions = map[string]string{
	"exec": "      --dir DIR            look for the guest in that directory only\n",
	"run":  "      --init               start the guest's own init beside the command\n",
}

// guestUsage prints how exec and run are called, and returns the exit code. err is why; flag.ErrHelp: it was asked for.
func guestUsage(name string, err error) int {
	w, code := os.Stdout, 0
	if !errors.Is(err, flag.ErrHelp) {
		w, code = os.Stderr, exitUsage
		fmt.Fprintf(w, "entrypoint %s: %v\n", name, err)
	}
	fmt.Fprintf(w, "usage: entrypoint %s [OPTION]... [COMMAND [ARGUMENT]...]\n%s%s", name, guestOptions[1:], ownOptions[name])
	return code
}
