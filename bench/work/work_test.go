//go:build linux

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestCSource: the program that is compiled is one, and says what it is expected to say.
func TestCSource(t *testing.T) {
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	source, program := filepath.Join(dir, "a.c"), filepath.Join(dir, "a")
	if err := os.WriteFile(source, []byte(cSource()), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := output("gcc", "-O0", "-Werror", "-o", program, source); err != nil {
		t.Fatal(err)
	}
	if out, err := output(program); err != nil || strings.TrimSpace(out) != cAnswer {
		t.Errorf("it says %q, %v; want %q", out, err, cAnswer)
	}
}

// TestMicro: the C program knows each of the workloads that are its own.
func TestMicro(t *testing.T) {
	source, err := os.ReadFile("micro/micro.c")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"system-call", "pipe-round-trip", "page-fault", "fork-exec", "two-jobs", "two-threads"} {
		if !strings.Contains(string(source), `"`+name+`"`) {
			t.Errorf("micro.c does not know %s", name)
		}
	}
}

func TestMeasure(t *testing.T) {
	if err := measure([]string{"nothing"}, func() error { return nil }); err == nil {
		t.Error("measure of a workload that there is not: no error")
	}
}

func TestOutput(t *testing.T) {
	_, err := output("sh", "-c", "echo so; echo because >&2; exit 3")
	if err == nil || !strings.Contains(err.Error(), "exit status 3: so\nbecause") {
		t.Errorf("error %v", err)
	}
}
