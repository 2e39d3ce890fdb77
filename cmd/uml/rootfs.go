package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"docker-usermode-linux/internal/config"
	"docker-usermode-linux/internal/disk"
	"docker-usermode-linux/internal/image"
	"docker-usermode-linux/internal/tempfile"
	debian "docker-usermode-linux/rootfs/debian"
)

// rootfsTarget is where a root file system goes.
type rootfsTarget struct {
	// Path is absolute; nothing is there, or an empty directory where it is to be one.
	Path string
	// Disk is an image of a disk, of Size bytes if that is not 0.
	Disk bool
	Size int64
	// Owner says that the files in a directory get the owners that the archive names.
	Owner bool
}

// endSignals have what is half made removed.
var endSignals = []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP}

// rootfsSource opens what a root file system is made of.
type rootfsSource func(context.Context, image.Options) (*image.Source, error)

// make makes the root file system. What fails leaves nothing there.
func (to rootfsTarget) make(ctx context.Context, open rootfsSource) error {
	report, end := newProgress(os.Stderr)
	defer end()
	source, err := open(ctx, image.Options{Progress: report})
	if err != nil {
		return err
	}
	defer source.Close()
	archive, err := source.Tar(ctx)
	if err != nil {
		return err
	}
	defer archive.Close()
	if to.Disk {
		counted := &counter{r: archive, report: report, total: source.Size(), what: "unpacking"}
		return disk.Create(ctx, to.Path, disk.Options{Tar: counted, Size: to.Size})
	}
	made, err := image.Unpack(ctx, archive, to.Path, image.UnpackOptions{Owner: to.Owner, Total: source.Size(), Progress: report})
	if err != nil {
		return err
	}
	end()
	for _, text := range []string{losses(made), setuidRisk(to.Path)} {
		if text != "" {
			fmt.Fprintf(os.Stderr, "%s: WARNING: %s\n", program, text)
		}
	}
	return nil
}

// losses says what of an archive is not in the directory that was made of it; "" that all is. Device nodes are no loss, as
// the guest makes its own, and that all files are the user's was said before.
func losses(r image.Report) string {
	var lost []string
	if r.LostXattrs > 0 {
		lost = append(lost, fmt.Sprintf("%d extended attributes (capabilities of files, labels, ACLs)", r.LostXattrs))
	}
	if r.SkippedOthers > 0 {
		lost = append(lost, fmt.Sprintf("%d entries that are no files", r.SkippedOthers))
	}
	if len(lost) == 0 {
		return ""
	}
	return "left out, as a directory could not have them: " + strings.Join(lost, ", ")
}

// targetFlags are those of commands that make a root file system.
type targetFlags struct {
	size string
	own  ownership
}

func (t *targetFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&t.size, "size", "", "make a disk image of that `SIZE`, such as 4G; default for one is twice the content, "+
		"and 2G at least")
	t.own.addTo(flags, true)
}

// target checks what was given. Nothing is overwritten.
func (t *targetFlags) target(path string) (rootfsTarget, error) {
	to := rootfsTarget{}
	var err error
	if t.size != "" {
		if to.Size, err = parseDiskSize(t.size); err != nil {
			return to, usageError(fmt.Errorf("--size=%q: %w", t.size, err))
		}
	}
	if to.Path, err = filepath.Abs(path); err != nil {
		return to, err
	}
	return to, to.free()
}

// parseDiskSize reads a size in bytes.
func parseDiskSize(text string) (int64, error) {
	size, err := config.ParseSize(text)
	return int64(size), err // ParseSize stays below 1<<63
}

// free is an error unless the target may be made.
func (to rootfsTarget) free() error {
	switch entries, err := os.ReadDir(to.Path); {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err == nil && len(entries) == 0 && !to.Disk && to.Size == 0:
		return nil
	case err == nil && len(entries) == 0:
		return fmt.Errorf("%s is there already, a directory, and is to be a disk image: choose another place, or --ownership=%s "+
			"for a directory all the same", to.Path, ownPlain)
	case err != nil && !errors.Is(err, unix.ENOTDIR):
		return err
	}
	return fmt.Errorf("%s is there already: remove it with uml rootfs rm, or choose another place", to.Path)
}

// make makes a root file system at path, of what open opens. argv executes the same once more.
func (t *targetFlags) make(ctx context.Context, path string, argv []string, open rootfsSource) error {
	to, err := t.target(path)
	if err != nil {
		return err
	}
	note, err := ownTarget(ctx, &to, t.own, argv)
	if err != nil {
		return err
	}
	if err := to.free(); err != nil {
		return err
	}
	if note != "" {
		fmt.Fprintf(os.Stderr, "%s: %s\n", program, note)
	}
	ctx, stop := signal.NotifyContext(ctx, endSignals...)
	defer stop()
	return to.make(ctx, open)
}

