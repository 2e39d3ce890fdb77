// Package supervisor boots one guest and sees it through: it starts the network, the console and the kernel in
// this order, turns signals into an orderly power-off, and reports how it all ended as an exit code. It is the
// only package that knows that both a kernel and a network exist.
package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"docker-usermode-linux/internal/agent"
	"docker-usermode-linux/internal/attach"
	"docker-usermode-linux/internal/balloon"
	"docker-usermode-linux/internal/boot"
	"docker-usermode-linux/internal/config"
	"docker-usermode-linux/internal/control"
	"docker-usermode-linux/internal/mconsole"
	"docker-usermode-linux/internal/slirp/dns"
	"docker-usermode-linux/internal/uml"
)

const (
	// exitFailed is the exit code when the guest could not be started at all.
	exitFailed = 1
	// exitSupervisor is the exit code when a command could not be run in the guest, as docker-run(1) has it.
	exitSupervisor = 125
	// exitPanic is the exit code after a panic of the guest's kernel, however its process then ended.
	exitPanic = 134

	// panicGrace is how long a kernel may take to die of its own panic.
	panicGrace = 2 * time.Second
	// drainTimeout bounds the wait for the last words on the console when the kernel is gone.
	drainTimeout = time.Second

	// kernelOverhead is what the container needs besides the guest's RAM: 20 MB of kernel image and page
	// tables, 15 MB of this process, and the stubs, a page table each.
	kernelOverhead = 64 << 20

	// sshPort is served by the agent where the guest has no SSH server.
	sshPort = 22

	resolvConf = "/etc/resolv.conf"
	hostsFile  = "/etc/hosts"
	umlID      = "guest"
)

// Job is what a guest is booted for.
type Job struct {
	// Args are raw kernel arguments.
	Args []string
	// Command, unless it is nil, is run in the guest, which ends with it.
	Command *Command
	// Dir is where each boot makes the directory of its run; "" is one of the places where everyone looks (package
	// control).
	Dir string
	// Started, unless it is nil, is called once at the first boot: all ports are bound, and the kernel has come far enough
	// to report something, or has run for foreignInitGrace without.
	Started func()
	// Notes are said in the log before all else.
	Notes []Note

	// kernel is what is known of a kernel of the user's.
	kernel uml.Features
}

// Note is something about the guest that was found out before it was booted.
type Note struct {
	Text string
	// Warning says that the user may not have meant it.
	Warning bool
}

// Command is the one command that a guest is run for.
type Command struct {
	agent.Command
	TTY attach.TTY
	// Init says that the guest's own init runs beside it.
	Init bool
	// Signals are the command's alone: to the guest they mean nothing. Of all others, which ask for the end, the first
	// one is the command's.
	Signals []os.Signal
}

// Run boots the guest that cfg describes and returns the exit code when it has ended. A guest that reboots is booted
// again. Signals are taken from signals until then; streams are the container's standard streams.
func Run(cfg config.Config, job Job, signals <-chan os.Signal, streams Streams) int {
	leaveCPU()
	log := newLogger(streams.Stderr, cfg.LogLevel, cfg.LogFormat)
	warn(cfg, job, log)
	root, err := holdRoot(cfg, job.Dir)
	if err != nil {
		tell(log, err)
		return exitFailed
	}
	defer root.release()
	in := newInput(streams.Stdin)
	if job.Started == nil {
		job.Started = func() {}
	}
	job.Started = sync.OnceFunc(job.Started)
	for look := log; ; look = log.Level(zerolog.ErrorLevel) { // what is to be said of the kernel is said once
		if job.kernel, err = lookAtKernel(cfg, job, look); err != nil {
			log.Error().Msg(err.Error())
			return exitSupervisor
		}
		end, err := run(cfg, job, root, signals, streams, in, log)
		if err != nil {
			tell(log, err)
		}
		if !end.restart {
			return end.code
		}
		log.Info().Msg("the guest reboots")
	}
}

// tell logs what went wrong, a line for each mistake.
func tell(log zerolog.Logger, err error) {
	for line := range strings.SplitSeq(err.Error(), "\n") {
		log.Error().Msg(line)
	}
}

// end is how a run of the guest ended.
type end struct {
	code int
	// restart says that the guest wants to be booted again.
	restart bool
}

// failed is the end of a guest that could not be started.
var failed = end{code: exitFailed}

