// Package figures is what those benchmarks share that compare peers: raw figures in the format of Go's benchmarks, what
// stands in a table made of them, what is to be said of the machine, and the last words of a peer that fails.
//
// A raw line has a name, made of keys and values, and figures with their units, so that benchstat reads it:
//
//	BenchmarkNet/peer=passt/mtu=1500/test=rr 1 101.3 median-us 181.2 p99-us
//
// A comment that begins with the same keys and values stands for a figure that is missing:
//
//	# peer=passt mtu=1500 test=rr stalls: why
package figures

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
)

// None stands in a table where there is neither a figure nor a verdict.
const None = "–"

// Metric is a figure with its unit.
type Metric struct {
	Value float64
	Unit  string
}

// Line is a line of raw output. Benchmark is its first part (BenchmarkNet), name the rest (peer=passt/test=rr).
func Line(benchmark, name string, metrics ...Metric) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s/%s 1", benchmark, name)
	for _, m := range metrics {
		fmt.Fprintf(&b, " %.5g %s", m.Value, m.Unit)
	}
	return b.String()
}

// MissingLine takes note of why there is no figure: verdict is the one word for the table.
func MissingLine(name, verdict string, why error) string {
	return fmt.Sprintf("# %s %s: %s", strings.ReplaceAll(name, "/", " "), verdict,
		strings.ReplaceAll(strings.TrimSpace(why.Error()), "\n", " | "))
}

// Missing is a figure that there is not.
type Missing struct{ Name, Verdict, Why string }

// Figures are the raw output of a run.
type Figures struct {
	values   map[cell][]float64
	verdicts map[string][]string
	// Missing are in the order of the output.
	Missing []Missing
}

type cell struct{ name, unit string }

// Read reads the lines of one benchmark. Others are ignored, as are comments that stand for nothing.
func Read(r io.Reader, benchmark string) (Figures, error) {
	f := Figures{values: map[cell][]float64{}, verdicts: map[string][]string{}}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if err := f.add(lines.Text(), benchmark); err != nil {
			return f, fmt.Errorf("%q: %w", lines.Text(), err)
		}
	}
	return f, lines.Err()
}

func (f *Figures) add(line, benchmark string) error {
	if comment, ok := strings.CutPrefix(line, "# "); ok {
		where, why, _ := strings.Cut(comment, ": ")
		words := strings.Fields(where)
		if len(words) < 2 || !strings.Contains(words[0], "=") {
			return nil
		}
		last := len(words) - 1
		m := Missing{strings.Join(words[:last], "/"), words[last], why}
		if strings.Contains(m.Verdict, "=") {
			return fmt.Errorf("no verdict before the colon")
		}
		f.verdicts[m.Name] = append(f.verdicts[m.Name], m.Verdict)
		f.Missing = append(f.Missing, m)
		return nil
	}
	fields := strings.Fields(line)
	if len(fields) < 2 {
		return nil
	}
	name, ok := strings.CutPrefix(fields[0], benchmark+"/")
	if !ok {
		return nil
	}
	for pairs := fields[2:]; len(pairs) >= 2; pairs = pairs[2:] {
		value, err := strconv.ParseFloat(pairs[0], 64)
		if err != nil {
			return err
		}
		c := cell{name, pairs[1]}
		f.values[c] = append(f.values[c], value)
	}
	return nil
}

// Text is what stands in the table: the median, and the lowest and highest.
func (f Figures) Text(name, unit string) string {
	values := slices.Sorted(slices.Values(f.values[cell{name, unit}]))
	verdicts := f.verdicts[name]
	switch {
	case len(values) == 0 && len(verdicts) == 0:
		return None
	case len(values) == 0:
		return verdicts[0]
	}
	text := format(median(values))
	if low, high := format(values[0]), format(values[len(values)-1]); low != high {
		text += fmt.Sprintf(" (%s–%s)", low, high)
	}
	if len(verdicts) > 0 {
		text += fmt.Sprintf(", %s %d of %d times", verdicts[0], len(verdicts), len(verdicts)+len(values))
	}
	return text
}

// median of what is sorted and not empty.
func median(sorted []float64) float64 {
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// format writes two or three significant digits of small numbers and three of large ones, in full.
func format(v float64) string {
	switch {
	case v >= 1000:
		unit := math.Pow10(int(math.Log10(v)) - 2)
		return grouped(int64(math.Round(v/unit) * unit))
	case v >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}

// grouped writes a comma between thousands.
func grouped(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
