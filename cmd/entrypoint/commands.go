package main

import (
	"fmt"
	"io"
	"os"
	"slices"

	"docker-usermode-linux/internal/command"
)

// namedCommand is what the entrypoint does when its name is the first argument. run gets the arguments after it and returns
// the exit code. None of the names means anything to the kernel.
type namedCommand struct {
	name, about string
	// run is nil for a command that boots a guest: as process 1 it happens in the child (main.go).
	run func(args []string) int
}

// commands lists them in the order of the help.
func commands() []namedCommand {
	return []namedCommand{
		{runRole, "boot, run a command in the guest, end with its exit code", nil},
		{"exec", "run a command in the guest that runs here; also by the name guest", execCommand},
		{"status", "show how the guest that runs here is", statusCommand},
		{"healthcheck", "the same as an exit code, for Docker", healthcheckCommand},
		{"net", "show the network of the guest that runs here", netCommand},
		{"version", "print the version of this program", versionCommand},
		{"help", "print this", helpCommand},
	}
}

// findCommand returns the command that args name, if any.
func findCommand(args []string) (namedCommand, bool) {
	if len(args) == 0 {
		return namedCommand{}, false
	}
	all := commands()
	i := slices.IndexFunc(all, func(c namedCommand) bool { return c.name == args[0] })
	if i < 0 {
		return namedCommand{}, false
	}
	return all[i], true
}

func versionCommand(args []string) int {
	if len(args) > 0 {
		return badArgument("version", args[0])
	}
	fmt.Println(command.Version())
	return 0
}

func helpCommand(args []string) int {
	if len(args) > 0 {
		return badArgument("help", args[0])
	}
	writeHelp(os.Stdout)
	return 0
}

func writeHelp(w io.Writer) {
	fmt.Fprint(w, "usage: entrypoint [KERNEL ARGUMENT]...\n",
		"       entrypoint COMMAND [ARGUMENT]...\n\n",
		"Without a command it boots a guest, with raw kernel arguments; settings are environment variables.\n",
		"--help, --version and --showconfig print what the kernel says of itself.\n\nCommands:\n")
	for _, c := range commands() {
		fmt.Fprintf(w, "  %-11s %s\n", c.name, c.about)
	}
}

func badArgument(name, arg string) int {
	fmt.Fprintf(os.Stderr, "entrypoint %s: unexpected argument %q\nusage: entrypoint %s\n", name, arg, name)
	return command.ExitUsage
}
