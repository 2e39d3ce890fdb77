package agent

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// TestChildrenKeepNoOOMProtection has the score lowered while a program is started, and only then: one that forks at
// once would hand it on before it could be reset from outside.
func TestChildrenKeepNoOOMProtection(t *testing.T) {
	file := filepath.Join(t.TempDir(), "oom_score_adj")
	check := func(when, want string) {
		t.Helper()
		if got, err := os.ReadFile(file); string(got) != want || err != nil {
			t.Errorf("%s: score %q, %v, want %q", when, got, err, want)
		}
	}
	if err := os.WriteFile(file, []byte("-1000\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	failed := errors.New("failed")
	var starts sync.WaitGroup
	for _, want := range []error{nil, failed, nil, failed} {
		starts.Go(func() {
			err := startUnprotected(file, func() error {
				check("during the start", "0")
				return want
			})
			if err != want {
				t.Errorf("startUnprotected = %v, want %v", err, want)
			}
		})
	}
	starts.Wait()
	check("after the starts", "-1000")

	// Nothing is changed for a process that is not protected.
	if err := os.WriteFile(file, []byte("300\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := startUnprotected(file, func() error { check("unprotected", "300\n"); return nil }); err != nil {
		t.Error(err)
	}
	started := false
	if err := startUnprotected(file+".missing", func() error { started = true; return nil }); err != nil || !started {
		t.Errorf("without the file: started %t, %v", started, err)
	}
}
