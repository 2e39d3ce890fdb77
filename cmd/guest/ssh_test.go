//go:build linux

package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestWaitForSSHServer installs one as a package manager does, which renames it into place.
func TestWaitForSSHServer(t *testing.T) {
	before := sshServers
	t.Cleanup(func() { sshServers = before })
	dir := t.TempDir()
	server := filepath.Join(dir, "sshd")
	sshServers = []string{server, "/does/not/exist/sshd"}
	found := make(chan error, 1)
	go func() { found <- waitForSSHServer() }()
	writeFile(t, filepath.Join(dir, "sshd.new"), "")
	select {
	case err := <-found:
		t.Fatalf("waitForSSHServer() = %v before there is one", err)
	default:
	}
	if err := os.Rename(filepath.Join(dir, "sshd.new"), server); err != nil {
		t.Fatal(err)
	}
	if err := <-found; err != nil {
		t.Errorf("waitForSSHServer() = %v", err)
	}
}

// TestSSHInheritsNoPort has the process that serves SSH get nothing of the agent's but the console.
func TestSSHInheritsNoPort(t *testing.T) {
	for keysOnly, want := range map[bool][]string{false: {sshName, sshRole}, true: {sshName, sshRole, keysOnlyArg}} {
		cmd := sshCommand(keysOnly)
		input, ok := cmd.Stdin.(*strings.Reader) // neither a file nor, without /dev/null to be opened, nothing
		if len(cmd.ExtraFiles) > 0 || !ok || input.Len() > 0 || !slices.Equal(cmd.Env, []string{defaultPath}) {
			t.Errorf("sshCommand(%t) inherits %v, %v, %q", keysOnly, cmd.ExtraFiles, cmd.Stdin, cmd.Env)
		}
		if !slices.Equal(cmd.Args, want) {
			t.Errorf("sshCommand(%t) = %q, want %q", keysOnly, cmd.Args, want)
		}
	}
}
