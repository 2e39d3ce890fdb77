// Package config turns the environment of the container into a Config: parsed once at start-up, complete, and
// immutable from then on.
//
// Every mistake is reported at once, one line each, and every line names the setting, its value and the mend, and
// the item and the character in a list; the value of a secret is never part of it. A setting that is set to "" counts
// as unset, because compose files write "" for a variable that the user's environment lacks. PORTS is the exception:
// there "" means that no port is forwarded.
package config

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/kelseyhightower/envconfig"
	"github.com/rs/zerolog"
)

// DefaultRootPassword is the documented password of root in the guest. It holds only as long as the user gives
// neither a password nor keys.
const DefaultRootPassword = "voidlinux"

// Defaults of settings that are unset or empty; that of PORTS is only for unset.
const (
	defaultMem       = "256M"
	defaultCPUs      = "auto"
	defaultUserspace = "auto"
	defaultPlacement = "auto"
	defaultNet       = "on"
	defaultPorts     = "22"
	defaultSource    = "client"
	defaultMTU       = "1500"
	defaultStop      = "6.5s"
	defaultHooks     = "/docker-entrypoint.d"
	defaultLogLevel  = "info"
	defaultLogFormat = "console"
	defaultRootfs    = "/rootfs"
	defaultKernel    = "/linux"
	defaultInitramfs = "/initramfs"
	defaultEphemeral = "off"
)

const (
	// MinMem is the smallest MEM, in bytes. Below it a boot does not fail with a message but with the
	// out-of-memory killer somewhere in the guest: text, data and page tables of the kernel take about 12 MiB,
	// the unpacked initramfs and its Go init about 10 MiB, and the guest's own init has to fit beside them.
	MinMem = 32 << 20

	// pageSize is the granularity of the guest's RAM in bytes (UM_KERN_PAGE_SIZE, arch/um).
	pageSize = 4096

	// maxPassword is the longest password in bytes: crypt(3)'s CRYPT_MAX_PASSPHRASE_SIZE is 512 with the NUL.
	maxPassword = 511
)

// Config is what the user asked for. Nobody writes to it after Load, slices included.
type Config struct {
	// Mem is the guest's RAM in bytes: a multiple of 4096, at least MinMem.
	Mem uint64
	// CPUs is the number of the guest's CPUs, 1 to MaxCPUs.
	CPUs int
	// Userspace is how the guest's programs are run.
	Userspace Userspace
	// CPUPlacement says that the guest's CPUs are kept on CPUs of the host.
	CPUPlacement bool
	// Net says that the guest has a network. Without one nothing is forwarded, and all that begins with Net is empty.
	Net bool
	// Ports are forwarded from the container into the guest. Empty means none.
	Ports []Forward
	// PortsSource is what the guest takes for the client of a forwarded port.
	PortsSource Source
	// NetAllow opens what the guest would not reach, NetDeny closes what it would. NetAllow wins.
	NetAllow, NetDeny []NetRule
	// NetPcap is the absolute, clean path of the file that gets the packets of the guest's NIC, or ""; see CheckFiles.
	NetPcap string
	// NetMTU is the MTU of the guest's NIC in bytes, 1280 to 65520.
	NetMTU int
	// NetMetrics is where the metrics are served. Port 0 means nowhere; an invalid Addr beside a port means all addresses,
	// IPv4 and IPv6, as in Forward.HostAddr.
	NetMetrics netip.AddrPort
	// RootPassword in clear text. "" means that root cannot log in with a password.
	RootPassword string `json:"-"`
	// PasswordDefault says that RootPassword is DefaultRootPassword because the user chose nothing.
	PasswordDefault bool
	// AuthorizedKeys are valid lines of an authorized_keys file, options and comments included.
	AuthorizedKeys []string
	// Hostname of the guest. "" when the user gave none and the container's own is unusable.
	Hostname string
	// StopTimeout is how long the guest's init may take for an orderly shutdown, 0 to 1 h. With 0 it is not asked.
	StopTimeout time.Duration
	// Hooks are the scripts that run in the guest.
	Hooks Hooks
	// LogLevel is one of trace, debug, info, warn, error.
	LogLevel zerolog.Level
	// LogFormat is how log lines look.
	LogFormat LogFormat
	// Rootfs, Kernel and Initramfs are absolute, clean paths; see CheckFiles. Rootfs is "" where a host's user gave none.
	Rootfs, Kernel, Initramfs string
	// ForeignKernel says that the user chose Kernel.
	ForeignKernel bool
	// Disk is the absolute, clean path of an image or a block device with the guest's root file system, or "": it is
	// Rootfs.
	Disk string
	// Ephemeral says that what the guest writes is gone when it ends.
	Ephemeral bool
	// Options are those of LoadWith.
	Options Options
}

