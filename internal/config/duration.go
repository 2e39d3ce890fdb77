package config

import (
	"errors"
	"strings"
	"time"
)

// maxStopTimeout is the longest STOP_TIMEOUT: whoever has more to save should not do so at the stop.
const maxStopTimeout = time.Hour

// parseStopTimeout reads a duration as Go writes it, like 1m30s, or a number of seconds.
func parseStopTimeout(s string) (time.Duration, error) {
	s = strings.TrimSpace(s)
	if strings.Trim(s, "0123456789.") == "" { // a bare number; "1h30" is none, and could mean anything
		s += "s"
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, errors.New("not a duration; write seconds, or numbers with h, m, s or ms, like 30, 1m30s or 500ms")
	}
	if d < 0 || d > maxStopTimeout {
		return 0, errors.New("not between 0 and 1h; write seconds, like 30, or 1m30s")
	}
	return d, nil
}
