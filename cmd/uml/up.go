package main

import (
	"os"

	"github.com/spf13/cobra"

	"docker-usermode-linux/internal/command"
	"docker-usermode-linux/internal/supervisor"
	"docker-usermode-linux/internal/uml"
)

func newUp() *cobra.Command {
	var b guestBoot
	var detach, wait bool
	cmd := &cobra.Command{
		Use:   "up [OPTION]... [-- KERNEL ARGUMENT...]",
		Short: "Boot a guest",
		Long: "Boot a guest, with this terminal as its console. Each option is a setting that the environment variable in\n" +
			"brackets has, too; the option wins. What follows -- goes to the kernel as it is.",
		Example: "  uml up --rootfs ./debian\n  uml up --rootfs ./debian -d --wait -p 127.0.0.1:2222:22 -p 8080:80\n" +
			"  uml up --disk disk.img --ephemeral -- init=/bin/sh",
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			args, err := kernelArguments(cmd, args)
			switch {
			case err != nil:
				return err
			case wait && !detach:
				return flagError(cmd, errDetachedOnly)
			case uml.IsQuery(args):
				return query(b.settings, args)
			}
			notes, err := ownGuest(cmd.Context(), b.settings.root(), b.own)
			if err != nil {
				return err
			}
			job := supervisor.Job{Args: args, Notes: notes}
			if link := detachedLink(); link != nil {
				return b.bootDetached(job, link)
			}
			if wait {
				if err := b.settings.checkHealth(); err != nil {
					return usageError(err)
				}
			}
			if detach {
				return startDetached(wait)
			}
			if inInit() {
				return asInit()
			}
			cfg, err := b.settings.load(upDefaults)
			if err != nil {
				return usageError(err)
			}
			return b.boot(job, cfg)
		},
	}
	b.addFlags(cmd.Flags())
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "return when the guest has started, and print its name")
	cmd.Flags().BoolVar(&wait, "wait", false, "with -d: return when it is healthy")
	return cmd
}

// query lets the kernel speak for itself.
func query(settings guestSettings, args []string) error {
	cfg, err := settings.loadKernel()
	if err != nil {
		return usageError(err)
	}
	code, err := uml.Query(cfg.Kernel, args, os.Stdout, os.Stderr)
	if err != nil {
		return err
	}
	return exit(code)
}

func newRun() *cobra.Command {
	var b guestBoot
	var guest command.Guest
	var entrypoint string
	cmd := &cobra.Command{
		Use:   "run [OPTION]... [COMMAND [ARGUMENT]...]",
		Short: "Boot a guest for one command, and end with its exit code",
		Long: "Boot a guest, run a command in it as root, and end with it. The standard streams and the signals of this process\n" +
			"are the command's. On a root file system that came from an image, the command is what the image says, with the\n" +
			"arguments given here, as docker run has it. Without a command: a login shell.",
		Example: "  uml run --rootfs ./debian nft list ruleset\n  echo 'ip link' | uml run --rootfs ./debian sh\n" +
			"  uml run --rootfs ./debian --ephemeral --init systemctl list-units",
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			guest.Args = args
			if _, err := guest.TTY(); err != nil {
				return flagError(cmd, err)
			}
			notes, err := ownGuest(cmd.Context(), b.settings.root(), b.own)
			if err != nil {
				return err
			}
			if inInit() {
				return asInit()
			}
			cfg, err := b.settings.load(runDefaults)
			if err != nil {
				return usageError(err)
			}
			image, unknown, err := readImageConfig(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			if unknown != nil {
				notes = append(notes, supervisor.Note{Text: unknown.Error(), Warning: true})
			}
			withImage(&guest.Command, image, cmd.Flags().Changed("entrypoint"), entrypoint)
			job, err := guest.Job()
			if err != nil {
				return err
			}
			job.Notes = notes
			return b.boot(job, cfg)
		},
	}
	flags := cmd.Flags()
	flags.SetInterspersed(false)
	b.addFlags(flags)
	addOptions(flags, append(guest.Options(), guest.InitOption()))
	flags.StringVar(&entrypoint, "entrypoint", "", "program to run in the place of the image's; \"\" for none")
	return cmd
}
