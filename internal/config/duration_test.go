package config

import (
	"testing"
	"time"
)

func TestParseStopTimeout(t *testing.T) {
	for s, want := range map[string]time.Duration{
		"0":         0,
		"30":        30 * time.Second,
		"6.5":       6500 * time.Millisecond,
		" 7 ":       7 * time.Second,
		"1m30s":     90 * time.Second,
		"500ms":     500 * time.Millisecond,
		"1h":        time.Hour,
		"3600":      time.Hour,
		"1h1ms":     -1,
		"3601":      -1,
		"-1":        -1,
		"-5s":       -1,
		"1h30":      -1, // minutes or seconds?
		".":         -1,
		"1e3":       -1,
		"inf":       -1,
		"":          -1,
		"99999999h": -1,
	} {
		got, err := parseStopTimeout(s)
		if want < 0 && err == nil || want >= 0 && (err != nil || got != want) {
			t.Errorf("parseStopTimeout(%q) = %v, %v, want %v (-1ns: an error)", s, got, err, want)
		}
	}
}