// Options are what differs between the programs that load their settings.
type Options struct {
	// Host says that there is no container around us: what an image has at a fixed place (ROOTFS, KERNEL, INITRAMFS,
	// HOOKS) has no default.
	Host bool
	// Names are what the user calls a setting that he did not give as a variable, such as --mem for MEM.
	Names Names
}

// Names are the names of settings in messages, where they are not the variables'.
type Names map[string]string

// Of is the name of a setting.
func (n Names) Of(setting string) string { return cmp.Or(n[setting], setting) }

// String is the Config for a log or a bug report, without its secrets.
func (c Config) String() string {
	password := "off"
	switch {
	case c.PasswordDefault:
		password = "default"
	case c.RootPassword != "":
		password = "set"
	}
	return fmt.Sprintf("mem=%s cpus=%d userspace=%s placement=%v net=%v ports=%v source=%s allow=%v deny=%v mtu=%d pcap=%s metrics=%s "+
		"password=%s keys=%d hostname=%s stop=%v hooks=%d+%d log=%s/%s rootfs=%s disk=%s ephemeral=%v kernel=%s initramfs=%s",
		FormatSize(c.Mem), c.CPUs, c.Userspace, c.CPUPlacement, c.Net, c.Ports, c.PortsSource, c.NetAllow, c.NetDeny, c.NetMTU, c.NetPcap,
		formatMetrics(c.NetMetrics), password, len(c.AuthorizedKeys), c.Hostname, c.StopTimeout, len(c.Hooks.Start), len(c.Hooks.Stop), c.LogLevel, c.LogFormat,
		c.Rootfs, c.Disk, c.Ephemeral, c.Kernel, c.Initramfs)
}

// GoString keeps the password out of %#v, too.
func (c Config) GoString() string { return "config.Config{" + c.String() + "}" }

// LogFormat is how the entrypoint writes its own log.
type LogFormat uint8

const (
	// Console is one readable line per event.
	Console LogFormat = iota
	// JSON is one JSON object per line.
	JSON
)

// String is the format as LOG_FORMAT spells it.
func (f LogFormat) String() string {
	if f == JSON {
		return "json"
	}
	return "console"
}

// environment is the raw text of the settings. All fields are strings, so that envconfig, which stops at the
// first field that does not convert, has nothing to stop at.
type environment struct {
	Mem            string  `envconfig:"MEM"`
	CPUs           string  `envconfig:"CPUS"`
	Userspace      string  `envconfig:"USERSPACE"`
	CPUPlacement   string  `envconfig:"CPU_PLACEMENT"`
	Net            string  `envconfig:"NET"`
	Ports          *string `envconfig:"PORTS"` // nil is unset
	PortsSource    string  `envconfig:"PORTS_SOURCE"`
	NetAllow       string  `envconfig:"NET_ALLOW"`
	NetDeny        string  `envconfig:"NET_DENY"`
	NetPcap        string  `envconfig:"NET_PCAP"`
	NetMTU         string  `envconfig:"NET_MTU"`
	NetMetrics     string  `envconfig:"NET_METRICS"`
	RootPassword   string  `envconfig:"ROOT_PASSWORD"`
	PasswordFile   string  `envconfig:"ROOT_PASSWORD_FILE"`
	AuthorizedKeys string  `envconfig:"SSH_AUTHORIZED_KEYS"`
	KeyFile        string  `envconfig:"SSH_AUTHORIZED_KEYS_FILE"`
	Hostname       string  `envconfig:"HOSTNAME"`
	StopTimeout    string  `envconfig:"STOP_TIMEOUT"`
	Hooks          string  `envconfig:"HOOKS"`
	LogLevel       string  `envconfig:"LOG_LEVEL"`
	LogFormat      string  `envconfig:"LOG_FORMAT"`
	Rootfs         string  `envconfig:"ROOTFS"`
	Disk           string  `envconfig:"DISK"`
	Ephemeral      string  `envconfig:"EPHEMERAL"`
	Kernel         string  `envconfig:"KERNEL"`
	Initramfs      string  `envconfig:"INITRAMFS"`
}

// Load reads the process's environment, and the files with password, keys and hooks that it may name. The error joins
// every problem that there is, one line each.
//
// ROOTFS, KERNEL and INITRAMFS are only parsed; CheckFiles looks at the files. On an error the Config holds the
// settings that were valid, so that the problems which CheckFiles finds can be shown in the same go.
func Load() (Config, error) { return LoadWith(Options{}) }

