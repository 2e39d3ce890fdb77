package command

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"strconv"
	"strings"

	"docker-usermode-linux/internal/agent"
	"docker-usermode-linux/internal/attach"
	"docker-usermode-linux/internal/control"
	"docker-usermode-linux/internal/supervisor"
)

// Guest is a command for the guest, as the options of exec and run describe it.
type Guest struct {
	agent.Command
	// Init is run's: the guest's own init runs beside the command.
	Init bool

	force, never, interactive bool
}

// Option is one option of a command, for package flag or any other with the same idea of a value.
type Option struct {
	// Long and Short are its names, without dashes.
	Long, Short string
	// Argument is the name of its value in the help; empty: it is a switch.
	Argument string
	About    string
	Value    Value
}

// Value is flag.Value, and pflag.Value.
type Value interface {
	String() string
	Set(s string) error
	Type() string
	IsBoolFlag() bool
}

// Options are those that exec and run have in common.
func (g *Guest) Options() []Option {
	return []Option{
		{"user", "u", "USER[:GROUP]", "run as that user, names or numbers; root without it", (*text)(&g.User)},
		{"workdir", "w", "DIR", "run in that directory of the guest", (*text)(&g.Dir)},
		{
			"env", "e", "NAME[=VALUE]", "set a variable; without a value that of the same name here; may be repeated",
			(*envList)(&g.Env),
		},
		{"tty", "t", "", "a terminal even where stdin and stdout are none", (*toggle)(&g.force)},
		{"no-tty", "T", "", "no terminal even where they are one", (*toggle)(&g.never)},
		{"interactive", "i", "", "ignored: stdin is always passed on", (*toggle)(&g.interactive)},
	}
}

// InitOption is run's own.
func (g *Guest) InitOption() Option {
	return Option{"init", "", "", "start the guest's own init beside the command", (*toggle)(&g.Init)}
}

// TTY says whether the command gets a terminal.
func (g *Guest) TTY() (attach.TTY, error) {
	switch {
	case g.force && g.never:
		return attach.Auto, errors.New("--tty and --no-tty exclude each other")
	case g.force:
		return attach.Force, nil
	case g.never:
		return attach.Never, nil
	}
	return attach.Auto, nil
}

// Job boots a guest for the command alone.
func (g *Guest) Job() (supervisor.Job, error) {
	tty, err := g.TTY()
	if err != nil {
		return supervisor.Job{}, err
	}
	return supervisor.Job{Command: &supervisor.Command{
		Command: g.Command, TTY: tty, Init: g.Init, Signals: commandSignals(),
	}}, nil
}

// Exec runs the command in a guest that runs, with our standard streams, and returns its exit code. find looks for the
// guest; signals that come meanwhile are the command's.
func (g *Guest) Exec(ctx context.Context, find func(context.Context) (*control.Client, error)) (int, error) {
	tty, err := g.TTY()
	if err != nil {
		return 0, err
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, forwardedSignals...)
	guest, err := find(ctx)
	if err != nil {
		return 0, err
	}
	conn, err := guest.Dial(ctx, control.ExecSocket)
	if err != nil {
		return 0, err
	}
	client, err := agent.Dial(ctx, conn)
	if err != nil {
		return 0, err
	}
	return attach.Run(ctx, client, g.Command, tty, attach.Streams(Streams()), signals)
}

// text is a Value that is any text.
type text string

func (t *text) String() string     { return string(*t) }
func (t *text) Set(s string) error { *t = text(s); return nil }
func (t *text) Type() string       { return "string" }
func (t *text) IsBoolFlag() bool   { return false }

// toggle is a Value that is true or false.
type toggle bool

func (t *toggle) String() string { return strconv.FormatBool(bool(*t)) }

func (t *toggle) Set(s string) error {
	v, err := strconv.ParseBool(s)
	if err != nil {
		return errors.New("parse error") // as package flag says
	}
	*t = toggle(v)
	return nil
}

func (t *toggle) Type() string     { return "bool" }
func (t *toggle) IsBoolFlag() bool { return true }

// envList is a list of variables: NAME=VALUE, or NAME for one that is set here.
type envList []string

func (l *envList) String() string { return strings.Join(*l, " ") }

func (l *envList) Set(s string) error {
	name, _, given := strings.Cut(s, "=")
	if name == "" {
		return errors.New("not NAME=VALUE")
	}
	if !given {
		value, ok := os.LookupEnv(name)
		if !ok {
			return nil // as docker does
		}
		s = name + "=" + value
	}
	*l = append(*l, s)
	return nil
}

func (l *envList) Type() string     { return "strings" }
func (l *envList) IsBoolFlag() bool { return false }
