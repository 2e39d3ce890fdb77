package agent

import (
	"bytes"
	"os"
	"sync"
)

// oomScoreFile is a process's own badness for the OOM killer (proc_pid_oom_score_adj(5)), which children inherit.
const oomScoreFile = "/proc/self/oom_score_adj"

// unprotected is held while this process has given up its protection.
var unprotected sync.Mutex

// StartUnprotected calls start, such as the Start of an exec.Cmd, with the protection from the OOM killer that this
// process may have taken off, and puts it on again. Every program that the agent starts is to be started so: a score that
// is reset after the start is one that the program's first children have inherited.
//
// Preconditions: start returns as soon as the program runs.
func StartUnprotected(start func() error) error {
	return startUnprotected(oomScoreFile, start)
}

func startUnprotected(file string, start func() error) error {
	unprotected.Lock()
	defer unprotected.Unlock()
	score, err := os.ReadFile(file)
	if err == nil && bytes.HasPrefix(score, []byte("-")) && os.WriteFile(file, []byte("0"), 0) == nil {
		// Fails only for one without the right to it, who could not have got the score that it had.
		defer func() { _ = os.WriteFile(file, bytes.TrimSpace(score), 0) }()
	}
	return start()
}
