package main

import (
	"docker-usermode-linux/internal/agent"
)

// imageConfig is how an image wants to be run: a container image's config.
type imageConfig struct {
	Env             []string
	WorkingDir      string
	User            string
	Entrypoint, Cmd []string
}

// readImageConfig returns the config of the image that a root file system is from, nil if it is from none.
var readImageConfig = func(rootfs string) (*imageConfig, error) { return nil, nil }

// withImage completes the command for a guest by what the image of its root file system says, as docker run does: the
// image's own command unless there is one, after the image's entry point, in its directory, as its user, with its
// environment. What the user said wins; an entry point of his own leaves out the image's command, too.
func withImage(c *agent.Command, rootfs string, own bool, entrypoint string) error {
	image, err := readImageConfig(rootfs)
	if err != nil {
		return err
	}
	if image == nil {
		image = &imageConfig{}
	}
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
	return nil
}
