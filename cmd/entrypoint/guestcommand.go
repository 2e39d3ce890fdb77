package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"docker-usermode-linux/internal/attach"
	"docker-usermode-linux/internal/command"
)

// guestCommand is a command for the guest, as the arguments of exec and run describe it.
type guestCommand struct {
	command.Guest
	tty attach.TTY
	// dir is exec's.
	dir string
}

// parseGuestCommand reads the options of "exec" or "run" as far as they come before the command, and the command. A help
// that was asked for is flag.ErrHelp.
func parseGuestCommand(name string, args []string) (guestCommand, error) {
	var c guestCommand
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(io.Discard) // usage and error are ours to place
	options := c.Options()
	switch name {
	case "exec":
		flags.StringVar(&c.dir, "dir", "", "")
	case runRole:
		options = append(options, c.InitOption())
	}
	for _, o := range options {
		flags.Var(o.Value, o.Long, "")
		if o.Short != "" {
			flags.Var(o.Value, o.Short, "")
		}
		if o.Long == "tty" {
			// How everyone writes them for Docker; package flag knows no other letters in one word.
			flags.Var(o.Value, "it", "") // -i is ignored
			flags.Var(o.Value, "ti", "")
		}
	}
	err := flags.Parse(args)
	if err == nil {
		c.tty, err = c.TTY()
	}
	c.Args = flags.Args()
	return c, err
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
		w, code = os.Stderr, command.ExitUsage
		fmt.Fprintf(w, "entrypoint %s: %v\n", name, err)
	}
	fmt.Fprintf(w, "usage: entrypoint %s [OPTION]... [COMMAND [ARGUMENT]...]\n%s%s", name, guestOptions[1:], ownOptions[name])
	return code
}
