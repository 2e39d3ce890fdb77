package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"docker-usermode-linux/internal/builtin"
	"docker-usermode-linux/internal/command"
	"docker-usermode-linux/internal/config"
	"docker-usermode-linux/internal/uml"
)

// settingKind is what an option does with its value on the way to the variable.
type settingKind int

const (
	plainKind  settingKind = iota
	listKind               // given several times it is one list
	pathKind               // what is relative is so to the working directory
	toggleKind             // on without a value
)

// setting is a variable of the environment, as an option.
type setting struct {
	variable string
	short    string
	kind     settingKind
	argument string
	about    string
}

// settings are all that a guest has. The names of the options are derived from the variables'.
var settings = []setting{
	{"ROOTFS", "", pathKind, "DIR", "directory with the guest's root file system, or a disk image that has it"},
	{"DISK", "", pathKind, "FILE", "disk image or block device, the same"},
	{"EPHEMERAL", "", toggleKind, "on|off", "keep nothing of what the guest writes"},
	{"MEM", "m", plainKind, "SIZE", "the guest's RAM, such as 512M; default 256M"},
	{"CPUS", "", plainKind, "N", "number of its CPUs; default auto: as many as we may use, 8 at most"},
	{"USERSPACE", "", plainKind, "MODE", "how its programs are run: seccomp, ptrace or auto; default auto"},
	{"CPU_PLACEMENT", "", plainKind, "auto|off", "keep its CPUs on CPUs of the host; default auto"},
	{"PORTS", "p", listKind, "PORTS", "ports of the host that lead into the guest: 8080:80, 53/udp, 127.0.0.1:2222:22; \"\" for none"},
	{"PORTS_SOURCE", "", plainKind, "SOURCE", "what the guest sees as their clients: client, gateway or proxy; default client"},
	{"NET", "", plainKind, "on|off", "off is a guest without a network; default on"},
	{"NET_ALLOW", "", listKind, "RULES", "what the guest may reach beyond the default: 10.0.0.0/8, gateway:5432"},
	{"NET_DENY", "", listKind, "RULES", "what it may not reach"},
	{"NET_MTU", "", plainKind, "BYTES", "MTU of its network interface; default 1500"},
	{"NET_PCAP", "", pathKind, "FILE", "file that gets all its packets, for Wireshark"},
	{"NET_METRICS", "", plainKind, "ADDRESS", "where Prometheus finds metrics, such as 127.0.0.1:9100"},
	{"ROOT_PASSWORD", "", plainKind, "PASSWORD", "root's password, which other users see in the list of processes: better in a file"},
	{"ROOT_PASSWORD_FILE", "", pathKind, "FILE", "file with root's password"},
	{"SSH_AUTHORIZED_KEYS", "", plainKind, "KEYS", "public keys that may log in as root"},
	{"SSH_AUTHORIZED_KEYS_FILE", "", pathKind, "FILE", "file with such keys"},
	{"HOSTNAME", "", plainKind, "NAME", "host name of the guest; default is its name"},
	{"STOP_TIMEOUT", "", plainKind, "TIME", "how long its init may take to shut down: 30, 1m30s; default 6.5s"},
	{"HOOKS", "", pathKind, "DIR", "directory with scripts that run in the guest before its init"},
	{"LOG_LEVEL", "", plainKind, "LEVEL", "trace, debug, info, warn or error; default info"},
	{"LOG_FORMAT", "", plainKind, "FORMAT", "console or json; default console"},
	{"KERNEL", "", pathKind, "FILE", "the guest's kernel; default is the one in this program"},
	{"INITRAMFS", "", pathKind, "FILE", "the archive with the guest stage; default is the one in this program"},
}

// option is the name of a setting's option, without dashes.
func (s setting) option() string { return strings.ReplaceAll(strings.ToLower(s.variable), "_", "-") }

// settingValue is the option's value.
type settingValue struct {
	setting
	text  string
	given bool
}

func (v *settingValue) String() string { return v.text }
func (v *settingValue) Type() string   { return v.argument }

func (v *settingValue) Set(s string) error {
	switch {
	case v.kind == pathKind && s != "":
		abs, err := filepath.Abs(s)
		if err != nil {
			return err
		}
		s = abs
	case v.kind == listKind && v.given:
		s = v.text + " " + s
	}
	v.text, v.given = s, true
	return nil
}

// guestSettings are the options of a command that boots a guest.
type guestSettings []*settingValue

func addSettings(flags *pflag.FlagSet) guestSettings {
	var all guestSettings
	for _, s := range settings {
		v := &settingValue{setting: s}
		f := flags.VarPF(v, s.option(), s.short, fmt.Sprintf("%s (%s)", s.about, s.variable))
		if s.kind == toggleKind {
			f.NoOptDefVal = "on"
		}
		all = append(all, v)
	}
	return all
}

// given says whether there is an option for a variable.
func (all guestSettings) given(variable string) bool {
	return slices.ContainsFunc(all, func(v *settingValue) bool { return v.variable == variable && v.given })
}

// value is what was given for a variable, by the option or else by itself.
func (all guestSettings) value(variable string) string {
	for _, v := range all {
		if v.variable == variable && v.given {
			return v.text
		}
	}
	return os.Getenv(variable)
}