const aboutTarget = "TARGET is a directory, or a disk image: where --size is given or its name ends in .img, .ext4 or .raw, and " +
	"where\nfiles in a directory could not have their owners, for want of subordinate ids. It is for --rootfs of up and run\n" +
	"in either case."

func newRootfs() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rootfs",
		Short: "Make and remove root file systems",
		Long:  "Make and remove root file systems.\n" + aboutTarget,
		Args:  arguments(cobra.NoArgs),
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newCreate(), newImport(), newPull(), newGrow(), newRemove())
	return cmd
}

func newImport() *cobra.Command {
	var flags targetFlags
	var which string
	cmd := &cobra.Command{
		Use:   "import [OPTION]... TAR|- TARGET",
		Short: "Unpack an archive: of docker export, docker save, mmdebstrap",
		Long: "Unpack a tar archive of a root file system, compressed or not, or the image in what docker save writes, or in an OCI\n" +
			"layout, a directory or a tar.\n" + aboutTarget,
		Example: "  docker export CONTAINER | uml rootfs import - ./root\n  uml rootfs import --size 4G root.tar.xz disk.img",
		Args:    arguments(cobra.ExactArgs(2)),

		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return flags.make(cmd.Context(), args[1], os.Args, func(ctx context.Context, o image.Options) (*image.Source, error) {
				o.Image = which
				return image.Open(ctx, args[0], o)
			})
		},
	}
	flags.add(cmd.Flags())
	cmd.Flags().StringVar(&which, "image", "", "`NAME`, tag or digest of the image, in an archive with several")
	return cmd
}

func newPull() *cobra.Command {
	var flags targetFlags
	cmd := &cobra.Command{
		Use:   "pull [OPTION]... IMAGE TARGET",
		Short: "Unpack a container image from a registry",
		Long: "Unpack a container image from a registry, with the credentials of docker login. uml run then runs it as docker run\n" +
			"does: its command, user, directory and environment.\n" + aboutTarget,
		Example: "  uml rootfs pull alpine ./alpine && uml run --rootfs ./alpine apk info",
		Args:    arguments(cobra.ExactArgs(2)),

		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return flags.make(cmd.Context(), args[1], os.Args, func(ctx context.Context, o image.Options) (*image.Source, error) {
				return image.Pull(ctx, args[0], o)
			})
		},
	}
	flags.add(cmd.Flags())
	return cmd
}

func newGrow() *cobra.Command {
	return &cobra.Command{
		Use:     "grow IMAGE SIZE",
		Short:   "Make a disk image larger, and the file system on it",
		Example: "  uml rootfs grow disk.img 8G",
		Args:    arguments(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			size, err := parseDiskSize(args[1])
			if err != nil {
				return usageError(fmt.Errorf("%q: %w", args[1], err))
			}
			return disk.Grow(cmd.Context(), args[0], size)
		},
	}
}

func newRemove() *cobra.Command {
	return &cobra.Command{
		Use:   "rm TARGET...",
		Short: "Remove root file systems, with files of any owner",
		Args:  arguments(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			var noIDs error
			if slices.ContainsFunc(args, isDir) {
				noIDs = enter(cmd.Context(), os.Args)
			}
			var errs []error
			for _, arg := range args {
				err := remove(arg)
				if errors.Is(err, fs.ErrPermission) && noIDs != nil {
					err = fmt.Errorf("%w; it has files that were made with subordinate ids: %w", err, noIDs)
				}
				if err != nil {
					errs = append(errs, fmt.Errorf("remove %s: %w", arg, err))
				}
			}
			return errors.Join(errs...)
		},
	}
}

// remove removes a root file system, and nothing else.
func remove(path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if err := inUse(info); err != nil {
		return err
	}
	switch {
	case info.IsDir():
		if !image.LooksLikeRoot(path) {
			return errors.New("it does not look like a root file system")
		}
		held, err := disk.LockDir(path, false)
		if errors.Is(err, disk.ErrInUse) {
			return err // by a guest that our registry does not know
		}
		defer held.Release()
		return image.Remove(path)
	case !info.Mode().IsRegular():
		return errors.New("it is neither a directory nor a file")
	}
	if err := disk.Check(path); err != nil {
		return err
	}
	held, err := disk.Lock(path)
	if err != nil {
		return err
	}
	defer held.Release()
	return os.Remove(path)
}

