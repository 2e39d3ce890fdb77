package supervisor

import (
	"errors"
	"fmt"
	"os"

	"docker-usermode-linux/internal/config"
	"docker-usermode-linux/internal/control"
	"docker-usermode-linux/internal/disk"
)

// rootHold is what holds the guest's root file system, from before its first boot on until it has ended for good. The zero
// value holds nothing.
type rootHold struct {
	held *disk.Held
	// changes gets what the guest writes to a disk, unless it is nil: the disk itself does.
	changes *os.File
}

// holdRoot holds the root file system of cfg, alone unless the guest is ephemeral. A directory is held on a host only:
// containers share theirs as their user sees fit. runs is where runs have their directories (Job.Dir).
func holdRoot(cfg config.Config, runs string) (rootHold, error) {
	switch {
	case cfg.Disk != "":
		return holdDisk(cfg, runs)
	case !cfg.Options.Host:
		return rootHold{}, nil
	}
	held, err := disk.LockDir(cfg.Rootfs, cfg.Ephemeral)
	if errors.Is(err, disk.ErrInUse) {
		err = fmt.Errorf("%w by another guest: two that write to it would damage it; stop the other, use a copy, or start all that "+
			"share it with --ephemeral", err)
	}
	return rootHold{held: held}, err
}

func holdDisk(cfg config.Config, runs string) (rootHold, error) {
	lock := disk.Lock
	if cfg.Ephemeral {
		lock = disk.LockShared
	}
	held, err := lock(cfg.Disk)
	if err != nil {
		return rootHold{}, err
	}
	h := rootHold{held: held}
	if cfg.Ephemeral {
		if h.changes, err = makeChanges(cfg.Disk, runs); err != nil {
			h.release()
			return rootHold{}, err
		}
	}
	return h, nil
}

// makeChanges makes the file, in the directory of the user's choice, or one on a disk, or else where the directories of
// runs are, which is not meant for files as large.
func makeChanges(image, runs string) (*os.File, error) {
	runDir, err := control.MakeRunDir(runs)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(runDir) // the file has no name in it
	places := []string{"/var/tmp", runDir}
	if dir := os.Getenv("TMPDIR"); dir != "" {
		places = []string{dir}
	}
	var errs []error
	for _, dir := range places {
		f, err := disk.Ephemeral(image, image, dir)
		if err == nil {
			return f, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// oneLock says that the kernel must not lock the disk, too.
func (h rootHold) oneLock() bool { return h.held != nil && h.held.OneLock() }

func (h rootHold) release() {
	if h.changes != nil {
		_ = h.changes.Close() // it has no name, and is gone
	}
	h.held.Release()
}
