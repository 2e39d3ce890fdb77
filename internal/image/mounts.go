package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// mountInfo lists what is mounted in our mount namespace (proc_pid_mountinfo(5)).
const mountInfo = "/proc/self/mountinfo"

// checkUnmounted is an error where something is mounted at or below a directory: whatever removed the directory would
// empty that, too, which may be anything of the host's.
func checkUnmounted(dir string) error {
	real, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	data, err := os.ReadFile(mountInfo)
	if err != nil {
		return fmt.Errorf("look for what is mounted in it: %w", err)
	}
	if at := mountIn(string(data), real); at != "" {
		return fmt.Errorf("%s is mounted in it: unmount that first", at)
	}
	return nil
}

// mountIn returns the place of a mount at or below dir, a path without links, or "".
func mountIn(info, dir string) string {
	below := strings.TrimSuffix(dir, "/") + "/"
	for line := range strings.Lines(info) {
		const mountPoint = 4 // the fifth field
		fields := strings.Fields(line)
		if len(fields) <= mountPoint {
			continue
		}
		if at := unescape(fields[mountPoint]); at == dir || strings.HasPrefix(at, below) {
			return at
		}
	}
	return ""
}

// unescape decodes what the kernel writes in the place of blanks, line breaks and backslashes: \040 and the like.
func unescape(text string) string {
	var out strings.Builder
	for {
		before, after, found := strings.Cut(text, `\`)
		out.WriteString(before)
		if !found {
			return out.String()
		}
		const digits = 3
		if code, err := strconv.ParseUint(after[:min(digits, len(after))], 8, 8); err == nil && len(after) >= digits {
			out.WriteByte(byte(code))
			after = after[digits:]
		} else {
			out.WriteByte('\\')
		}
		text = after
	}
}
