package supervisor

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// consoleLine is what a reader of the logs expects.
type consoleLine struct {
	Time                *time.Time
	Level, Stream, Line string
	Partial             bool
}

// decodeLines checks that text is one object a line.
func decodeLines(t testing.TB, text string) []consoleLine {
	t.Helper()
	var all []consoleLine
	for line := range strings.Lines(text) {
		in := json.NewDecoder(strings.NewReader(line))
		in.DisallowUnknownFields()
		var c consoleLine
		if err := in.Decode(&c); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if _, err := in.Token(); !errors.Is(err, io.EOF) || !strings.HasSuffix(line, "\n") {
			t.Fatalf("%q is not one object and a line end", line)
		}
		if c.Time == nil || c.Level != "info" || c.Stream != "console" {
			t.Fatalf("%q lacks a time, level info or stream console", line)
		}
		all = append(all, c)
	}
	return all
}

// TestLineWriter writes each text in one go, then byte by byte. "\x00" in it stands for a silence.
func TestLineWriter(t *testing.T) {
	const part = "…" // marks a partial piece in want
	long := strings.Repeat("x", maxPiece)
	for _, test := range []struct {
		name, text string
		want       []string
	}{
		{"nothing", "", nil},
		{"lines", "one\r\n\r\ntwo\n", []string{"one", "", "two"}},
		{"several carriage returns", "one\r\r\n", []string{"one"}},
		{"progress", "10%\r20%\r\n", []string{"10%\r20%"}},
		{"no end", "one\r\ntwo", []string{"one", "two" + part}},
		{"no end but a carriage return", "one\r", []string{"one" + part}},
		{"prompt", "login: \x00root\r\n", []string{"login: " + part, "root"}},
		{"two silences", "login: \x00\x00root\r\n", []string{"login: " + part, "root"}},
		{"silence within a line end", "one\r\x00\ntwo", []string{"one" + part, "", "two" + part}},
		{"silence within a character", "a\xc3\x00\xa4\n", []string{"a" + part, "ä"}},
		{"escapes", "\x1b[0;32m  OK  \x1b[0m\a \"\\\u2028\r\n", []string{"\x1b[0;32m  OK  \x1b[0m\a \"\\\u2028"}},
		{"no UTF-8", "a\xffb\xc3\n", []string{"a\ufffdb\ufffd"}},
		{"full", long + "\n", []string{long}},
		{"long", long + long + "y\r\n", []string{long + part, long + part, "y"}},
		{"long with a character across the cut", long[1:] + "äy\n", []string{long[1:] + part, "äy"}},
		{"long and no UTF-8", long[1:] + "\x80\x80\n", []string{long[1:] + "\ufffd" + part, "\ufffd"}},
	} {
		for _, size := range []int{len(test.text) + 1, 1} {
			var out bytes.Buffer
			w := newLineWriter(&out, time.Hour)
			for i, chunk := range strings.Split(test.text, "\x00") {
				if i > 0 {
					w.silent()
				}
				for len(chunk) > 0 {
					n := min(size, len(chunk))
					if got, err := w.Write([]byte(chunk[:n])); got != n || err != nil {
						t.Fatalf("%s: Write() = %d, %v, want %d", test.name, got, err, n)
					}
					chunk = chunk[n:]
				}
			}
			w.close()
			var got []string
			for _, c := range decodeLines(t, out.String()) {
				if c.Partial {
					c.Line += part
				}
				got = append(got, c.Line)
			}
			if strings.Join(got, "|") != strings.Join(test.want, "|") || len(got) != len(test.want) {
				t.Errorf("%s, %d bytes at a time: %q, want %q", test.name, size, got, test.want)
			}
		}
	}
}

// TestLineWriterPrompt has the timer write what has no line end.
func TestLineWriterPrompt(t *testing.T) {
	in, out := io.Pipe()
	defer in.Close()
	w := newLineWriter(out, time.Millisecond)
	go func() { _, _ = w.Write([]byte("login: ")) }()
	line, err := bufio.NewReader(in).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if got := decodeLines(t, line); !got[0].Partial || got[0].Line != "login: " {
		t.Errorf("after a silence: %+v, want the prompt", got)
	}
}

// FuzzLineWriter has every output come back whole, in objects that Docker does not cut.
func FuzzLineWriter(f *testing.F) {
	f.Add("one\r\ntwo\x00 three", uint64(1))
	f.Add(strings.Repeat("\x01ä", maxPiece)+"\n\xff", uint64(2))
	f.Fuzz(func(t *testing.T, text string, seed uint64) {
		random := rand.New(rand.NewPCG(seed, 0))
		var out bytes.Buffer
		w := newLineWriter(&out, time.Hour)
		for rest := text; len(rest) > 0; {
			n := 1 + random.IntN(len(rest))
			if _, err := w.Write([]byte(rest[:n])); err != nil {
				t.Fatal(err)
			}
			if rest = rest[n:]; random.IntN(3) == 0 {
				w.silent()
			}
		}
		w.close()
		const dockersLimit = 16 << 10
		var got strings.Builder
		for line := range strings.Lines(out.String()) {
			if len(line) > dockersLimit {
				t.Errorf("an object of %d bytes", len(line))
			}
			for _, c := range decodeLines(t, line) {
				got.WriteString(c.Line)
				if !c.Partial {
					got.WriteByte('\n')
				}
			}
		}
		// How many carriage returns and bad bytes there were is not kept.
		plain := func(s string) string {
			return strings.ReplaceAll(strings.ReplaceAll(strings.ToValidUTF8(s, ""), "\ufffd", ""), "\r", "")
		}
		if plain(got.String()) != plain(text) {
			t.Errorf("%q became %q", text, got.String())
		}
	})
}
