package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// ErrShrink means that an image would have to become smaller.
var ErrShrink = errors.New("a disk only grows")

// Grow makes an image and its file system larger: size in bytes, to be rounded down to whole blocks. The image must not
// be in use. When it fails after the file has grown, the same call once more goes on with that.
func Grow(ctx context.Context, path string, size int64) error {
	if err := grow(ctx, path, size); err != nil {
		return fmt.Errorf("grow disk %s: %w", path, err)
	}
	return nil
}

func grow(ctx context.Context, path string, size int64) error {
	t, err := findTools("e2fsck", "resize2fs")
	if err != nil {
		return err
	}
	held, err := Lock(path)
	if err != nil {
		return err
	}
	defer held.Release()
	info, err := held.file.Stat()
	if err != nil {
		return err
	}
	if err := Check(path); err != nil {
		return err
	}
	size = size / blockSize * blockSize
	if !info.Mode().IsRegular() {
		return errors.New("is no regular file")
	}
	if size < info.Size() {
		return fmt.Errorf("%w: it has %d bytes, %d are asked for", ErrShrink, info.Size(), size)
	}

	work, err := os.MkdirTemp("", "disk-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if path, err = filepath.Abs(path); err != nil {
		return err
	}
	if err := os.Symlink(path, filepath.Join(work, imageName)); err != nil {
		return err
	}
	// resize2fs wants a file system that has just been checked.
	if _, err := t.run(ctx, work, "e2fsck", "-f", "-p", imageName); exitCode(err) > fsckCorrected {
		return fmt.Errorf("needs a repair first, by hand: e2fsck -f: %w", err)
	}
	if err := held.file.Truncate(size); err != nil {
		return err
	}
	if _, err := t.run(ctx, work, "resize2fs", imageName); err != nil {
		return err
	}
	return held.file.Sync()
}