// LoadWith is Load for a program other than a container's.
func LoadWith(o Options) (Config, error) {
	var env environment
	if err := envconfig.Process("", &env); err != nil {
		return Config{}, fmt.Errorf("read the environment: %w", err)
	}
	return env.parse(o)
}

// Settings are the names of all variables that Load looks at.
func Settings() []string {
	var names []string
	for field := range reflect.TypeFor[environment]().Fields() {
		names = append(names, field.Tag.Get("envconfig"))
	}
	return names
}

func (env environment) parse(o Options) (Config, error) {
	var (
		c        = Config{Options: o}
		problems []error
	)
	// check notes what is wrong with a setting whose value may be shown.
	check := func(name, value string, errs ...error) {
		for _, err := range errs {
			if err != nil {
				problems = append(problems, fmt.Errorf("%s=%q: %w", o.Names.Of(name), value, err))
			}
		}
	}
	// place is the container's place for something that a host has nowhere in particular.
	place := func(container string) string {
		if o.Host {
			return ""
		}
		return container
	}

	var err error
	c.Mem, err = parseMem(cmp.Or(env.Mem, defaultMem))
	check("MEM", env.Mem, err)
	c.Userspace, err = parseUserspace(cmp.Or(env.Userspace, defaultUserspace))
	check("USERSPACE", env.Userspace, err)
	c.CPUs, err = parseCPUs(cmp.Or(env.CPUs, defaultCPUs), c.Userspace, containerCPUs)
	check("CPUS", env.CPUs, err)
	c.CPUPlacement, err = parseSwitch(cmp.Or(env.CPUPlacement, defaultPlacement))
	check("CPU_PLACEMENT", env.CPUPlacement, err)

	env.parseNetwork(&c, check)

	if c.RootPassword, err = parsePassword(env.RootPassword, env.PasswordFile, o.Names); err != nil {
		problems = append(problems, err)
	}
	var errs []error
	if c.AuthorizedKeys, errs = env.parseKeys(o.Names); errs != nil {
		problems = append(problems, errs...)
	}
	if env.RootPassword == "" && env.PasswordFile == "" && env.AuthorizedKeys == "" && env.KeyFile == "" {
		c.RootPassword, c.PasswordDefault = DefaultRootPassword, true
	}

	c.Hostname, err = parseHostname(env.Hostname)
	check("HOSTNAME", env.Hostname, err)
	c.StopTimeout, err = parseStopTimeout(cmp.Or(env.StopTimeout, defaultStop))
	check("STOP_TIMEOUT", env.StopTimeout, err)
	if env.Hooks != "" || !o.Host {
		c.Hooks, errs = parseHooks(env.Hooks)
		check("HOOKS", cmp.Or(env.Hooks, defaultHooks), errs...)
	}
	c.LogLevel, err = parseLogLevel(cmp.Or(env.LogLevel, defaultLogLevel))
	check("LOG_LEVEL", env.LogLevel, err)
	c.LogFormat, err = parseLogFormat(cmp.Or(env.LogFormat, defaultLogFormat))
	check("LOG_FORMAT", env.LogFormat, err)

	for _, file := range []struct {
		name, value, container string
		parse                  func(string) (string, error)
		path                   *string
	}{
		{"ROOTFS", env.Rootfs, defaultRootfs, parseArgPath, &c.Rootfs},
		{"DISK", env.Disk, "", parseDiskPath, &c.Disk},
		{"KERNEL", env.Kernel, defaultKernel, parsePath, &c.Kernel},
		{"INITRAMFS", env.Initramfs, defaultInitramfs, parsePath, &c.Initramfs},
	} {
		if path := cmp.Or(file.value, place(file.container)); path != "" {
			*file.path, err = file.parse(path)
			check(file.name, file.value, err)
		}
	}
	c.ForeignKernel = env.Kernel != ""
	c.Ephemeral, err = parseOnOff(cmp.Or(env.Ephemeral, defaultEphemeral))
	check("EPHEMERAL", env.Ephemeral, err)

	return c, errors.Join(problems...)
}

// parseKeys reads SSH_AUTHORIZED_KEYS or SSH_AUTHORIZED_KEYS_FILE.
func (env environment) parseKeys(names Names) (keys []string, problems []error) {
	const setting = "SSH_AUTHORIZED_KEYS"
	name := names.Of(setting)
	var errs []error
	switch {
	case env.AuthorizedKeys != "" && env.KeyFile != "":
		return nil, []error{bothSet(setting, names)}
	case env.KeyFile != "":
		name = names.Of(setting + "_FILE")
		keys, errs = parseKeyFile(env.KeyFile)
	default:
		keys, errs = parseKeys(env.AuthorizedKeys)
	}
	for _, err := range errs {
		problems = append(problems, fmt.Errorf("%s%w", name, err))
	}
	return keys, problems
}