// run is Run for one boot; in reads the stdin of streams for the console of each.
func run(
	cfg config.Config, job Job, root rootHold, signals <-chan os.Signal, streams Streams, in *input, log zerolog.Logger,
) (end, error) {
	dir, err := control.MakeRunDir(job.Dir)
	if err != nil {
		return failed, err
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup // what ends with ctx
	defer running.Wait()
	defer cancel()
	metrics, err := listenMetrics(ctx, cfg.NetMetrics, cfg.Options.Names) // before PORTS=all takes what is free
	if err != nil {
		return failed, err
	}
	oldDriver := !job.kernel.Patched // it may be
	network, err := openNetwork(cfg, dir, oldDriver, log)
	if err != nil {
		return failed, errors.Join(err, closeIf(metrics))
	}
	defer network.close()

	messages, err := newMessageLog(log)
	if err != nil {
		return failed, errors.Join(err, closeIf(metrics))
	}
	defer messages.close()
	link, err := openAgentLink(dir, oldDriver, log)
	if err != nil {
		return failed, errors.Join(err, closeIf(metrics))
	}
	defer link.close()
	ramSocket := filepath.Join(dir, "balloon")
	ram, err := balloon.New(ramSocket, oldDriver)
	if err != nil {
		return failed, errors.Join(err, closeIf(metrics))
	}
	defer ram.Close()
	g := &guest{
		link:        link,
		messages:    messages,
		log:         log,
		started:     time.Now(),
		stopTimeout: cfg.StopTimeout,
		ports:       expectedPorts(cfg.Ports),
		network:     network.network,
		ram:         ram,
		begun:       job.Started,
	}
	if err := serveControl(ctx, &running, dir, metrics, g); err != nil {
		return failed, err
	}

	notifications, err := mconsole.Listen(filepath.Join(dir, "notify"))
	if err != nil {
		return failed, err
	}
	defer notifications.Close()

	initramfs, err := boot.Initramfs(cfg.Initramfs, bootSettings(cfg, job, log), job.kernel.Modules, hooks(cfg.Hooks)...)
	if err != nil {
		return failed, err
	}
	defer initramfs.Close()

	consoleStreams := &streams
	if job.Command != nil {
		g.session = newSession(*job.Command, streams)
		consoleStreams = nil // they are the command's
	}
	con, err := openConsole(consoleStreams, in, cfg.LogFormat, messages)
	if err != nil {
		return failed, err
	}
	defer con.close()

	hostFS, err := confinement(cfg, dir)
	if err != nil {
		return failed, err
	}
	options := uml.Options{
		Path:       cfg.Kernel,
		Mem:        cfg.Mem,
		CPUs:       cfg.CPUs,
		Userspace:  cfg.Userspace.String(),
		Place:      cfg.CPUPlacement,
		HostFS:     hostFS,
		Disk:       cfg.Disk,
		DiskHeld:   root.oneLock(),
		Changes:    root.changes,
		Dir:        dir,
		ID:         umlID,
		Notify:     notifications.Path(),
		Initramfs:  initramfs,
		NIC:        network.nic,
		Port:       link.path,
		Balloon:    ramSocket,
		Console:    con.guest,
		NoTerminal: !con.answers(),
		Stderr:     messages.guest,
		Quiet:      cfg.LogLevel > zerolog.DebugLevel,
		Args:       job.Args,
	}

	con.nudge = func() { nudge(options.ConsoleSocket()) }
	kernel, err := uml.Start(options)
	if err != nil {
		return failed, err
	}
	g.kernel, g.console, g.initramfs = kernel, con, initramfs
	g.pid.Store(int64(kernel.PID()))
	g.client = mconsole.NewClient(options.ConsoleSocket())
	log.Info().Int("pid", kernel.PID()).Str("mem", config.FormatSize(cfg.Mem)).Int("cpus", cfg.CPUs).
		Msg("kernel started")
	log.Debug().Strs("args", kernel.Args).Msg("kernel arguments")
	con.start()
	late := time.AfterFunc(foreignInitGrace, func() {
		con.startInput()
		job.Started()
	})
	defer late.Stop()
	messages.start()

	network.start(ctx)
	running.Go(func() { link.run(ctx) })
	running.Go(func() { giveMemoryBack(ctx, ram, log) })
	running.Go(func() { keepTime(ctx, link, log) })
	var sessionEnded <-chan sessionEnd
	if g.session != nil {
		sessionEnded = g.session.ended
		go g.session.run(ctx, link) // not waited for: a read of stdin may not end
	}
	events := make(chan mconsole.Notification)
	running.Go(func() { receive(ctx, notifications, events) })

	exit := g.watch(signals, events, network.failed, sessionEnded)
	con.drain(drainTimeout)
	messages.drain(drainTimeout)
	return g.report(exit)
}

// confinement is the directory beyond which the guest sees no file of ours: its root, or where that is on a disk, an
// empty one in dir. Without any it could mount all that we may read.
func confinement(cfg config.Config, dir string) (string, error) {
	if cfg.Disk == "" {
		return cfg.Rootfs, nil
	}
	empty := filepath.Join(dir, "hostfs")
	if err := os.Mkdir(empty, 0o700); err != nil {
		return "", fmt.Errorf("make a directory for hostfs: %w", err)
	}
	return empty, nil
}

// giveMemoryBack serves the balloon until ctx ends or the guest is gone.
func giveMemoryBack(ctx context.Context, ram *balloon.Balloon, log zerolog.Logger) {
	defer context.AfterFunc(ctx, ram.Close)()
	if err := ram.Run(); err != nil {
		log.Error().Err(err).Msg("memory that the guest does not need is not given back any more")
	}
}

// nudge sends the kernel a request that does nothing, so that it looks at all that is there to be read.
func nudge(socket string) {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	_, _ = mconsole.NewClient(socket).Command(ctx, "version") // the user may have moved it
}

// receive passes on what the kernel announces, until ctx ends or there is no more, and closes events.
func receive(ctx context.Context, notifications *mconsole.Notifications, events chan<- mconsole.Notification) {
	defer close(events)
	for {
		event, err := notifications.Receive(ctx)
		if err != nil {
			return
		}
		select {
		case events <- event:
		case <-ctx.Done():
			return
		}
	}
}

// maxThreads is how many threads the bridge may have running. Several serve several busy connections; each idle one that
// is woken for a packet makes that packet wait.
const maxThreads = 4

// leaveCPU leaves one of the CPUs that we may use to the guest: a thread of ours that is woken there stops it, and on
// virtual machines the wake-up alone costs tens of microseconds. On 2 CPUs, with all of Go's work in one thread, round
// trips to a program in the guest took 281 to 314 µs instead of 328 to 375, in alternating runs (2026-11-23). A GOMAXPROCS
// of the user's stands.
func leaveCPU() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(max(1, min(runtime.GOMAXPROCS(0)-1, maxThreads)))
	}
}

