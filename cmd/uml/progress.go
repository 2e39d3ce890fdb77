package main

import (
	"io"
	"os"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// progress is told how far long work is, one part of it after the other.
type progress interface {
	// Begin begins a part: what it is in a word or two, and its size in bytes, -1 if that is not known.
	Begin(what string, size int64)
	// Add is called when n more bytes are done.
	Add(n int)
	// End ends the last part.
	End()
}

// newProgress shows progress on a terminal, and nothing elsewhere.
func newProgress(w *os.File) progress {
	if !term.IsTerminal(int(w.Fd())) {
		return noProgress{}
	}
	return &bar{w: w}
}

type bar struct {
	w   io.Writer
	bar *progressbar.ProgressBar
}

func (b *bar) Begin(what string, size int64) {
	b.End()
	b.bar = progressbar.NewOptions64(size, progressbar.OptionSetWriter(b.w), progressbar.OptionSetDescription(what),
		progressbar.OptionShowBytes(true), progressbar.OptionFullWidth(), progressbar.OptionClearOnFinish())
}

func (b *bar) Add(n int) {
	if b.bar != nil {
		_ = b.bar.Add(n) // a bar that cannot be drawn stops no work
	}
}

func (b *bar) End() {
	if b.bar != nil {
		_ = b.bar.Finish()
		b.bar = nil
	}
}

// noProgress shows nothing.
type noProgress struct{}

func (noProgress) Begin(string, int64) {}
func (noProgress) Add(int)             {}
func (noProgress) End()                {}

// barWriter counts what is written.
type barWriter struct{ progress }

func (w barWriter) Write(p []byte) (int, error) {
	w.Add(len(p))
	return len(p), nil
}
