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
	"strings"
	"time"

	"github.com/rs/zerolog"

	"docker-usermode-linux/internal/boot"
	"docker-usermode-linux/internal/config"
	"docker-usermode-linux/internal/mconsole"
	"docker-usermode-linux/internal/slirp"
	"docker-usermode-linux/internal/slirp/dns"
	"docker-usermode-linux/internal/uml"
)

const (
	// exitFailed is the exit code when the guest could not be started at all.
	exitFailed = 1
	// exitPanic is the exit code after a panic of the guest's kernel, however its process then ended.
	exitPanic = 134

	// panicGrace is how long a kernel may take to die of its own panic.
	panicGrace = 2 * time.Second
	// drainTimeout bounds the wait for the last words on the console when the kernel is gone.
	drainTimeout = time.Second

	// kernelOverhead is what the container needs besides the guest's RAM: 20 MB of kernel image and page
	// tables, 15 MB of this process, and the stubs, a page table each.
	kernelOverhead = 64 << 20

	resolvConf = "/etc/resolv.conf"
	umlID      = "guest"
)

// Run boots the guest that cfg describes, with args as raw kernel arguments, and returns the exit code when it
// has ended. Signals are taken from signals until then; streams are the container's standard streams.
func Run(cfg config.Config, args []string, signals <-chan os.Signal, streams Streams) int {
	log := newLogger(streams.Stderr, cfg.LogLevel, cfg.LogFormat)
	code, err := run(cfg, args, signals, streams, log)
	if err != nil {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			log.Error().Msg(line)
		}
	}
	return code
}

func run(cfg config.Config, args []string, signals <-chan os.Signal, streams Streams, log zerolog.Logger) (int, error) {
	warn(cfg, args, log)

	hostSocket, guestSocket, err := slirp.SocketPair()
	if err != nil {
		return exitFailed, err
	}
	defer guestSocket.Close()
	network, err := slirp.New(slirp.Options{
		Socket:     hostSocket,
		MTU:        slirp.MTU,
		Forwards:   forwards(cfg.Ports),
		ResolvConf: resolvConf,
		Log:        log,
	})
	if err != nil {
		return exitFailed, err
	}
	defer network.Close()

	dir, err := runDir()
	if err != nil {
		return exitFailed, err
	}
	defer os.RemoveAll(dir)
	notifications, err := mconsole.Listen(filepath.Join(dir, "notify"))
	if err != nil {
		return exitFailed, err
	}
	defer notifications.Close()

	settings, err := bootSettings(cfg, log)
	if err != nil {
		return exitFailed, err
	}
	initramfs, err := boot.Initramfs(cfg.Initramfs, settings)
	if err != nil {
		return exitFailed, err
	}
	defer initramfs.Close()

	con, err := openConsole(streams)
	if err != nil {
		return exitFailed, err
	}
	defer con.close()
	messages, err := newMessageLog(log)
	if err != nil {
		return exitFailed, err
	}
	defer messages.close()

	options := uml.Options{
		Path:      cfg.Kernel,
		Mem:       cfg.Mem,
		HostFS:    cfg.Rootfs,
		Dir:       dir,
		ID:        umlID,
		Notify:    notifications.Path(),
		Initramfs: initramfs,
		NIC:       &uml.NIC{Socket: guestSocket, MAC: slirp.GuestMAC, MTU: slirp.MTU},
		Console:   con.guest,
		Stderr:    messages.guest,
		Args:      args,
	}

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	kernel, err := uml.Start(options)
	if err != nil {
		return exitFailed, err
	}
	g := &guest{
		kernel:    kernel,
		client:    mconsole.NewClient(options.ConsoleSocket()),
		console:   con,
		initramfs: initramfs,
		log:       log,
		started:   time.Now(),
	}
	log.Info().Int("pid", kernel.PID()).Str("mem", formatSize(cfg.Mem)).Msg("kernel started")
	log.Debug().Strs("args", kernel.Args).Msg("kernel arguments")
	// The kernel has its own copies now; ours would keep its ends from ever closing.
	guestSocket.Close()
	con.start()
	time.AfterFunc(foreignInitGrace, con.startInput)
	messages.start()

	networkDone := make(chan error, 1)
	go func() { networkDone <- network.Run(ctx) }()
	events := make(chan mconsole.Notification)
	go func() {
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
	}()

	exit := g.watch(signals, events, networkDone)
	con.drain(drainTimeout)
	messages.drain(drainTimeout)
	return g.report(exit, messages)
}

// warn names what the user may not have meant.
func warn(cfg config.Config, args []string, log zerolog.Logger) {
	mem := cfg.Mem
	if n, ok := uml.MemArg(args); ok {
		mem = n
	}
	if limit, ok := config.MemoryLimit(os.DirFS("/sys/fs/cgroup")); ok && mem+kernelOverhead > limit {
		log.Warn().Str("mem", formatSize(mem)).Str("limit", formatSize(limit)).
			Msgf("MEM does not fit into the container's memory limit: when the guest uses it, "+
				"the container is killed; lower MEM to %s or raise the limit (docker run -m)",
				formatSize(limit-min(limit, kernelOverhead)))
	}
	if cfg.PasswordDefault {
		log.Warn().Msg("root may log in with the publicly known default password, unless it has one of its own; " +
			"set ROOT_PASSWORD, or SSH_AUTHORIZED_KEYS to allow keys alone")
	}
}

func bootSettings(cfg config.Config, log zerolog.Logger) (boot.Settings, error) {
	resolver, err := dns.ReadConfig(resolvConf)
	if err != nil {
		log.Warn().Err(err).Msg("names of search domains will not resolve in the guest")
	}
	return boot.Settings{
		Hostname:        cfg.Hostname,
		RootPassword:    cfg.RootPassword,
		DefaultPassword: config.DefaultRootPassword,
		PasswordForced:  cfg.RootPassword != "" && !cfg.PasswordDefault,
		AuthorizedKeys:  cfg.AuthorizedKeys,
		Network:         guestNetwork(resolver),
	}, nil
}

// runDir makes the directory for the management console's sockets. /dev/shm can be written even in a
// container with a read-only root.
func runDir() (string, error) {
	var errs []error
	for _, parent := range []string{os.Getenv("XDG_RUNTIME_DIR"), "/run", os.TempDir(), "/dev/shm"} {
		if parent == "" {
			continue
		}
		dir, err := os.MkdirTemp(parent, "uml-")
		if err == nil {
			return dir, nil
		}
		errs = append(errs, err)
	}
	return "", fmt.Errorf("no writable directory for the kernel's sockets: %w", errors.Join(errs...))
}

// formatSize writes bytes as MEM does, exactly.
func formatSize(n uint64) string {
	for _, unit := range []struct {
		shift  int
		suffix string
	}{{30, "G"}, {20, "M"}, {10, "K"}} {
		if n != 0 && n&(1<<unit.shift-1) == 0 {
			return fmt.Sprintf("%d%s", n>>unit.shift, unit.suffix)
		}
	}
	return fmt.Sprint(n)
}