// checkHealth is an error where the user's kernel cannot have the guest tell its health.
func (all guestSettings) checkHealth() error {
	kernel := all.value("KERNEL")
	if kernel == "" {
		return nil
	}
	features, err := uml.Look(kernel)
	if err != nil {
		return nil // what is wrong is told at the start
	}
	if err := features.CheckAgent(); err != nil {
		return fmt.Errorf("--wait: %w", err)
	}
	return nil
}

// option is what was given for a variable by the option.
func (all guestSettings) option(variable string) string {
	for _, v := range all {
		if v.variable == variable && v.given {
			return v.text
		}
	}
	return ""
}

// root is where the guest's root file system is, as far as that was given: by an option before all.
func (all guestSettings) root() string {
	return cmp.Or(all.option("DISK"), all.option("ROOTFS"), os.Getenv("DISK"), os.Getenv("ROOTFS"))
}

// chooseRoot has the options for the root file system win over both variables.
func (all guestSettings) chooseRoot() error {
	disk, dir := all.option("DISK"), all.option("ROOTFS")
	switch {
	case disk != "" && dir != "":
		return fmt.Errorf("--disk=%q and --rootfs=%q are both given: a guest has one root file system, and either option takes it",
			disk, dir)
	case dir != "":
		return os.Unsetenv("DISK")
	}
	return nil
}

// diskForRootfs takes a file in the place of the directory for what it is, so that a root file system has one option,
// whatever holds it.
func diskForRootfs(names config.Names) error {
	path := os.Getenv("ROOTFS")
	if info, err := os.Stat(path); err != nil || info.IsDir() || os.Getenv("DISK") != "" {
		return nil // what is wrong is told later
	}
	names["DISK"] = names.Of("ROOTFS")
	return errors.Join(os.Setenv("DISK", path), os.Unsetenv("ROOTFS"))
}

// apply makes the options variables, and returns what the user calls each setting: as he gave it, by an option before
// all.
func (all guestSettings) apply() (config.Names, error) {
	names := config.Names{}
	for _, v := range all {
		if v.given {
			if err := os.Setenv(v.variable, v.text); err != nil {
				return nil, fmt.Errorf("--%s=%q: %w", v.option(), v.text, err)
			}
		}
		if _, set := os.LookupEnv(v.variable); v.given || !set {
			names[v.variable] = "--" + v.option()
		}
	}
	return names, nil
}

// defaultPorts leads to the guest's SSH server.
const defaultPorts = "127.0.0.1:2222:22"

// load turns the options and the environment into the configuration of a guest. defaults are for variables that are
// unset when the options count.
func (all guestSettings) load(defaults func() map[string]string) (config.Config, error) {
	names, err := all.apply()
	if err != nil {
		return config.Config{}, err
	}
	if err := errors.Join(all.chooseRoot(), diskForRootfs(names)); err != nil {
		return config.Config{}, err
	}
	command.SetDefaults(defaults())
	cfg, err := config.LoadWith(config.Options{Host: true, Names: names})
	err = errors.Join(err, cfg.CheckFiles())
	if os.Getenv("ROOTFS") == "" && os.Getenv("DISK") == "" {
		err = errors.Join(err, errors.New("a guest needs a root file system: give --rootfs DIR or --disk FILE; "+
			"uml rootfs makes one"))
	}
	return cfg, errors.Join(err, addBuiltin(&cfg))
}

// loadKernel is load for who wants to know about the kernel alone.
func (all guestSettings) loadKernel() (config.Config, error) {
	names, err := all.apply()
	if err != nil {
		return config.Config{}, err
	}
	cfg := config.Config{Kernel: os.Getenv("KERNEL"), Options: config.Options{Host: true, Names: names}}
	if cfg.Kernel == "" && builtin.Has() {
		cfg.Kernel, err = builtin.Kernel()
		return cfg, err
	}
	if cfg.Kernel == "" {
		return cfg, errNoKernel
	}
	return cfg, cfg.CheckFiles()
}

// errNoKernel is for a program that was built without.
var errNoKernel = errors.New("there is no kernel in this program, it was not built by make host: give --kernel FILE and --initramfs FILE")

// addBuiltin puts in the kernel and the initramfs of this program where the user has given none.
func addBuiltin(cfg *config.Config) error {
	if !builtin.Has() && (os.Getenv("KERNEL") == "" || os.Getenv("INITRAMFS") == "") {
		return errNoKernel
	}
	var err error
	if os.Getenv("KERNEL") == "" {
		if cfg.Kernel, err = builtin.Kernel(); err != nil {
			return err
		}
	}
	if os.Getenv("INITRAMFS") == "" {
		if cfg.Initramfs, err = builtin.Initramfs(); err != nil {
			return err
		}
	}
	return nil
}

// upDefaults are the variables of a guest of its own.
func upDefaults() map[string]string {
	if strings.EqualFold(os.Getenv("NET"), "off") {
		return nil // nothing to forward
	}
	return map[string]string{"PORTS": defaultPorts}
}

// runDefaults are those of a guest that is there for one command.
func runDefaults() map[string]string { return command.RunDefaults }

// rootPath is where the guest's root file system is.
func rootPath(cfg config.Config) string { return cmp.Or(cfg.Disk, cfg.Rootfs) }
