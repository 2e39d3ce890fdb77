package config

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

var errSize = errors.New("not a size; write a number with k, M or G, like 256M")

// ParseSize reads a size in bytes: a whole number and a unit, k, M or G in either case, optionally followed by B
// or iB. Units are powers of 1024, as docker's --memory has them; without one the number counts bytes. The result
// is at most 1<<63 - 1, which is what a file's length can be.
func ParseSize(s string) (uint64, error) {
	s = strings.TrimSpace(s)
	digits := s
	if end := strings.IndexFunc(s, func(r rune) bool { return !isDigit(r) }); end >= 0 {
		digits = s[:end]
	}
	var shift uint
	switch strings.ToLower(s[len(digits):]) {
	case "", "b":
	case "k", "kb", "kib":
		shift = 10
	case "m", "mb", "mib":
		shift = 20
	case "g", "gb", "gib":
		shift = 30
	default:
		return 0, errSize
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	if errors.Is(err, strconv.ErrRange) || err == nil && n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("more than a machine can have; write at most %s", FormatSize(math.MaxInt64>>30<<30))
	}
	if err != nil {
		return 0, errSize
	}
	return n << shift, nil
}

// FormatSize is the inverse of ParseSize, with the largest unit that divides n: exact, as MEM is written.
func FormatSize(n uint64) string {
	for _, unit := range []struct {
		size uint64
		name string
	}{{1 << 30, "G"}, {1 << 20, "M"}, {1 << 10, "k"}} {
		if n != 0 && n%unit.size == 0 {
			return strconv.FormatUint(n/unit.size, 10) + unit.name
		}
	}
	return strconv.FormatUint(n, 10)
}
