package supervisor

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/term"

	"docker-usermode-linux/internal/config"
)

// newLogger writes events to w, which may be a terminal that the guest's console has put into raw mode.
func newLogger(w *os.File, level zerolog.Level, format config.LogFormat) zerolog.Logger {
	var out io.Writer = w
	tty := term.IsTerminal(int(w.Fd()))
	if tty {
		out = rawTerminalWriter{w}
	}
	if format == config.Console {
		out = zerolog.ConsoleWriter{Out: out, NoColor: !tty, TimeFormat: time.RFC3339}
	}
	zerolog.TimeFieldFormat = time.RFC3339Nano
	zerolog.DurationFieldFormat = zerolog.DurationFormatString // 1.5s, and not a number without a unit
	log := zerolog.New(out).Level(level).With().Timestamp()
	if format == config.JSON { // as lineWriter has it, for who reads both streams as one
		log = log.Str("stream", "supervisor")
	}
	return log.Logger()
}

// rawTerminalWriter returns the carriage as the line discipline would, if it were on.
type rawTerminalWriter struct{ w io.Writer }

func (w rawTerminalWriter) Write(p []byte) (int, error) {
	if _, err := w.w.Write(bytes.ReplaceAll(p, []byte("\n"), []byte("\r\n"))); err != nil {
		return 0, err
	}
	return len(p), nil
}

// keptMessages is how many of the kernel's early messages are kept for the case that it gives up.
const keptMessages = 50

// messageLog takes what the kernel writes to its stderr: checks of the host before it has a console, and why it
// gave up. That is for debugging, unless it did give up.
type messageLog struct {
	log         zerolog.Logger
	host, guest *os.File
	done        chan struct{}

	mu sync.Mutex
	// last holds up to keptMessages lines.
	last []string // guarded by mu
}

func newMessageLog(log zerolog.Logger) (*messageLog, error) {
	host, guest, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("open a pipe for the kernel's messages: %w", err)
	}
	return &messageLog{log: log, host: host, guest: guest, done: make(chan struct{})}, nil
}

func (m *messageLog) start() {
	m.guest.Close()
	go m.read()
}

func (m *messageLog) read() {
	defer close(m.done)
	m.take(m.host, "kernel")
}

// take reads lines until their end, and logs them under a name.
func (m *messageLog) take(r io.Reader, name string) {
	// A ReadLine rather than a Scanner: a line of any length must not end the reading.
	for lines := bufio.NewReader(r); ; {
		line, _, err := lines.ReadLine()
		if err != nil {
			return
		}
		line = bytes.TrimRight(line, "\r")
		if len(line) == 0 {
			continue
		}
		m.log.Debug().Str("line", string(line)).Msg(name)
		m.mu.Lock()
		m.last = append(m.last, string(line))
		m.last = m.last[max(0, len(m.last)-keptMessages):]
		m.mu.Unlock()
	}
}

// replay repeats the kept messages as errors.
func (m *messageLog) replay() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, line := range m.last {
		m.log.Error().Str("line", line).Msg("kernel")
	}
}

func (m *messageLog) drain(timeout time.Duration) {
	select {
	case <-m.done:
	case <-time.After(timeout):
	}
}

func (m *messageLog) close() {
	m.host.Close()
	m.guest.Close()
}
