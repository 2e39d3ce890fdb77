package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

func TestTail(t *testing.T) {
	for _, test := range []struct {
		data  string
		lines int
		want  string
	}{
		{"", 3, ""},
		{"a\nb\nc\n", -1, "a\nb\nc\n"},
		{"a\nb\nc\n", 0, ""},
		{"a\nb\nc", 0, ""},
		{"a\nb\nc", 1, "c"},
		{"a\nb\nc\n", 1, "c\n"},
		{"a\nb\nc\n", 2, "b\nc\n"},
		{"a\nb\nc\n", 3, "a\nb\nc\n"},
		{"a\nb\nc\n", 9, "a\nb\nc\n"},
		{"a\nb\nc", 2, "b\nc"},
		{"\n\n\n", 2, "\n\n"},
	} {
		if got := tail([]byte(test.data), test.lines); string(got) != test.want {
			t.Errorf("tail(%q, %d) = %q, want %q", test.data, test.lines, got, test.want)
		}
	}
}

// TestLogFile checks that a log is bounded, and loses nothing of what is within the bounds.
func TestLogFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	for _, old := range []string{path, path + oldSuffix} {
		if err := os.WriteFile(old, []byte("of an earlier guest\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, err := openLog(path, 100, false)
	if err != nil {
		t.Fatal(err)
	}
	if data, err := readLog(path); err != nil || len(data) > 0 {
		t.Errorf("the log begins with %q, %v", data, err)
	}
	in, err := l.stream()
	if err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for n := range 100 {
		line := fmt.Sprintf("line %d\n", n)
		want.WriteString(line)
		if _, err := l.Write([]byte(line)); err != nil { // not the stream, whose pieces differ
			t.Fatal(err)
		}
	}
	if _, err := in.WriteString("the end\n"); err != nil {
		t.Fatal(err)
	}
	want.WriteString("the end\n")
	l.close()
	got, err := readLog(path)
	if err != nil || !strings.HasSuffix(want.String(), string(got)) || len(got) < 100 || len(got) > 200 {
		t.Errorf("the log has %d bytes, %v, want the last 100 to 200:\n%s", len(got), err, got)
	}
}

// TestFollowLog follows a log that is put aside meanwhile, to the end of its guest.
func TestFollowLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := openLog(path, 100, false)
	if err != nil {
		t.Fatal(err)
	}
	in, err := l.stream()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Write([]byte("first\nsecond\n")); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	var want strings.Builder
	want.WriteString("second\n")
	looks := 0
	var once sync.Once
	running := func() bool {
		if looks++; looks < 5 { // a guest that says something whenever somebody looks, and enough to begin a new log
			line := fmt.Sprintf("%d %s\n", looks, strings.Repeat("x", 60))
			want.WriteString(line)
			_, err := l.Write([]byte(line))
			return err == nil
		}
		once.Do(func() {
			want.WriteString("the end\n")
			_, _ = in.WriteString("the end\n")
			l.close()
		})
		return false
	}
	if err := followLog(context.Background(), &out, path, 1, running); err != nil || out.String() != want.String() {
		t.Errorf("followLog() = %v\n%s\nwant\n%s", err, out.String(), want.String())
	}
}

func TestMmdebstrapArgs(t *testing.T) {
	got := mmdebstrapArgs("/tmp/recipe", debianOptions{suite: "forky", mode: "unshare", mirror: "http://debian.example"})
	if !slices.Contains(got, "--mode=unshare") || !slices.Equal(got[len(got)-3:], []string{"forky", "-", "http://debian.example"}) {
		t.Errorf("mmdebstrapArgs() = %q", got)
	}
}
