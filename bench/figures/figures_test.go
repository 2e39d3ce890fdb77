package figures

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestParseMachine(t *testing.T) {
	got, err := parseMachine("cpu  10 1 5 70 4 1 1 8 3 0\ncpu0 …\n")
	if want := (machine{all: 100, idle: 74}); err != nil || got != want {
		t.Errorf("parseMachine = %+v, %v, want %+v", got, err, want)
	}
	if _, err := parseMachine("intr 1"); err == nil {
		t.Error("parseMachine of something else: no error")
	}
}

func TestFormat(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0.00", 0.0456: "0.05", 9.87: "9.87", 12.34: "12.3", 456.7: "457", 1234: "1,230", 18386: "18,400", 1234567: "1,230,000",
	} {
		if got := format(v); got != want {
			t.Errorf("format(%g) = %q, want %q", v, got, want)
		}
	}
}

func TestReplaceTable(t *testing.T) {
	const begin, end = "<!-- a: begin -->\n", "<!-- a: end -->\n"
	got, err := replaceTable("x\n"+begin+"old\n"+end+"y\n", "a", "new\n")
	if want := "x\n" + begin + "new\n" + end + "y\n"; err != nil || got != want {
		t.Errorf("replaceTable = %q, %v, want %q", got, err, want)
	}
	if _, err := replaceTable("x", "a", "y"); err == nil {
		t.Error("replaceTable without the lines: no error")
	}
}

// TestRead: what Line and MissingLine write is read again, whatever else stands between.
func TestRead(t *testing.T) {
	const benchmark = "BenchmarkX"
	raw := strings.Join([]string{
		"# 2026-11-23, 3 rounds",
		"# guest kernel: 7.2",
		Line(benchmark, "on=a/test=t", Metric{3, "us"}, Metric{0.5, "s"}),
		Line(benchmark, "on=a/test=t", Metric{1, "us"}),
		Line(benchmark, "on=a/test=t", Metric{2, "us"}),
		Line("BenchmarkY", "on=a/test=t", Metric{1000, "us"}),
		Line(benchmark, "on=b/test=t", Metric{1234, "us"}),
		MissingLine("on=b/test=t", "fails", errors.New("one: two\nthree")),
		MissingLine("on=c/test=t", "stalls", errors.New("for ever")),
		"PASS",
	}, "\n")
	f, err := Read(strings.NewReader(raw), benchmark)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, unit, want string }{
		{"on=a/test=t", "us", "2.00 (1.00–3.00)"},
		{"on=a/test=t", "s", "0.50"},
		{"on=a/test=t", "x", None},
		{"on=b/test=t", "us", "1,230, fails 1 of 2 times"},
		{"on=c/test=t", "us", "stalls"},
		{"on=d/test=t", "us", None},
	} {
		if got := f.Text(tt.name, tt.unit); got != tt.want {
			t.Errorf("Text(%q, %q) = %q, want %q", tt.name, tt.unit, got, tt.want)
		}
	}
	want := []Missing{{"on=b/test=t", "fails", "one: two | three"}, {"on=c/test=t", "stalls", "for ever"}}
	if !slices.Equal(f.Missing, want) {
		t.Errorf("Missing = %q, want %q", f.Missing, want)
	}
	for _, bad := range []string{"# peer=a test=b: c", "BenchmarkX/on=a 1 x us"} {
		if _, err := Read(strings.NewReader(bad), benchmark); err == nil {
			t.Errorf("Read(%q): no error", bad)
		}
	}
}

func TestTable(t *testing.T) {
	got := Table([]string{"a", "b"}, [][]string{{"row", "1", "2"}})
	if want := "| | a | b |\n|---|---|---|\n| row | 1 | 2 |\n"; got != want {
		t.Errorf("Table = %q, want %q", got, want)
	}
}
