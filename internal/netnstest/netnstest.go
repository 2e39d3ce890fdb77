// Package netnstest gives a test a network of its own.
package netnstest

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// env is set in the process that Inside starts.
const env = "TEST_IN_NETNS"

// Inside runs the calling test once more, in a process with a user and a network namespace of its own (user_namespaces(7),
// network_namespaces(7)) and nothing in it but a loopback that is down, and reports true there. Outside it reports false
// when that has ended, and the test has its result. It skips where namespaces are not to be had.
func Inside(t *testing.T) bool {
	t.Helper()
	if os.Getenv(env) != "" {
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), env+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	switch {
	case err != nil && cmd.ProcessState == nil:
		t.Skipf("no network namespace to be had: %v", err)
	case err == nil && strings.Contains(string(out), "--- SKIP: "+t.Name()):
		t.Skipf("in a namespace of its own:\n%s", out)
	case err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()):
		t.Errorf("in a namespace of its own: %v\n%s", err, out)
	default:
		t.Logf("in a namespace of its own:\n%s", out)
	}
	return false
}