// warn names what the user may not have meant.
func warn(cfg config.Config, job Job, log zerolog.Logger) {
	for _, note := range job.Notes {
		level := zerolog.InfoLevel
		if note.Warning {
			level = zerolog.WarnLevel
		}
		log.WithLevel(level).Msg(note.Text)
	}
	mem := cfg.Mem
	if n, ok := uml.MemArg(job.Args); ok {
		mem = n
	}
	if limit, ok := config.MemoryLimit(os.DirFS("/sys/fs/cgroup")); ok && mem+kernelOverhead > limit {
		log.Warn().Str("mem", config.FormatSize(mem)).Str("limit", config.FormatSize(limit)).
			Msgf("MEM does not fit into the container's memory limit: when the guest uses it, "+
				"the container is killed; lower MEM to %s or raise the limit (docker run -m)",
				config.FormatSize(limit-min(limit, kernelOverhead)))
	}
	warnRules(cfg.NetAllow, log)
	warnHooks(cfg.Hooks, log)
	switch {
	case !cfg.PasswordDefault || job.Command != nil: // a guest that is there for a command gets no default
	case opensLogin(cfg):
		log.Warn().Msgf("root gets no password: a port of the host leads to SSH from outside, and the default one is publicly known; "+
			"set %s or %s, or let the port be the host's alone, as with 127.0.0.1:2222:22",
			cfg.Options.Names.Of("ROOT_PASSWORD_FILE"), cfg.Options.Names.Of("SSH_AUTHORIZED_KEYS_FILE"))
	default:
		log.Warn().Msg("root may log in with the publicly known default password, unless it has one of its own; " +
			"set ROOT_PASSWORD, or SSH_AUTHORIZED_KEYS to allow keys alone")
	}
}

// lookAtKernel finds out what a kernel of the user's can do, and says in the log what it lacks. An error is that it cannot
// do what it would be booted for.
func lookAtKernel(cfg config.Config, job Job, log zerolog.Logger) (uml.Features, error) {
	if !cfg.ForeignKernel {
		return uml.Features{Patched: true}, nil
	}
	features, err := uml.Look(cfg.Kernel)
	if err != nil {
		log.Warn().Err(err).Msg("it is not known what this kernel can do")
		return features, nil
	}
	if err := features.CheckAgent(); err != nil && job.Command != nil {
		return features, fmt.Errorf("%s=%q: %w", cfg.Options.Names.Of("KERNEL"), cfg.Kernel, err)
	}
	for _, lack := range features.Lacks() {
		log.Warn().Str("kernel", cfg.Kernel).Msg(lack)
	}
	return features, nil
}

func bootSettings(cfg config.Config, job Job, log zerolog.Logger) boot.Settings {
	settings := boot.Settings{
		Hostname:        cfg.Hostname,
		RootPassword:    cfg.RootPassword,
		DefaultPassword: config.DefaultRootPassword,
		PasswordForced:  cfg.RootPassword != "" && !cfg.PasswordDefault,
		AuthorizedKeys:  cfg.AuthorizedKeys,
		Command:         job.Command != nil,
		NoInit:          job.Command != nil && !job.Command.Init,
		SSH:             forwardsTCP(cfg.Ports, sshPort),
		Ephemeral:       cfg.Ephemeral && cfg.Disk == "", // a disk's changes are kept from it by the kernel
	}
	switch {
	case !cfg.PasswordDefault:
	case job.Command != nil:
		// Nobody asked for a login, and nobody was warned of the public password: it is not written into the user's tree.
		// Where a boot before has left it, it is closed, for PORTS may lead there.
		settings.RootPassword, settings.LoginUnasked = "", true
	case opensLogin(cfg):
		settings.RootPassword = ""
	}
	if !cfg.Net {
		return settings
	}
	resolver, err := dns.ReadConfig(resolvConf)
	if err != nil {
		log.Warn().Err(err).Msg("names of search domains will not resolve in the guest")
	}
	settings.Network = guestNetwork(resolver)
	settings.Hosts = containerHosts(log)
	return settings
}
