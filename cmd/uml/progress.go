package main

import (
	"io"
	"os"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"docker-usermode-linux/internal/image"
)

// newProgress shows on a terminal how far long work is, and nothing elsewhere. end takes it off the screen.
func newProgress(w *os.File) (report image.Progress, end func()) {
	if !term.IsTerminal(int(w.Fd())) {
		return nil, func() {}
	}
	b := &bar{w: w}
	return b.report, b.end
}

// bar shows one piece of work after the other.
type bar struct {
	w    io.Writer
	what string
	bar  *progressbar.ProgressBar // nil: nothing is shown
}

// report implements image.Progress.
func (b *bar) report(done, total int64, what string) {
	if b.bar == nil || b.what != what {
		b.end()
		b.what = what
		b.bar = progressbar.NewOptions64(total, progressbar.OptionSetWriter(b.w), progressbar.OptionSetDescription(what),
			progressbar.OptionShowBytes(true), progressbar.OptionFullWidth(), progressbar.OptionClearOnFinish())
	}
	_ = b.bar.Set64(done) // a bar that cannot be drawn stops no work
}

func (b *bar) end() {
	if b.bar != nil {
		_ = b.bar.Finish()
		b.bar = nil
	}
}

// counter reports what is read through it.
type counter struct {
	r      io.Reader
	report image.Progress // nil: to nobody
	total  int64
	done   int64
	what   string
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.done += int64(n)
	if c.report != nil {
		c.report(min(c.done, c.total), c.total, c.what)
	}
	return n, err
}