// parseMem is ParseSize with what a guest's RAM must satisfy besides.
func parseMem(s string) (uint64, error) {
	size, err := ParseSize(s)
	if err != nil {
		return 0, err
	}
	if size < MinMem {
		return 0, fmt.Errorf("too little to boot with; write at least %s", FormatSize(MinMem))
	}
	if rest := size % pageSize; rest != 0 {
		size += pageSize - rest // cannot wrap: ParseSize stays below 1<<63
	}
	return size, nil
}

// checkPassword never quotes the password.
func checkPassword(s string) error {
	switch {
	case strings.ContainsAny(s, "\n\r\x00"):
		return errors.New("holds a line break or a NUL byte, which nobody can type at a login; leave it out")
	case strings.Contains(s, ":"):
		return errors.New("holds a colon, which separates the fields of a password file; leave it out")
	case !utf8.ValidString(s):
		return errors.New("is not valid UTF-8; write it in UTF-8")
	case len(s) > maxPassword:
		return fmt.Errorf("is %d bytes long; write at most %d", len(s), maxPassword)
	}
	return nil
}

// parseHostname checks the user's choice. Without one the container's name is taken, if it is a valid one.
func parseHostname(s string) (string, error) {
	if s != "" {
		if err := checkHostname(s); err != nil {
			return "", err
		}
		return s, nil
	}
	name, err := os.Hostname()
	if err != nil || checkHostname(name) != nil {
		return "", nil // not the user's doing: the guest keeps the name in its root file system
	}
	return name, nil
}

// maxHostname is the longest host name in bytes that the kernel takes (__NEW_UTS_LEN, sethostname(2)), and
// maxLabel the longest part between dots (RFC 1123, section 2.1).
const (
	maxHostname = 64
	maxLabel    = 63
)

// checkHostname is RFC 1123, section 2.1, and the underscore, which many names of containers hold.
func checkHostname(s string) error {
	if len(s) > maxHostname {
		return fmt.Errorf("%d characters long; a host name has at most %d", len(s), maxHostname)
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > maxLabel || strings.Trim(label, "-_") != label ||
			strings.ContainsFunc(label, func(r rune) bool { return !isHostnameRune(r) }) {
			return errors.New("not a host name; write letters, digits and inner hyphens, like uml-1, " +
				"with dots between labels of at most 63")
		}
	}
	return nil
}

func isHostnameRune(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '-' || r == '_'
}

// logLevels leaves out zerolog's fatal, panic and disabled: they would hide the reason why a start failed.
var logLevels = []zerolog.Level{
	zerolog.TraceLevel, zerolog.DebugLevel, zerolog.InfoLevel, zerolog.WarnLevel, zerolog.ErrorLevel,
}

func parseLogLevel(s string) (zerolog.Level, error) {
	for _, level := range logLevels {
		if strings.EqualFold(s, level.String()) {
			return level, nil
		}
	}
	return zerolog.InfoLevel, errors.New("not a log level; write trace, debug, info, warn or error")
}

func parseLogFormat(s string) (LogFormat, error) {
	for _, format := range []LogFormat{Console, JSON} {
		if strings.EqualFold(s, format.String()) {
			return format, nil
		}
	}
	return Console, errors.New("not a log format; write console or json")
}

// parseArgPath is parsePath for what goes onto the kernel's command line, as hostfs=DIRECTORY[,OPTION] or
// ubd0=FILE[:FILE].
func parseArgPath(s string) (string, error) {
	if strings.ContainsAny(s, ", \t\n\"") {
		return "", errors.New("has a comma, a blank or a quote in it, which the kernel's command line cannot carry; " +
			"rename the directory")
	}
	return parsePath(s)
}

// parseDiskPath is parseArgPath for the kernel's disk driver.
func parseDiskPath(s string) (string, error) {
	if strings.Contains(s, ":") {
		return "", errors.New("has a colon in it, which the kernel takes for the end of the name; rename the file or its directory")
	}
	return parseArgPath(s)
}

func parsePath(s string) (string, error) {
	if !filepath.IsAbs(s) {
		return "", errors.New("not an absolute path; begin it with a /")
	}
	return filepath.Clean(s), nil
}
