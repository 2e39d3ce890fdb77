package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"docker-usermode-linux/internal/command"
	"docker-usermode-linux/internal/config"
	"docker-usermode-linux/internal/control"
	"docker-usermode-linux/internal/supervisor"
)

// guestBoot is what up and run have in common: a guest with settings and a name.
type guestBoot struct {
	settings guestSettings
	name     string
	own      ownership
	// started is called when the guest has: see supervisor.Job.
	started func()
	// entered is called when the guest has its name.
	entered func(control.Guest) error
	// streams, unless they are nil, are the guest's instead of our own.
	streams *supervisor.Streams
	// detached is a guest that nobody looks at.
	detached bool
}

func (b *guestBoot) addFlags(flags *pflag.FlagSet) {
	flags.SortFlags = false
	b.settings = addSettings(flags)
	flags.StringVarP(&b.name, "name", "n", "", "the guest's `NAME`; default is that of its root file system")
	b.own.addTo(flags, false)
}

// inInit says that we are process 1 of a container: all else happens in a child.
func inInit() bool { return os.Getpid() == 1 }

// asInit is the role of process 1. It is taken on after ownGuest: the child has a pipe to tell its exit code by, which
// would not survive that this program is executed anew.
func asInit() error { return exit(command.Init(program, os.Args[1:])) }

// boot boots the guest and sees it through. The job gets its name and place.
func (b *guestBoot) boot(job supervisor.Job, cfg config.Config) error {
	signals := command.Signals(program, job)
	registry, err := openRegistry()
	if err != nil {
		return err
	}
	claim, err := b.claim(registry, job, cfg)
	if err != nil {
		return err
	}
	code := command.ExitFailed
	defer func() { _ = claim.Release(code) }() // what is left is stale, and removed by the next who looks
	if b.entered != nil {
		if err := b.entered(claim.Guest); err != nil {
			return err
		}
	}
	if given := os.Getenv("HOSTNAME"); given == "" || given == ownHostname() && !b.settings.given("HOSTNAME") {
		cfg.Hostname = hostnameOf(claim.Name)
	}
	streams := command.Streams()
	if b.streams != nil {
		streams = *b.streams
	}
	job.Dir, job.Started = claim.Dir, b.started
	code = supervisor.Run(cfg, job, signals, streams)
	return exit(code)
}

// ownHostname is the host's own name, which some shells export as HOSTNAME without anyone having asked for it.
func ownHostname() string {
	name, _ := os.Hostname() // "" is nobody's
	return name
}

// nameOf makes a guest's name of its root file system's, without what only says that it is a disk.
func nameOf(path string) string {
	name := filepath.Base(path)
	if ext := filepath.Ext(name); slices.Contains(diskNames, ext) {
		name = strings.TrimSuffix(name, ext)
	}
	return control.MakeName(name)
}

// hostnameOf makes a host name of a guest's name.
func hostnameOf(name string) string {
	var labels []string
	for label := range strings.SplitSeq(strings.ReplaceAll(name, "_", "-"), ".") {
		if label = strings.Trim(label, "-"); label != "" {
			labels = append(labels, label)
		}
	}
	return strings.Join(labels, ".")
}

// claim enters the guest into the registry.
func (b *guestBoot) claim(registry control.Registry, job supervisor.Job, cfg config.Config) (*control.Claim, error) {
	name := b.name
	if name == "" {
		name = nameOf(rootPath(cfg))
	}
	g := control.Guest{
		Name: name, PID: os.Getpid(), Started: time.Now(), Disk: cfg.Disk, ReadOnly: cfg.Ephemeral,
		Detached: b.detached, Ports: []string{},
	}
	if cfg.Disk == "" {
		g.Rootfs = cfg.Rootfs
	}
	for _, p := range cfg.Ports {
		g.Ports = append(g.Ports, p.String())
	}
	if job.Command != nil {
		g.Command = job.Command.Args
	}
	return registry.Claim(g, b.name == "")
}

// kernelArguments are those after "--", which are all that up takes.
func kernelArguments(cmd *cobra.Command, args []string) ([]string, error) {
	if at := cmd.ArgsLenAtDash(); len(args) > 0 && at != 0 {
		return nil, flagError(cmd, fmt.Errorf("unexpected argument %q: arguments of the kernel follow --", args[0]))
	}
	return args, nil
}

// errDetachedOnly is for options that mean nothing without -d.
var errDetachedOnly = errors.New("--wait is for a guest that is detached: give -d too")
