package supervisor

import (
	"errors"
	"os"

	"docker-usermode-linux/internal/config"
	"docker-usermode-linux/internal/disk"
)

// rootDisk is the disk with the guest's root file system, as long as a guest runs. The zero value is none.
type rootDisk struct {
	held *disk.Held
	// changes gets what the guest writes, unless it is nil: to the disk.
	changes *os.File
}

// openDisk holds the disk of cfg, alone unless the guest is ephemeral. runDir is a place for what that writes, where there is
// none that is meant for files as large.
func openDisk(cfg config.Config, runDir string) (rootDisk, error) {
	if cfg.Disk == "" {
		return rootDisk{}, nil
	}
	lock := disk.Lock
	if cfg.Ephemeral {
		lock = disk.LockShared
	}
	held, err := lock(cfg.Disk)
	if err != nil {
		return rootDisk{}, err
	}
	d := rootDisk{held: held}
	if cfg.Ephemeral {
		if d.changes, err = makeChanges(cfg.Disk, runDir); err != nil {
			d.close()
			return rootDisk{}, err
		}
	}
	return d, nil
}

// makeChanges makes the file, in the directory of the user's choice, or one on a disk, or else whichever there is.
func makeChanges(image, runDir string) (*os.File, error) {
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
func (d rootDisk) oneLock() bool { return d.held != nil && d.held.OneLock() }

func (d rootDisk) close() {
	if d.changes != nil {
		_ = d.changes.Close() // it has no name, and is gone
	}
	if d.held != nil {
		d.held.Release()
	}
}
