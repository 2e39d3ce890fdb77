package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"docker-usermode-linux/internal/command"
)

// program is our name in messages.
const program = "uml"

func main() { os.Exit(run(os.Args[1:])) }

// run is the whole program, but for its exit.
func run(args []string) int {
	root := newRoot()
	root.SetArgs(args)
	return command.Report(program, tell(root.Execute()))
}

// exitError is an end with an exit code of its own. Without an error there is nothing left to say.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// exit is the error of a command that ends with that code and has said why.
func exit(code int) error {
	if code == 0 {
		return nil
	}
	return &exitError{code: code}
}

// usageError is a mistake in the arguments.
func usageError(err error) error {
	if err == nil {
		return nil
	}
	return &exitError{command.ExitUsage, err}
}

// tell prints what went wrong, a line for each mistake, and returns the exit code.
func tell(err error) int {
	if err == nil {
		return 0
	}
	code := command.ExitFailed
	if e, ok := errors.AsType[*exitError](err); ok {
		if code = e.code; e.err == nil {
			return code
		}
	}
	for line := range strings.SplitSeq(err.Error(), "\n") {
		fmt.Fprintf(os.Stderr, "%s: %s\n", program, line)
	}
	if e, ok := errors.AsType[*argumentError](err); ok {
		fmt.Fprintf(os.Stderr, "usage: %s\n", e.usage)
	}
	return code
}

// argumentError is a mistake that the command's usage explains.
type argumentError struct {
	err   error
	usage string
}

func (e *argumentError) Error() string { return e.err.Error() }

// arguments makes a check of arguments one whose errors are usageErrors.
func arguments(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return flagError(cmd, err)
		}
		return nil
	}
}

func flagError(cmd *cobra.Command, err error) error {
	return usageError(&argumentError{err, cmd.UseLine()})
}

const (
	groupGuests = "guests"
	groupAsk    = "ask"
)

// newRoot is the command line.
func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   program,
		Short: "Whole Linux kernels as plain processes",
		Long: "uml boots whole Linux kernels (User-Mode Linux) as plain processes of a normal user: no root, no KVM, no\n" +
			"packages. The kernel, the network and everything else that a guest needs are in this one program.",
		Example: "  uml rootfs create debian ./debian\n  uml up --rootfs ./debian -d\n  uml exec debian uname -a\n" +
			"  uml stop debian",
		SilenceUsage:      true,
		SilenceErrors:     true,
		DisableAutoGenTag: true,
		Args:              arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return cmd.Help()
		},
	}
	root.SetFlagErrorFunc(flagError)
	root.AddGroup(&cobra.Group{ID: groupGuests, Title: "Guests:"}, &cobra.Group{ID: groupAsk, Title: "Guests that run:"})
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add(groupGuests, newUp(), newRun(), newRootfs())
	add(groupAsk, newPS(), newExec(), newStop(), newKill(), newLogs(), newStatus(), newNet())
	add("", newVersion(), newMan())
	return root
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program",
		Args:  arguments(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			fmt.Println(command.Version())
			return nil
		},
	}
}
