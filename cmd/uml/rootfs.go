package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"docker-usermode-linux/internal/config"
	debian "docker-usermode-linux/rootfs/debian"
)

// rootfsMaker puts root file systems where a guest can have them. What fails leaves nothing there.
type rootfsMaker interface {
	// Import unpacks a tar archive, which may be compressed, or be what docker save or docker export wrote.
	Import(ctx context.Context, archive io.Reader, to rootfsTarget, report progress) error
	// Pull unpacks an image of a registry.
	Pull(ctx context.Context, image string, to rootfsTarget, report progress) error
	// Remove deletes a directory with files of other owners, too, or an image of a disk.
	Remove(ctx context.Context, path string) error
}

// rootfsTarget is where a root file system goes.
type rootfsTarget struct {
	// Path is absolute; nothing is there.
	Path string
	// DiskSize is the size of a disk image in bytes; 0 is a directory.
	DiskSize uint64
}

// rootfsTools does it.
var rootfsTools rootfsMaker = missingMaker{}

// missingMaker is in a program that was built without.
type missingMaker struct{}

var errMissingMaker = errors.New("this program was built without what unpacks and removes root file systems")

func (missingMaker) Import(context.Context, io.Reader, rootfsTarget, progress) error {
	return errMissingMaker
}

func (missingMaker) Pull(context.Context, string, rootfsTarget, progress) error {
	return errMissingMaker
}

func (missingMaker) Remove(context.Context, string) error { return errMissingMaker }

// targetFlags are those of commands that make a root file system.
type targetFlags struct{ size string }

func (t *targetFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&t.size, "size", "", "make a disk image of that `SIZE`, such as 4G, in the place of a directory")
}

// target checks what was given. Nothing is overwritten.
func (t *targetFlags) target(path string) (rootfsTarget, error) {
	to := rootfsTarget{}
	var err error
	if t.size != "" {
		if to.DiskSize, err = config.ParseSize(t.size); err != nil {
			return to, usageError(fmt.Errorf("--size=%q: %w", t.size, err))
		}
	}
	if to.Path, err = filepath.Abs(path); err != nil {
		return to, err
	}
	switch entries, err := os.ReadDir(to.Path); {
	case errors.Is(err, os.ErrNotExist):
	case err == nil && len(entries) == 0 && to.DiskSize == 0:
	default:
		return to, fmt.Errorf("%s is there already: remove it with uml rootfs rm, or choose another place", to.Path)
	}
	return to, nil
}

func newRootfs(tools rootfsMaker) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rootfs",
		Short: "Make and remove root file systems",
		Args:  arguments(cobra.NoArgs),
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newCreate(tools), newImport(tools), newPull(tools), newRemove(tools))
	return cmd
}

func newImport(tools rootfsMaker) *cobra.Command {
	var flags targetFlags
	cmd := &cobra.Command{
		Use:     "import TAR|- TARGET",
		Short:   "Unpack an archive: of docker export, docker save, mmdebstrap",
		Example: "  docker export CONTAINER | uml rootfs import - ./root\n  uml rootfs import --size 4G root.tar.xz disk.img",
		Args:    arguments(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := flags.target(args[1])
			if err != nil {
				return err
			}
			archive, size := os.Stdin, int64(-1)
			if args[0] != "-" {
				if archive, err = os.Open(args[0]); err != nil {
					return fmt.Errorf("open the archive: %w", err)
				}
				defer archive.Close()
				if info, err := archive.Stat(); err == nil && info.Mode().IsRegular() {
					size = info.Size()
				}
			}
			bar := newProgress(os.Stderr)
			defer bar.End()
			bar.Begin("unpacking", size)
			return tools.Import(cmd.Context(), io.TeeReader(archive, barWriter{bar}), to, noProgress{})
		},
	}
	flags.add(cmd.Flags())
	return cmd
}

func newPull(tools rootfsMaker) *cobra.Command {
	var flags targetFlags
	cmd := &cobra.Command{
		Use:     "pull IMAGE TARGET",
		Short:   "Unpack a container image from a registry",
		Example: "  uml rootfs pull alpine ./alpine && uml run --rootfs ./alpine apk info",
		Args:    arguments(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := flags.target(args[1])
			if err != nil {
				return err
			}
			bar := newProgress(os.Stderr)
			defer bar.End()
			return tools.Pull(cmd.Context(), args[0], to, bar)
		},
	}
	flags.add(cmd.Flags())
	return cmd
}

