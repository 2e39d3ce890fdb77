package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"docker-usermode-linux/internal/command"
	"docker-usermode-linux/internal/control"
	"docker-usermode-linux/internal/slirp"
	"docker-usermode-linux/internal/supervisor"
	"docker-usermode-linux/internal/userns"
)

// addOptions adds options of package command.
func addOptions(flags *pflag.FlagSet, options []command.Option) {
	for _, o := range options {
		f := flags.VarPF(optionValue{o}, o.Long, o.Short, o.About)
		if o.Value.IsBoolFlag() {
			f.NoOptDefVal = "true"
		}
	}
}

// optionValue shows the name of the option's argument in the help.
type optionValue struct{ command.Option }

func (v optionValue) String() string     { return v.Value.String() }
func (v optionValue) Set(s string) error { return v.Value.Set(s) }

func (v optionValue) Type() string {
	if v.Argument == "" {
		return v.Value.Type()
	}
	return v.Argument
}

// openRegistry opens the registry of this user, which is the same within a user namespace of his and without.
func openRegistry() (control.Registry, error) {
	user, _ := userns.Outside()
	return control.OpenRegistry(user)
}

// find returns the guest of that name, or the only one if it is "".
func find(name string) (control.Registry, control.Guest, error) {
	registry, err := openRegistry()
	if err != nil {
		return registry, control.Guest{}, err
	}
	g, err := registry.Guest(name)
	return registry, g, err
}

// first is the first of the arguments, "" without any.
func first(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

// completeNames completes the names of guests.
func completeNames(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	registry, err := openRegistry()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	guests, _ := registry.Guests() // nothing to offer then
	var names []string
	for _, g := range guests {
		names = append(names, g.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// ask asks a guest.
func ask(ctx context.Context, g control.Guest, path string, answer any) error {
	client, err := g.Client(ctx)
	if err != nil {
		return err
	}
	return client.Get(ctx, path, answer)
}

func status(ctx context.Context, g control.Guest) (supervisor.Status, error) {
	var s supervisor.Status
	return s, ask(ctx, g, "/status", &s)
}

func newExec() *cobra.Command {
	var guest command.Guest
	cmd := &cobra.Command{
		Use:                   "exec [OPTION]... [NAME [COMMAND [ARGUMENT]...]]",
		Short:                 "Run a command in a guest, without one a login shell",
		Example:               "  uml exec\n  uml exec debian nft list ruleset\n  uml exec -u www-data -w /srv debian tar x <files.tar",
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     completeNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := guest.TTY(); err != nil {
				return flagError(cmd, err)
			}
			guest.Args = args[min(len(args), 1):]
			code, err := guest.Exec(cmd.Context(), func(ctx context.Context) (*control.Client, error) {
				_, g, err := find(first(args))
				if err != nil {
					return nil, err
				}
				return g.Client(ctx)
			})
			if err != nil {
				return &exitError{command.ExitNotRun, err}
			}
			return exit(code)
		},
	}
	cmd.Flags().SetInterspersed(false)
	addOptions(cmd.Flags(), guest.Options())
	return cmd
}

func newStatus() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "status [NAME]",
		Short:             "Show how a guest is",
		Long:              "Show how a guest is. Without a name: the only one that runs.",
		Args:              arguments(cobra.MaximumNArgs(1)),
		ValidArgsFunction: completeNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			_, g, err := find(first(args))
			if err != nil {
				return err
			}
			s, err := status(cmd.Context(), g)
			if err != nil {
				return err
			}
			return command.Show(asJSON, s, func(w io.Writer) error { return command.WriteStatus(w, s) })
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print everything as JSON")
	return cmd
}

func newNet() *cobra.Command {
	var asJSON, all bool
	cmd := &cobra.Command{
		Use:               "net [NAME]",
		Short:             "Show the network of a guest",
		Long:              "Show forwarded ports, flows and counters of a guest. Without a name: the only one that runs.",
		Args:              arguments(cobra.MaximumNArgs(1)),
		ValidArgsFunction: completeNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			_, g, err := find(first(args))
			if err != nil {
				return err
			}
			var i slirp.Inspection
			if err := ask(cmd.Context(), g, "/net", &i); err != nil {
				return err
			}
			return command.Show(asJSON, i, func(w io.Writer) error { return command.WriteNet(w, i, all) })
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print everything as JSON")
	cmd.Flags().BoolVar(&all, "all", false, "print all flows, not only the ones that moved last")
	return cmd
}

// listed is a guest as ps shows it. The names in the JSON are stable.
type listed struct {
	control.Guest
	// State is that of its status, or "unknown" where the guest does not answer: it starts, ends, or hangs.
	State string `json:"state"`
	// Uptime is in seconds.
	Uptime float64 `json:"uptime"`
}

func newPS() *cobra.Command {
	var asJSON, quiet bool
	cmd := &cobra.Command{
		Use:   "ps",
		Short: "List the guests that run",
		Args:  arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			registry, err := openRegistry()
			if err != nil {
				return err
			}
			guests, err := registry.Guests()
			if err != nil {
				return err
			}
			if quiet {
				for _, g := range guests {
					fmt.Println(g.Name)
				}
				return nil
			}
			all := list(cmd.Context(), guests)
			return command.Show(asJSON, all, func(w io.Writer) error { return writeList(w, all) })
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print everything as JSON")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print names only")
	return cmd
}

// list asks all guests at once for their states.
func list(ctx context.Context, guests []control.Guest) []listed {
	all := make([]listed, len(guests))
	var asking sync.WaitGroup
	for i, g := range guests {
		asking.Go(func() {
			all[i] = listed{Guest: g, State: "unknown", Uptime: time.Since(g.Started).Seconds()}
			if s, err := status(ctx, g); err == nil {
				all[i].State = s.State
			}
		})
	}
	asking.Wait()
	return all
}

// writeList writes the table for people.
func writeList(out io.Writer, all []listed) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tSTATE\tPID\tUPTIME\tROOT\tPORTS")
	for _, g := range all {
		root := g.Rootfs
		if g.Disk != "" {
			root = g.Disk
		}
		ports := strings.Join(g.Ports, " ")
		if ports == "" {
			ports = "-"
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\n", g.Name, g.State, g.PID, command.ShortTime(g.Uptime), root, ports)
	}
	return w.Flush()
}

// The way down of a guest that is not to have the time that its STOP_TIMEOUT gives it: each signal takes the supervisor
// a rung lower, where it leaves itself 0.7 s at most.
const (
	rungGrace = time.Second
	rungs     = 3
)

func newStop() *cobra.Command {
	var seconds float64
	cmd := &cobra.Command{
		Use:   "stop [OPTION]... NAME...",
		Short: "Shut guests down, in order",
		Long: "Shut guests down in order: the init first, then by force, as STOP_TIMEOUT of each says. Prints the name and the\n" +
			"exit code of each.",
		Args:              arguments(cobra.MinimumNArgs(1)),
		ValidArgsFunction: completeNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			patience := time.Duration(-1)
			if cmd.Flags().Changed("time") {
				patience = time.Duration(seconds * float64(time.Second))
			}
			return forEach(args, func(g control.Guest, p *control.Process) (int, error) {
				if s, err := status(cmd.Context(), g); err == nil && s.State == supervisor.StateStopping && patience < 0 {
					return p.Wait(patience) // somebody else has begun: one more signal would break that off
				}
				return stop(p, patience)
			})
		},
	}
	cmd.Flags().Float64VarP(&seconds, "time", "t", 0, "`SECONDS` that its init may take; default is what STOP_TIMEOUT left it")
	return cmd
}

// stop stops one guest, and returns its exit code.
func stop(p *control.Process, patience time.Duration) (int, error) {
	for range rungs {
		if err := p.Signal(unix.SIGTERM); err != nil {
			return 0, err
		}
		code, err := p.Wait(patience)
		if err == nil || !control.IsTimeout(err) {
			return code, err
		}
		patience = rungGrace
	}
	return kill(p, unix.SIGTERM)
}

func newKill() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:               "kill [OPTION]... NAME...",
		Short:             "End guests at once, or send their supervisors a signal",
		Long:              "End guests at once: what they have not written is lost. With another signal: see Signals of the entrypoint.",
		Args:              arguments(cobra.MinimumNArgs(1)),
		ValidArgsFunction: completeNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			sig := parseSignal(name)
			if sig == 0 {
				return flagError(cmd, fmt.Errorf("--signal=%q: not a signal; write a name like TERM, or a number like 15", name))
			}
			return forEach(args, func(_ control.Guest, p *control.Process) (int, error) {
				if sig != unix.SIGKILL {
					return noCode, p.Signal(sig)
				}
				_, err := kill(p, sig)
				return 128 + int(unix.SIGKILL), err
			})
		},
	}
	cmd.Flags().StringVarP(&name, "signal", "s", "KILL", "the `SIGNAL`")
	return cmd
}

