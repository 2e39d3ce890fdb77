package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// followPoll is how often a log is looked at for more.
const followPoll = 200 * time.Millisecond

func newLogs() *cobra.Command {
	var follow bool
	var lines int
	cmd := &cobra.Command{
		Use:   "logs [OPTION]... NAME",
		Short: "Print what a detached guest said",
		Long: "Print what a guest said that was started with up -d: its console, and what its supervisor had to say. That of a\n" +
			"guest that has ended is kept until there is another one of that name, or too many.",
		Args:              arguments(cobra.ExactArgs(1)),
		ValidArgsFunction: completeNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			registry, err := openRegistry()
			if err != nil {
				return err
			}
			path, err := registry.LogPath(args[0])
			if err != nil {
				return err
			}
			if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("there is no log of a guest named %s: only those that were started with up -d have one", args[0])
			}
			if !follow {
				return printLog(os.Stdout, path, lines)
			}
			ctx, cancel := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM)
			defer cancel()
			return followLog(ctx, os.Stdout, path, lines, func() bool {
				_, err := registry.Guest(args[0])
				return err == nil
			})
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the guest has ended")
	cmd.Flags().IntVarP(&lines, "lines", "n", -1, "only the last `N` lines")
	return cmd
}

// printLog prints the last lines of a log, or without a number (-1) all of it.
func printLog(w io.Writer, path string, lines int) error {
	data, err := readLog(path)
	if err != nil {
		return err
	}
	_, err = w.Write(tail(data, lines))
	return err
}

// readLog is what a log has, with the part that was put aside.
func readLog(path string) ([]byte, error) {
	old, err := os.ReadFile(path + oldSuffix)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	data, err := os.ReadFile(path)
	return slices.Concat(old, data), err
}

// tail is the last lines of data; all of it if lines is negative.
func tail(data []byte, lines int) []byte {
	if lines < 0 {
		return data
	}
	if lines == 0 {
		return nil
	}
	at := len(bytes.TrimSuffix(data, []byte("\n")))
	for ; lines > 0 && at >= 0; lines-- {
		at = bytes.LastIndexByte(data[:at], '\n')
	}
	if lines == 0 && at >= 0 && at < len(data) {
		return bytes.TrimPrefix(data[at:], []byte("\n"))
	}
	return data
}

// lastLines are the last lines of a log.
func lastLines(path string, n int) ([]string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var lines []string
	for line := range bytes.Lines(tail(data, n)) {
		lines = append(lines, string(bytes.TrimRight(line, "\r\n")))
	}
	return lines, nil
}

// followLog prints a log from its last lines on, until ctx ends, or all is printed of a guest that does not run.
func followLog(ctx context.Context, w io.Writer, path string, lines int, running func() bool) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	data, err := io.ReadAll(file)
	if err != nil {
		return err
	}
	if old, err := os.ReadFile(path + oldSuffix); err == nil {
		data = append(old, data...)
	}
	if _, err := w.Write(tail(data, lines)); err != nil {
		return err
	}
	for last := false; ; {
		n, err := io.Copy(w, file)
		if err != nil {
			return err
		}
		next, err := os.Open(path)
		if err == nil && !sameFile(file, next) { // the log was put aside: its end first
			_, err = io.Copy(w, file)
			_ = file.Close()
			file = next
			if err != nil {
				return err
			}
			continue
		}
		if err == nil {
			_ = next.Close()
		}
		if last && n == 0 {
			return nil
		}
		if last = !running(); last {
			continue // for what it said in the end
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(followPoll):
		}
	}
}

func sameFile(a, b *os.File) bool {
	i, err := a.Stat()
	j, err2 := b.Stat()
	return err == nil && err2 == nil && os.SameFile(i, j)
}
