package agent

import (
	"errors"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestPrintable(t *testing.T) {
	for text, want := range map[string]string{
		"":                           "",
		"systemd":                    "systemd",
		"dégradé 日本":                 "dégradé 日本",
		"a\x1b[2Jb\x1b]0;title\a":    "a[2Jb]0;title",
		"c1 \u009b31m, bidi \u202ex": "c1 31m, bidi x",
		"two\nlines\tand\r\x00":      "two lines and",
		"\xff\xfe bytes":             " bytes",
	} {
		if got := Printable(text); got != want {
			t.Errorf("Printable(%q) = %q, want %q", text, got, want)
		}
	}
}

func FuzzPrintable(f *testing.F) {
	f.Add(strings.Repeat("x", maxText+1))
	f.Add(strings.Repeat("é", maxText))
	f.Add(strings.Repeat("\x80", maxText+1))
	f.Fuzz(func(t *testing.T, text string) {
		got := Printable(text)
		if len(got) > maxText+len("…") || !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("Printable(%q) = %q", text, got)
		}
	})
}

// TestCallErrorIsPrintable has a guest whose refusal would clear the screen.
func TestCallErrorIsPrintable(t *testing.T) {
	a, b := socketPair(t)
	c := newGuest(t, ServerOptions{Handle: func(string, []byte) ([]byte, error) { return nil, errors.New("\x1b[2Jno") }}, a, b)
	if err := c.Call(t.Context(), "x", nil, nil); err == nil || err.Error() != "call x: guest: [2Jno" {
		t.Errorf("Call() = %q", err)
	}
}