func newRemove(tools rootfsMaker) *cobra.Command {
	return &cobra.Command{
		Use:   "rm TARGET...",
		Short: "Remove root file systems, with files of any owner",
		Args:  arguments(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			var errs []error
			for _, arg := range args {
				path, err := filepath.Abs(arg)
				if err == nil {
					err = inUse(path)
				}
				if err == nil {
					err = tools.Remove(cmd.Context(), path)
				}
				if err != nil {
					errs = append(errs, fmt.Errorf("remove %s: %w", arg, err))
				}
			}
			return errors.Join(errs...)
		},
	}
}

// inUse is an error when a guest runs on a root file system.
func inUse(path string) error {
	registry, _, err := find("")
	guests, listErr := registry.Guests()
	if listErr != nil {
		return errors.Join(err, listErr)
	}
	for _, g := range guests {
		if g.Rootfs == path || g.Disk == path {
			return fmt.Errorf("guest %s runs on it: stop it first", g.Name)
		}
	}
	return nil
}

// Ways of mmdebstrap to make a system as a normal user; auto is its own choice.
var createModes = []string{"auto", "unshare", "fakechroot"}

func newCreate(tools rootfsMaker) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make a root file system from a distribution's packages",
		Args:  arguments(cobra.NoArgs),
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var flags targetFlags
	var suite, mode, mirror string
	deb := &cobra.Command{
		Use:   "debian TARGET",
		Short: "Make the default guest's Debian, by mmdebstrap",
		Long: "Make a Debian system with systemd and an SSH server, the same as in the container image, by mmdebstrap(1), which\n" +
			"has to be installed. As a normal user it needs either subordinate user ids (uidmap) or fakechroot.",
		Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !slices.Contains(createModes, mode) {
				return flagError(cmd, fmt.Errorf("--mode=%q: write auto, unshare or fakechroot", mode))
			}
			to, err := flags.target(args[0])
			if err != nil {
				return err
			}
			return createDebian(cmd.Context(), tools, to, debianOptions{suite, mode, mirror})
		},
	}
	deb.Flags().StringVar(&suite, "suite", debian.Suite, "Debian's `SUITE`")
	deb.Flags().StringVar(&mode, "mode", "auto", "`MODE` of mmdebstrap: auto, unshare or fakechroot")
	deb.Flags().StringVar(&mirror, "mirror", "", "`ADDRESS` of a Debian archive; default is mmdebstrap's")
	flags.add(deb.Flags())
	cmd.AddCommand(deb)
	return cmd
}

type debianOptions struct{ suite, mode, mirror string }

// errNoMmdebstrap says what to do where Debian's tool is missing.
var errNoMmdebstrap = errors.New("mmdebstrap is not installed. On Debian and its relatives: apt install mmdebstrap uidmap. " +
	"Elsewhere take a system from an image: uml rootfs pull IMAGE TARGET, or docker export CONTAINER | uml rootfs import - TARGET")

// createDebian has mmdebstrap write an archive, which is imported as any other.
func createDebian(ctx context.Context, tools rootfsMaker, to rootfsTarget, o debianOptions) error {
	path, err := exec.LookPath("mmdebstrap")
	if err != nil {
		return errNoMmdebstrap
	}
	recipe, err := os.MkdirTemp("", "uml-recipe-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(recipe)
	if err := debian.Write(recipe); err != nil {
		return fmt.Errorf("write the recipe: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, mmdebstrapArgs(recipe, o)...)
	cmd.Stderr = os.Stderr // its progress, and what went wrong
	archive, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start mmdebstrap: %w", err)
	}
	if err := tools.Import(ctx, archive, to, noProgress{}); err != nil {
		cancel()
		_ = cmd.Wait() // it was ended
		return err
	}
	if err := cmd.Wait(); err != nil {
		err = fmt.Errorf("mmdebstrap: %w; as a normal user it needs the package uidmap and lines for the user in /etc/subuid and "+
			"/etc/subgid, or the packages fakechroot and fakeroot (--mode=fakechroot)", err)
		return errors.Join(err, tools.Remove(ctx, to.Path)) // an archive that ended early may look like a whole one
	}
	return nil
}

// mmdebstrapArgs have it make the default guest by the recipe, and write it to stdout as an archive.
func mmdebstrapArgs(recipe string, o debianOptions) []string {
	args := []string{
		"--format=tar", "--variant=minbase", "--skip=output/dev", "--mode=" + o.mode,
		`--customize-hook=mkdir "$1/recipe"`,
		"--customize-hook=sync-in " + recipe + " /recipe",
		`--customize-hook=chroot "$1" sh /recipe/setup`,
		`--customize-hook=cp "$1/recipe/etc/"* "$1/etc/"`,
		`--customize-hook=rm -r "$1/recipe"`,
		o.suite, "-",
	}
	if o.mirror != "" {
		args = append(args, o.mirror)
	}
	return args
}