// parseSignal reads a signal's name, with or without SIG, or number; 0 is none.
func parseSignal(text string) unix.Signal {
	if n, err := strconv.Atoi(text); err == nil {
		const last = 64 // _NSIG in arch/x86/include/asm/signal.h
		if n < 0 || n > last {
			return 0
		}
		return unix.Signal(n)
	}
	return unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(text), "SIG"))
}

// killGrace is how long a supervisor gets for the last thing that it does.
const killGrace = 10 * time.Second

// kill sends a last signal, and waits. A supervisor that is killed takes the guest along.
func kill(p *control.Process, sig unix.Signal) (int, error) {
	if err := p.Signal(sig); err != nil {
		return 0, err
	}
	code, err := p.Wait(killGrace)
	if control.IsTimeout(err) {
		if err := p.Signal(unix.SIGKILL); err != nil {
			return 0, err
		}
		code, err = p.Wait(killGrace)
	}
	if sig == unix.SIGKILL && err != nil && !control.IsTimeout(err) {
		return 0, nil // killed, as it was to be
	}
	return code, err
}

// noCode is in the place of the exit code of a guest that has not ended.
const noCode = -1

// forEach does something to the guests of these names at the same time, once to each, and prints the name and the exit
// code of each.
func forEach(names []string, do func(control.Guest, *control.Process) (int, error)) error {
	registry, err := openRegistry()
	if err != nil {
		return err
	}
	slices.Sort(names)
	names = slices.Compact(names)
	errs := make([]error, len(names))
	var printing sync.Mutex
	var doing sync.WaitGroup
	for i, name := range names {
		doing.Go(func() {
			errs[i] = func() error {
				g, err := registry.Guest(name)
				if err != nil {
					return err
				}
				p, err := registry.Process(g)
				if err != nil {
					return err
				}
				defer p.Close()
				code, err := do(g, p)
				if err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				printing.Lock()
				defer printing.Unlock()
				if code == noCode {
					fmt.Println(name)
				} else {
					fmt.Printf("%s %d\n", name, code)
				}
				return nil
			}()
		})
	}
	doing.Wait()
	return errors.Join(errs...)
}