// inUse is an error when a guest runs on a root file system, by whatever path.
func inUse(root fs.FileInfo) error {
	registry, err := openRegistry()
	if err != nil {
		return err
	}
	guests, err := registry.Guests()
	if err != nil {
		return err
	}
	for _, g := range guests {
		if has, err := os.Stat(cmp.Or(g.Disk, g.Rootfs)); err == nil && os.SameFile(root, has) {
			return fmt.Errorf("guest %s runs on it: stop it first", g.Name)
		}
	}
	return nil
}

// Ways of mmdebstrap to make a system as a normal user; auto is its own choice.
var createModes = []string{"auto", "unshare", "fakechroot"}

func newCreate() *cobra.Command {
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
			"has to be installed. As a normal user it needs either subordinate user ids (uidmap) or fakechroot.\n" + aboutTarget,
		Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !slices.Contains(createModes, mode) {
				return flagError(cmd, fmt.Errorf("--mode=%q: write auto, unshare or fakechroot", mode))
			}
			return createDebian(cmd.Context(), &flags, args[0], debianOptions{suite, mode, mirror})
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

// createDebian has mmdebstrap write an archive, which is imported as any other. That is done outside of a namespace of ours, as
// mmdebstrap makes its own.
func createDebian(ctx context.Context, flags *targetFlags, path string, o debianOptions) error {
	if _, err := flags.target(path); err != nil { // what takes a minute is not done in vain
		return err
	}
	archive, err := debootstrap(ctx, o)
	if err != nil {
		return err
	}
	defer archive.Close()
	// The archive is standard input of whoever imports it, this process or the one that it becomes.
	if err := unix.Dup2(int(archive.Fd()), int(os.Stdin.Fd())); err != nil {
		return err
	}
	argv := []string{os.Args[0], "rootfs", "import", "--ownership", flags.own.given, "--size", flags.size, "--", "-", path}
	return flags.make(ctx, path, argv, func(ctx context.Context, o image.Options) (*image.Source, error) {
		return image.Open(ctx, "-", o)
	})
}

// cleanupGrace is how long mmdebstrap may take to clean up: it removes some 10000 files.
const cleanupGrace = time.Minute

// debootstrap returns the archive, a file without a name.
func debootstrap(ctx context.Context, o debianOptions) (*os.File, error) {
	path, err := exec.LookPath("mmdebstrap")
	if err != nil {
		return nil, errNoMmdebstrap
	}
	recipe, err := os.MkdirTemp("", "uml-recipe-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(recipe)
	if err := debian.Write(recipe); err != nil {
		return nil, fmt.Errorf("write the recipe: %w", err)
	}
	// mmdebstrap reads it as another user.
	if err := os.Chmod(recipe, 0o755); err != nil {
		return nil, err
	}
	archive, err := tempfile.New("")
	if err != nil {
		return nil, err
	}
	ctx, stop := signal.NotifyContext(ctx, endSignals...)
	defer stop()
	cmd := exec.CommandContext(ctx, path, mmdebstrapArgs(recipe, o)...)
	cmd.Stdout = archive
	cmd.Stderr = os.Stderr // its progress, and what went wrong
	// It unmounts and removes what it has made.
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = cleanupGrace
	if err := cmd.Run(); err != nil {
		err = fmt.Errorf("mmdebstrap: %w; as a normal user it needs the package uidmap and lines for the user in /etc/subuid and "+
			"/etc/subgid, or the packages fakechroot and fakeroot (--mode=fakechroot)", err)
		return nil, errors.Join(err, archive.Close())
	}
	if _, err := archive.Seek(0, io.SeekStart); err != nil {
		return nil, errors.Join(err, archive.Close())
	}
	return archive, nil
}

// mmdebstrapArgs have it make the default guest by the recipe, and write it to stdout as an archive.
func mmdebstrapArgs(recipe string, o debianOptions) []string {
	args := []string{
		"--format=tar", "--variant=minbase", "--skip=output/dev", "--mode=" + o.mode,
		`--customize-hook=mkdir "$1/recipe"`,
		"--customize-hook=sync-in " + recipe + " /recipe",
		`--customize-hook=chroot "$1" sh /recipe/setup`,
		`--customize-hook=install -m 644 "$1/recipe/etc/"* "$1/etc/"`,
		`--customize-hook=rm -r "$1/recipe"`,
		o.suite, "-",
	}
	if o.mirror != "" {
		args = append(args, o.mirror)
	}
	return args
}
