package main

import (
	"slices"
	"testing"

	"docker-usermode-linux/internal/attach"
)

// TestTerminalOptionAnywhere has -it between other options, as docker exec takes it, and not as the first one alone.
func TestTerminalOptionAnywhere(t *testing.T) {
	for _, args := range [][]string{
		{"-it", "-u", "www-data", "bash", "-it"},
		{"-u", "www-data", "-it", "bash", "-it"},
		{"-u", "www-data", "-ti", "bash", "-it"},
		{"-i", "-u", "www-data", "-t", "bash", "-it"},
	} {
		c, err := parseGuestCommand("exec", args)
		if err != nil || c.tty != attach.Force || c.User != "www-data" || !slices.Equal(c.Args, []string{"bash", "-it"}) {
			t.Errorf("parseGuestCommand(%q) = %+v, %v, want bash -it as www-data in a terminal", args, c, err)
		}
	}
	if c, err := parseGuestCommand("exec", []string{"-it", "-T", "bash"}); err == nil {
		t.Errorf("parseGuestCommand(-it -T) = %+v, want an error", c)
	}
}
