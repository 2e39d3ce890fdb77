package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"docker-usermode-linux/internal/control"
)

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
		return exitUsage, false
	}
	if err := ask(context.Background(), *dir, path, answer); err != nil {
		fmt.Fprintf(os.Stderr, "entrypoint %s: %v\n", name, err)
		return exitFailed, false
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
	var err error
	if asJSON {
		out := json.NewEncoder(os.Stdout)
		out.SetIndent("", "  ")
		err = out.Encode(answer)
	} else {
		err = write(os.Stdout)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "entrypoint %s: %v\n", name, err)
		return exitFailed
	}
	return 0
}
