package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

// ErrNotExt4 means that an image has no ext4 file system, or one in a partition.
var ErrNotExt4 = errors.New("is no ext4 file system")

// Check is an error that wraps ErrNotExt4 unless a file is an image as Create makes it, or the like.
func Check(image string) error {
	f, err := os.Open(image)
	if err != nil {
		return err
	}
	defer f.Close()
	var mark [2]byte
	_, err = f.ReadAt(mark[:], superOffset+superMagic)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if mark[0] != magic&0xff || mark[1] != magic>>8 {
		return fmt.Errorf("%s %w", image, ErrNotExt4)
	}
	return nil
}

// ReadFile returns a file of an image, at most limit bytes of it, and nil where there is none. name has neither blanks nor
// quotes. The image is only read, and may be the disk of a guest that runs: then what it has just written may be missing.
func ReadFile(ctx context.Context, image, name string, limit int) ([]byte, error) {
	data, err := readFile(ctx, image, name, limit)
	if err != nil {
		return nil, fmt.Errorf("read %s of disk %s: %w", name, image, err)
	}
	return data, nil
}

func readFile(ctx context.Context, image, name string, limit int) ([]byte, error) {
	t, err := findTools("debugfs")
	if err != nil {
		return nil, err
	}
	f, err := os.Open(image)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// By its descriptor, as e2fsprogs takes a "?" in a path for the start of options.
	cmd := exec.CommandContext(ctx, t["debugfs"], "-R", "cat "+name, fmt.Sprintf("/proc/self/fd/%d", firstExtraFD))
	cmd.ExtraFiles = []*os.File{f}
	cmd.Env = toolEnv
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	data, readErr := io.ReadAll(io.LimitReader(out, int64(limit)))
	if len(data) == limit {
		cancel() // the rest is not wanted
		_ = cmd.Wait()
		return data, readErr
	}
	if err := errors.Join(readErr, cmd.Wait()); err != nil {
		return nil, err
	}
	for line := range strings.Lines(complaints.String()) {
		switch line = strings.TrimSpace(line); {
		case strings.HasPrefix(line, "debugfs 1."):
		case strings.HasSuffix(line, "File not found by ext2_lookup"):
			return nil, nil
		default:
			return nil, fmt.Errorf("debugfs: %s", line)
		}
	}
	return data, nil
}

// firstExtraFD is the number that the first of exec.Cmd.ExtraFiles has in the child.
const firstExtraFD = 3
