package figures

import (
	"strings"
	"sync"
)

// How much of what a process says LastWords keeps, a kernel's dump among it, and how much of that it tells, in bytes.
const wordsKept, wordsTold = 16 << 10, 400

// LastWords is a Writer for all outputs of all processes that take part, and keeps the last of what they say.
type LastWords struct {
	mu   sync.Mutex
	text []byte
}

// Write never fails.
func (w *LastWords) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.text = append(w.text, p...)
	w.text = w.text[max(0, len(w.text)-wordsKept):]
	return len(p), nil
}

// String returns the last words on one line; of a kernel that panics those that lead there, not the dump after them.
func (w *LastWords) String() string {
	const panics = "Kernel panic"
	w.mu.Lock()
	defer w.mu.Unlock()
	text := string(w.text)
	if at := strings.Index(text, panics); at >= 0 {
		line, _, _ := strings.Cut(text[at:], "\n")
		text = text[:at] + line
	}
	text = text[max(0, len(text)-wordsTold):]
	return strings.Join(strings.Fields(text), " ")
}
