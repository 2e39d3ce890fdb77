package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"docker-usermode-linux/internal/agent"
	"docker-usermode-linux/internal/config"
	"docker-usermode-linux/internal/disk"
	"docker-usermode-linux/internal/image/runconfig"
)

// readImageConfig returns what the image says that a root file system is from: nothing where it is from none. On a disk it
// is read by debugfs; without that, or of another file system than ext4, nothing is known, which unknown says.
func readImageConfig(ctx context.Context, cfg config.Config) (image runconfig.Config, unknown, err error) {
	if cfg.Disk == "" {
		root, err := os.OpenRoot(cfg.Rootfs)
		if err != nil {
			return image, nil, err
		}
		defer root.Close()
		image, err = runconfig.Read(root)
		return image, nil, err
	}
	switch err := disk.Check(cfg.Disk); {
	case errors.Is(err, disk.ErrNotExt4):
		return image, nil, nil // none that we made
	case err != nil:
		return image, nil, err
	}
	text, err := disk.ReadFile(ctx, cfg.Disk, "/"+runconfig.File, runconfig.MaxSize+1)
	if err != nil {
		return image, fmt.Errorf("what the image says about how it is run is not known: %w", err), nil
	}
	if text == nil {
		return image, nil, nil
	}
	if image, err = runconfig.Parse(text); err != nil {
		return image, nil, fmt.Errorf("/%s of disk %s, which says how its image is run: %w; mend or remove it", runconfig.File,
			cfg.Disk, err)
	}
	return image, nil, nil
}

// withImage completes the command for a guest by what the image of its root file system says, as docker run does: the
// image's own command unless there is one, after the image's entry point, in its directory, as its user, with its
// environment. What the user said wins; an entry point of his own leaves out the image's command, too.
func withImage(c *agent.Command, image runconfig.Config, own bool, entrypoint string) {
	first, args := image.Entrypoint, c.Args
	switch {
	case own:
		first = nil
		if entrypoint != "" {
			first = []string{entrypoint}
		}
	case len(args) == 0:
		args = image.Cmd
	}
	c.Args = append(append([]string{}, first...), args...)
	c.Env = append(append([]string{}, image.Env...), c.Env...) // the last one of a name wins
	if c.Dir == "" {
		c.Dir = image.WorkingDir
	}
	if c.User == "" {
		c.User = image.User
	}
}
