package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"docker-usermode-linux/internal/agent"
	"docker-usermode-linux/internal/attach"
	"docker-usermode-linux/internal/control"
)

// forwardedSignals go to a command in the guest. Those of the terminal are not among them where it has one, since they
// are bytes then.
var forwardedSignals = []os.Signal{
	unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM, unix.SIGCONT,
}

// execCommand runs a command in the guest that runs here.
func execCommand(args []string) int {
	c, err := parseGuestCommand("exec", args)
	if err != nil {
		return guestUsage("exec", err)
	}
	code, err := execInGuest(context.Background(), c)
	if err != nil {
		fmt.Fprintln(os.Stderr, "entrypoint exec:", err)
		return exitNotRun
	}
	return code
}

func execInGuest(ctx context.Context, c guestCommand) (int, error) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, forwardedSignals...)
	guest, err := control.Find(ctx, c.dir)
	if errors.Is(err, control.ErrNoGuest) {
		return 0, fmt.Errorf("%w; ask beside one that runs: docker exec CONTAINER guest", err)
	}
	if err != nil {
		return 0, err
	}
	conn, err := guest.Dial(ctx, control.ExecSocket)
	if err != nil {
		return 0, err
	}
	client, err := agent.Dial(ctx, conn)
	if err != nil {
		return 0, err
	}
	streams := attach.Streams{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	return attach.Run(ctx, client, c.Command, c.tty, streams, signals)
}
