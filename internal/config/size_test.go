package config

import (
	"math"
	"testing"
)

func TestParseSize(t *testing.T) {
	for s, want := range map[string]uint64{
		"0": 0, "1": 1, "4096b": 4096, "1k": 1 << 10, "1K": 1 << 10, "2kB": 2 << 10, "3KiB": 3 << 10,
		"256M": 256 << 20, "256m": 256 << 20, "256MB": 256 << 20, "256MiB": 256 << 20, " 256M\n": 256 << 20,
		"1G": 1 << 30, "1gib": 1 << 30, "0064M": 64 << 20,
		"9223372036854775807": math.MaxInt64, "8589934591G": 8589934591 << 30,
	} {
		if got, err := ParseSize(s); err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v, want %d", s, got, err, want)
		}
	}
}

func TestParseSizeErrors(t *testing.T) {
	const (
		bad = "not a size; write a number with k, M or G, like 256M"
		big = "more than a machine can have; write at most 8589934591G"
	)
	for s, want := range map[string]string{
		"": bad, " ": bad, "M": bad, "abc": bad, "-1": bad, "+1": bad, "1.5G": bad, "1T": bad, "256 M": bad, "1iB": bad,
		"1Mx": bad, "0x10": bad, "1_000": bad, "٣M": bad,
		"9223372036854775808": big, "99999999999999999999": big, "8589934592G": big,
	} {
		if got, err := ParseSize(s); err == nil || err.Error() != want {
			t.Errorf("ParseSize(%q) = %d, %v, want error %q", s, got, err, want)
		}
	}
}

func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"", "0", "256M", "1GiB", "9223372036854775807", "99999999999999999999k", "-1", "1 "} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		size, err := ParseSize(s)
		if err != nil {
			return
		}
		if size > math.MaxInt64 {
			t.Errorf("ParseSize(%q) = %d, want at most %d", s, size, int64(math.MaxInt64))
		}
		if again, err := ParseSize(FormatSize(size)); err != nil || again != size {
			t.Errorf("ParseSize(%q) = %d, %v, want %d", FormatSize(size), again, err, size)
		}
	})
}

func TestFormatSize(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0", 1: "1", 1023: "1023", 1 << 10: "1k", 256 << 20: "256M", 1 << 30: "1G", 3 << 29: "1536M", 1<<30 + 1: "1073741825",
	} {
		if got := FormatSize(n); got != want {
			t.Errorf("FormatSize(%d) = %s, want %s", n, got, want)
		}
	}
}
