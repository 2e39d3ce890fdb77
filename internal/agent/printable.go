package agent

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxText bounds text of the guest's that is shown to people, in bytes: a line on most terminals.
const maxText = 200

// Printable returns text of the guest's so that it can be shown on a terminal, which it could else give orders to:
// without what is not printable, in one line, and cut to 200 bytes.
func Printable(text string) string {
	var b strings.Builder
	for _, r := range text {
		switch {
		case r == '\n', r == '\t':
			r = ' '
		case r == utf8.RuneError, !unicode.IsPrint(r):
			continue
		}
		if b.Len()+utf8.RuneLen(r) > maxText {
			return b.String() + "…"
		}
		b.WriteRune(r)
	}
	return b.String()
}
