package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"docker-usermode-linux/internal/command"
	"docker-usermode-linux/internal/control"
	"docker-usermode-linux/internal/slirp"
	"docker-usermode-linux/internal/supervisor"
)

const (
	// startGrace is how long exec looks for a guest: docker run returns when the container runs, a moment before its
	// supervisor does.
	startGrace = 2 * time.Second
	startPoll  = 10 * time.Millisecond
)

// execCommand runs a command in the guest that runs here.
func execCommand(args []string) int {
	c, err := parseGuestCommand("exec", args)
	if err != nil {
		return guestUsage("exec", err)
	}
	code, err := c.Exec(context.Background(), func(ctx context.Context) (*control.Client, error) {
		guest, err := control.Find(ctx, c.dir)
		for deadline := time.Now().Add(startGrace); errors.Is(err, control.ErrNoGuest) && time.Now().Before(deadline); {
			time.Sleep(startPoll)
			guest, err = control.Find(ctx, c.dir)
		}
		if errors.Is(err, control.ErrNoGuest) {
			err = fmt.Errorf("%w; ask beside one that runs: docker exec CONTAINER guest", err)
		}
		return guest, err
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "entrypoint exec:", err)
		return command.ExitNotRun
	}
	return code
}

// statusCommand shows how the guest that runs here is.
func statusCommand(args []string) int {
	var s supervisor.Status
	asJSON := false
	code, ok := askGuest("status", args, func(flags *flag.FlagSet) {
		flags.BoolVar(&asJSON, "json", false, "print everything as JSON")
	}, "/status", &s)
	if !ok {
		return code
	}
	return show("status", asJSON, s, func(w io.Writer) error { return command.WriteStatus(w, s) })
}

// healthcheckCommand is what Docker's HEALTHCHECK runs: its exit code says whether the guest is healthy, what it prints
// why not.
func healthcheckCommand(args []string) int {
	var s supervisor.Status
	code, ok := askGuest("healthcheck", args, func(*flag.FlagSet) {}, "/status", &s)
	if !ok {
		return code
	}
	if !s.Healthy {
		fmt.Printf("%s: %s\n", s.State, strings.Join(s.Problems, "; "))
		return command.ExitFailed
	}
	fmt.Println(s.State)
	return 0
}

// netCommand shows the network of the guest that runs here.
func netCommand(args []string) int {
	var i slirp.Inspection
	var asJSON, all bool
	code, ok := askGuest("net", args, func(flags *flag.FlagSet) {
		flags.BoolVar(&asJSON, "json", false, "print everything as JSON")
		flags.BoolVar(&all, "all", false, "print all flows, not only the ones that moved last")
	}, "/net", &i)
	if !ok {
		return code
	}
	return show("net", asJSON, i, func(w io.Writer) error { return command.WriteNet(w, i, all) })
}

// askGuest is a command that asks the guest that runs here for path, such as "/net", with options of its own beside --dir.
// Without an answer it has said why, and returns the exit code.
func askGuest(name string, args []string, options func(*flag.FlagSet), path string, answer any) (code int, ok bool) {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(io.Discard) // usage and error are ours to place
	dir := flags.String("dir", "", "look for the guest in `DIR` only")
	options(flags)
	err := flags.Parse(args)
	if err == nil && flags.NArg() > 0 {
		err = fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	switch {
	case errors.Is(err, flag.ErrHelp):
		askUsage(os.Stdout, name, flags)
		return 0, false
	case err != nil:
		fmt.Fprintf(os.Stderr, "entrypoint %s: %v\n", name, err)
		askUsage(os.Stderr, name, flags)
		return command.ExitUsage, false
	}
	if err := ask(context.Background(), *dir, path, answer); err != nil {
		fmt.Fprintf(os.Stderr, "entrypoint %s: %v\n", name, err)
		return command.ExitFailed, false
	}
	return 0, true
}

func askUsage(w io.Writer, name string, flags *flag.FlagSet) {
	fmt.Fprintf(w, "usage: entrypoint %s [OPTION]...\n", name)
	flags.SetOutput(w)
	flags.PrintDefaults()
}

// ask asks the only guest that runs here, or the one in dir.
func ask(ctx context.Context, dir, path string, answer any) error {
	client, err := control.Find(ctx, dir)
	if errors.Is(err, control.ErrNoGuest) {
		return fmt.Errorf("%w; ask beside one that runs: docker exec CONTAINER entrypoint %s", err, path[1:])
	}
	if err != nil {
		return err
	}
	return client.Get(ctx, path, answer)
}

// show prints an answer, for programs or for people, and returns the exit code.
func show(name string, asJSON bool, answer any, write func(io.Writer) error) int {
	if err := command.Show(asJSON, answer, write); err != nil {
		fmt.Fprintf(os.Stderr, "entrypoint %s: %v\n", name, err)
		return command.ExitFailed
	}
	return 0
}
