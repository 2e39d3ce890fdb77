package supervisor

import (
	"bytes"
	"io"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/rs/zerolog"
)

const (
	// maxPiece is how much of a line goes into one object, in bytes. Docker's logs cut what is longer than 16 KiB, and a
	// byte may take six when escaped.
	maxPiece = 2 << 10
	// consoleSilence ends the wait for the rest of a line: a prompt has none. Programs write a line in one go or a few.
	consoleSilence = 200 * time.Millisecond
)

// lineWriter writes the guest's console as JSON objects, one for each line: {"level":"info","stream":"console",
// "line":…,"time":…}. A line that is longer than maxPiece, or was not ended before the guest fell silent, comes in
// pieces; all but its last have "partial":true, as have the last words of a guest that ended in the middle of a line.
// Escape sequences of terminals stay in it, and so do carriage returns, but for those at the end. Bytes that are no
// UTF-8 become U+FFFD.
//
// It is safe for concurrent use, with its own timer.
type lineWriter struct {
	log     zerolog.Logger
	silence time.Duration

	mu sync.Mutex
	// rest is what came since the last line end or piece.
	rest []byte // guarded by mu
	// flush writes rest after a silence.
	flush *time.Timer // guarded by mu
}

func newLineWriter(w io.Writer, silence time.Duration) *lineWriter {
	l := &lineWriter{log: zerolog.New(w).With().Str("stream", "console").Timestamp().Logger(), silence: silence}
	l.flush = time.AfterFunc(silence, l.silent)
	l.flush.Stop()
	return l
}

func (l *lineWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flush.Stop()
	l.rest = append(l.rest, p...)
	for {
		end := bytes.IndexByte(l.rest, '\n')
		switch {
		case end >= 0 && end <= maxPiece:
			l.write(bytes.TrimRight(l.rest[:end], "\r"), false)
			l.rest = l.rest[end+1:]
		case len(l.rest) > maxPiece:
			l.cut(wholeRunes(l.rest[:maxPiece]))
		default:
			// A new array, lest the old one grows for ever.
			l.rest = bytes.Clone(l.rest)
			if len(l.rest) > 0 {
				l.flush.Reset(l.silence)
			}
			return len(p), nil
		}
	}
}

// silent writes what is there of a line, but for a character of which a part is missing.
func (l *lineWriter) silent() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut(wholeRunes(l.rest))
}

// close writes what is left.
func (l *lineWriter) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flush.Stop()
	l.rest = bytes.TrimRight(l.rest, "\r")
	l.cut(len(l.rest))
}

// cut writes the first n bytes of rest as a piece. A carriage return at their end waits for what follows it.
//
// Preconditions: mu is held.
func (l *lineWriter) cut(n int) {
	if n > 1 && l.rest[n-1] == '\r' {
		n--
	}
	if n == 0 {
		return
	}
	l.write(l.rest[:n], true)
	l.rest = l.rest[n:]
}

func (l *lineWriter) write(line []byte, partial bool) {
	event := l.log.Info().Str("line", string(line))
	if partial {
		event.Bool("partial", true)
	}
	event.Send()
}

// wholeRunes is the length of p without a character at its end that is only begun.
func wholeRunes(p []byte) int {
	for i := len(p) - 1; i >= 0 && i >= len(p)-utf8.UTFMax; i-- {
		if utf8.RuneStart(p[i]) {
			if !utf8.FullRune(p[i:]) {
				return i
			}
			break
		}
	}
	return len(p)
}
