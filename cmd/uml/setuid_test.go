package main

import (
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// dirInfo is a directory's mode, and whose it is.
type dirInfo struct {
	mode fs.FileMode
	uid  uint32
}

func (d dirInfo) Name() string       { return "" }
func (d dirInfo) Size() int64        { return 0 }
func (d dirInfo) Mode() fs.FileMode  { return fs.ModeDir | d.mode }
func (d dirInfo) ModTime() time.Time { return time.Time{} }
func (d dirInfo) IsDir() bool        { return true }
func (d dirInfo) Sys() any           { return &syscall.Stat_t{Uid: d.uid} }

func TestSetuidRisk(t *testing.T) {
	me := uint32(os.Geteuid())
	host := map[string]dirInfo{
		"/": {0o755, 0}, "/home": {0o755, me + 1}, "/home/open": {0o755, me}, "/home/open/work": {0o751, me},
		"/home/open/closed": {0o750, me}, "/home/open/closed/root": {0o755, me}, "/home/open/root": {0o755, me},
		"/home/open/work/root": {0o755, me}, "/home/open/work/mine": {0o700, me},
		"/tmp": {fs.ModeSticky | 0o777, me}, "/tmp/root": {0o755, me}, "/home/root": {0o755, me},
	}
	for path, want := range map[string]string{
		"/home/open/root":        "as you: chmod 700 /home/open",
		"/home/open/work/root":   "as you: chmod 700 /home/open/work",
		"/home/open/closed/root": "",
		"/home/open/work/mine":   "",
		"/tmp/root":              "as you: move it into a directory of mode 700",
		"/home/root":             "as you: move it into a directory of mode 700",
		"/none":                  "",
	} {
		got := setuidRiskOf(path, func(name string) (fs.FileInfo, error) {
			if info, ok := host[name]; ok {
				return info, nil
			}
			return nil, fs.ErrNotExist
		})
		if !strings.HasSuffix(got, want) || (got == "") != (want == "") {
			t.Errorf("setuidRiskOf(%s) = %q, want %q", path, got, want)
		}
	}
}
