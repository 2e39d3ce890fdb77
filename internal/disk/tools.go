package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// ErrNoTools means that programs of e2fsprogs are missing.
var ErrNoTools = errors.New("e2fsprogs is missing")

// fsckCorrected is the exit code of e2fsck(8) that says that errors were corrected; more is worse.
const fsckCorrected = 1

// tools are the paths of programs, by name.
type tools map[string]string

// Usable is an error that wraps ErrNoTools where a program is missing that Create needs.
func Usable() error {
	_, err := findTools(createTools...)
	return err
}

// createTools are what Create runs.
var createTools = []string{"mke2fs", "debugfs", "e2fsck"}

// findTools looks in PATH and where a plain user's PATH often does not lead.
func findTools(names ...string) (tools, error) {
	t := tools{}
	for _, name := range names {
		path, err := exec.LookPath(name)
		for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
			if err == nil {
				break
			}
			path, err = exec.LookPath(filepath.Join(dir, name))
		}
		if err != nil {
			return nil, fmt.Errorf("%w: there is no %s in PATH or /usr/sbin: install package e2fsprogs", ErrNoTools, name)
		}
		// They run in another directory.
		if t[name], err = filepath.Abs(path); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// toolEnv is all of the environment that the programs get: much of ours would change what e2fsprogs makes (MKE2FS_CONFIG,
// SOURCE_DATE_EPOCH, …).
var toolEnv = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "TZ=UTC"}

// run runs a program in a directory and returns what it says on standard error.
func (t tools) run(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, t[name], args...)
	cmd.Dir = dir
	cmd.Env = toolEnv
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		return "", fmt.Errorf("%s: %w: %s", strings.Join(append([]string{name}, args...), " "), err,
			lastLines(out.String()+complaints.String()))
	}
	return complaints.String(), nil
}

// lastLines is the end of a program's output, in one line.
func lastLines(out string) string {
	lines := strings.FieldsFunc(out, func(r rune) bool { return r == '\n' || r == '\r' })
	return strings.Join(lines[max(0, len(lines)-5):], "; ")
}

// exitCode is that of a program whose run returned err: 0 for none, and a large one for a program that did not run.
func exitCode(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		return exit.ExitCode()
	}
	return 1 << 8
}

// atLeast tells whether mke2fs says to be of a version.
func (t tools) atLeast(ctx context.Context, major, minor int) bool {
	out, _ := t.run(ctx, "/", "mke2fs", "-V")
	match := regexp.MustCompile(`^mke2fs (\d+)\.(\d+)`).FindStringSubmatch(out) // here, for most starts of the program do not need it
	if match == nil {
		return false
	}
	hasMajor, _ := strconv.Atoi(match[1])
	hasMinor, _ := strconv.Atoi(match[2])
	return hasMajor > major || hasMajor == major && hasMinor >= minor
}
