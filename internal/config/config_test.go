package config

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// Public keys only in form: arbitrary bytes that belong to no private key.
const (
	keyA = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEZXhsbBxOqB7vyTdoH0V3bt9mCkBq4vCJ6yGk0o1uJ3 a@example"
	keyB = `restrict ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGJvYmJvYmJvYmJvYmJvYmJvYmJvYmJvYmJvYmJvYmJv b@example`
)

// settings are all that Load looks at.
var settings = []string{
	"MEM", "CPUS", "USERSPACE", "CPU_PLACEMENT", "NET", "PORTS", "PORTS_SOURCE", "NET_ALLOW", "NET_DENY", "NET_MTU", "NET_PCAP",
	"NET_METRICS",
	"ROOT_PASSWORD", "ROOT_PASSWORD_FILE", "SSH_AUTHORIZED_KEYS", "SSH_AUTHORIZED_KEYS_FILE", "HOSTNAME", "STOP_TIMEOUT", "HOOKS",
	"LOG_LEVEL", "LOG_FORMAT", "ROOTFS", "DISK", "EPHEMERAL", "KERNEL", "INITRAMFS",
}

// loadWith runs Load with these settings and no others.
func loadWith(t *testing.T, env map[string]string) (Config, error) {
	t.Helper()
	return loadOptions(t, env, Options{})
}

// loadOptions runs LoadWith with these settings and no others.
func loadOptions(t *testing.T, env map[string]string, o Options) (Config, error) {
	t.Helper()
	for _, name := range settings {
		t.Setenv(name, "") // has the test restore the variable
		if value, ok := env[name]; ok {
			t.Setenv(name, value)
		} else if err := os.Unsetenv(name); err != nil {
			t.Fatal(err)
		}
	}
	return LoadWith(o)
}

// TestSettings checks that the tests know all of them.
func TestSettings(t *testing.T) {
	if got, want := slices.Sorted(slices.Values(Settings())), slices.Sorted(slices.Values(settings)); !slices.Equal(got, want) {
		t.Errorf("Settings() = %v, want %v", got, want)
	}
}

// TestLoadHost has no defaults for what only an image has at a fixed place.
func TestLoadHost(t *testing.T) {
	got, err := loadOptions(t, nil, Options{Host: true})
	if err != nil || got.Rootfs != "" || got.Kernel != "" || got.Initramfs != "" {
		t.Errorf("LoadWith(host) = %v, %v, want no paths", got, err)
	}
	if err := got.CheckFiles(); err != nil {
		t.Errorf("CheckFiles() = %v", err)
	}
}

// TestNames checks that a mistake is told by the name that the user knows.
func TestNames(t *testing.T) {
	file := filepath.Join(t.TempDir(), "password")
	names := Names{
		"MEM": "--mem", "PORTS": "--ports", "NET": "--net", "ROOT_PASSWORD": "--root-password", "ROOT_PASSWORD_FILE": "--root-password-file",
		"SSH_AUTHORIZED_KEYS": "--ssh-authorized-keys", "DISK": "--disk", "EPHEMERAL": "--ephemeral", "NET_METRICS": "--net-metrics",
	}
	for _, test := range []struct {
		env  map[string]string
		want string
	}{
		{map[string]string{"MEM": "x", "CPUS": "x"}, `--mem="x": not a size; write a number with k, M or G, like 256M` + "\n" +
			`CPUS="x": not a number of CPUs; write 1 to 64, or auto`},
		{map[string]string{"NET": "off", "PORTS": "22"}, `--net="off": a guest without a network has no use for --ports="22"; unset one of the two`},
		{
			map[string]string{"ROOT_PASSWORD": "a", "ROOT_PASSWORD_FILE": "/b"},
			"--root-password and --root-password-file are both set; unset one of the two",
		},
		{map[string]string{"ROOT_PASSWORD_FILE": file}, fmt.Sprintf("--root-password-file=%q: no such file or directory; "+
			"mount a file with the password there", file)},
		{map[string]string{"SSH_AUTHORIZED_KEYS": "x"}, "--ssh-authorized-keys: line 1 is not a public key; " +
			"write one per line, like ssh-ed25519 AAAA... me@example"},
		{map[string]string{"EPHEMERAL": "x"}, `--ephemeral="x": neither on nor off`},
		{map[string]string{"DISK": "/a,b"}, `--disk="/a,b": has a comma, a blank or a quote in it, which the kernel's command line cannot ` +
			"carry; rename the directory"},
		{map[string]string{"DISK": "/a:b"}, `--disk="/a:b": has a colon in it, which the kernel takes for the end of the name; rename ` +
			"the file or its directory"},
	} {
		if _, err := loadOptions(t, test.env, Options{Names: names}); err == nil || err.Error() != test.want {
			t.Errorf("LoadWith(%v) = %v, want %s", test.env, err, test.want)
		}
	}
	c := Config{Disk: file, Options: Options{Names: names}}
	if err := c.CheckFiles(); err == nil || !strings.HasPrefix(err.Error(), fmt.Sprintf("--disk=%q: no such file", file)) {
		t.Errorf("CheckFiles() = %v", err)
	}
}

// TestCheckDisk checks that a disk takes the place of the directory, and that one nobody writes to need not be writable.
func TestCheckDisk(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Log("root may write to everything")
	}
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, nil, 0o400); err != nil {
		t.Fatal(err)
	}
	c := Config{Rootfs: "/does/not/exist", Disk: disk, Ephemeral: true}
	if err := c.CheckFiles(); err != nil {
		t.Errorf("CheckFiles() = %v", err)
	}
	c.Ephemeral = false
	if err := c.CheckFiles(); (err == nil) != (os.Geteuid() == 0) {
		t.Errorf("CheckFiles() of a disk that is read-only = %v", err)
	}
	c.Disk = filepath.Dir(disk)
	if err := c.CheckFiles(); err == nil || !strings.Contains(err.Error(), "neither a file nor a block device") {
		t.Errorf("CheckFiles() of a directory as a disk = %v", err)
	}
}

func TestLoadDefaults(t *testing.T) {
	hostname, err := parseHostname("")
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Mem:             256 << 20,
		CPUs:            min(containerCPUs(), maxAutoCPUs),
		CPUPlacement:    true,
		Net:             true,
		Ports:           []Forward{{HostPort: 22, GuestPort: 22, Count: 1}},
		RootPassword:    DefaultRootPassword,
		PasswordDefault: true,
		Hostname:        hostname,
		NetMTU:          1500,
		StopTimeout:     6500 * time.Millisecond,
		LogLevel:        zerolog.InfoLevel,
		LogFormat:       Console,
		Rootfs:          "/rootfs",
		Kernel:          "/linux",
		Initramfs:       "/initramfs",
	}
	if got, err := loadWith(t, nil); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("Load() with nothing set = %v, %v, want %v", got, err, want)
	}

	// Compose writes "" for what the user's environment lacks.
	empty := map[string]string{}
	for _, name := range settings {
		empty[name] = ""
	}
	want.Ports = nil
	if got, err := loadWith(t, empty); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("Load() with all set to \"\" = %v, %v, want %v", got, err, want)
	}
}

func TestLoadAllSet(t *testing.T) {
	got, err := loadWith(t, map[string]string{
		"MEM": "1g", "CPUS": "3", "USERSPACE": "Seccomp", "CPU_PLACEMENT": "Off", "NET": "On", "PORTS": "2222:22", "PORTS_SOURCE": "Proxy", "NET_ALLOW": "gateway:5432/tcp",
		"NET_DENY": "10.0.0.0/8", "NET_MTU": "65520", "NET_PCAP": "/tmp//a.pcap", "NET_METRICS": "[::1]:9100",
		"ROOT_PASSWORD": "correct horse", "SSH_AUTHORIZED_KEYS": keyA,
		"HOSTNAME": "uml-1.example", "STOP_TIMEOUT": "1m30s", "LOG_LEVEL": "debug", "LOG_FORMAT": "json",
		"ROOTFS": "/srv/root/", "KERNEL": "/boot/../linux", "INITRAMFS": "/i",
	})
	want := Config{
		Mem:            1 << 30,
		CPUs:           3,
		Userspace:      UserspaceSeccomp,
		Net:            true,
		Ports:          []Forward{{HostPort: 2222, GuestPort: 22, Count: 1}},
		PortsSource:    SourceProxy,
		NetAllow:       []NetRule{{Protos: []Proto{TCP}, Gateway: true, First: 5432, Last: 5432}},
		NetDeny:        []NetRule{{Prefix: netip.MustParsePrefix("10.0.0.0/8")}},
		NetPcap:        "/tmp/a.pcap",
		NetMTU:         65520,
		NetMetrics:     netip.MustParseAddrPort("[::1]:9100"),
		RootPassword:   "correct horse",
		AuthorizedKeys: []string{keyA},
		Hostname:       "uml-1.example",
		StopTimeout:    90 * time.Second,
		LogLevel:       zerolog.DebugLevel,
		LogFormat:      JSON,
		Rootfs:         "/srv/root",
		Kernel:         "/linux",
		ForeignKernel:  true,
		Initramfs:      "/i",
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("Load() = %v, %v, want %v", got, err, want)
	}
}

func TestLoadPassword(t *testing.T) {
	for _, test := range []struct {
		password, keys string
		want           string
		wantDefault    bool
	}{
		{"", "", DefaultRootPassword, true},
		{"", keyA, "", false},
		{"x", "", "x", false},
		{"x", keyA, "x", false},
		{DefaultRootPassword, "", DefaultRootPassword, false},
		{" ", "", " ", false},
	} {
		c, err := loadWith(t, map[string]string{"ROOT_PASSWORD": test.password, "SSH_AUTHORIZED_KEYS": test.keys})
		if err != nil || c.RootPassword != test.want || c.PasswordDefault != test.wantDefault {
			t.Errorf("Load() with ROOT_PASSWORD=%q SSH_AUTHORIZED_KEYS=%q = password %q, default %v, %v, want %q, %v",
				test.password, test.keys, c.RootPassword, c.PasswordDefault, err, test.want, test.wantDefault)
		}
	}
}

func TestLoadReportsEveryProblem(t *testing.T) {
	got, err := loadWith(t, map[string]string{
		"MEM": "abc", "CPUS": "none", "USERSPACE": "kvm", "CPU_PLACEMENT": "on", "NET": "no", "PORTS": "22 99999 x", "PORTS_SOURCE": "me", "NET_ALLOW": "10.0.0.1/8,x",
		"NET_DENY": "all/all", "NET_MTU": "1279", "NET_PCAP": "a.pcap", "NET_METRICS": "localhost:9100",
		"ROOT_PASSWORD": "hunter2:", "SSH_AUTHORIZED_KEYS": "ssh-rsa nonsense",
		"HOSTNAME": "a b", "STOP_TIMEOUT": "soon", "LOG_LEVEL": "panic", "LOG_FORMAT": "xml",
		"ROOTFS": "rootfs", "KERNEL": "linux", "INITRAMFS": "/fine",
	})
	want := strings.Join([]string{
		`MEM="abc": not a size; write a number with k, M or G, like 256M`,
		`USERSPACE="kvm": not a way to run programs; write auto, seccomp or ptrace`,
		`CPUS="none": not a number of CPUs; write 1 to 64, or auto`,
		`CPU_PLACEMENT="on": write auto or off`,
		`NET="no": neither on nor off; write off for a guest without a network`,
		`PORTS="22 99999 x": item 2, "99999", character 4: port 99999 is not between 1 and 65535`,
		`PORTS="22 99999 x": item 3, "x", character 10: "x" is not a port; write a number, like 22, 8080:80 or 53/udp`,
		`PORTS_SOURCE="me": not a source; write client, gateway or proxy`,
		`NET_ALLOW="10.0.0.1/8,x": item 1, "10.0.0.1/8", character 1: 10.0.0.1 is an address within 10.0.0.0/8; ` +
			`write 10.0.0.0/8, or 10.0.0.1 alone`,
		`NET_ALLOW="10.0.0.1/8,x": item 2, "x", character 12: "x" is not an IP address; ` +
			`write 10.0.0.0/8, fd00::/8, gateway or all`,
		`NET_DENY="all/all": character 5: protocol "all" is unknown; write /tcp, /udp, /icmp or several, like /tcp+udp`,
		`NET_MTU="1279": write 1280 to 65520`,
		`NET_PCAP="a.pcap": not an absolute path; begin it with a /`,
		`NET_METRICS="localhost:9100": "localhost" is not an IP address; ` +
			`write it like :9100, 127.0.0.1:9100 or [::1]:9100`,
		`ROOT_PASSWORD: holds a colon, which separates the fields of a password file; leave it out`,
		`SSH_AUTHORIZED_KEYS: line 1 is not a public key; write one per line, like ssh-ed25519 AAAA... me@example`,
		`HOSTNAME="a b": not a host name; write letters, digits and inner hyphens, like uml-1, ` +
			`with dots between labels of at most 63`,
		`STOP_TIMEOUT="soon": not a duration; write seconds, or numbers with h, m, s or ms, like 30, 1m30s or 500ms`,
		`LOG_LEVEL="panic": not a log level; write trace, debug, info, warn or error`,
		`LOG_FORMAT="xml": not a log format; write console or json`,
		`ROOTFS="rootfs": not an absolute path; begin it with a /`,
		`KERNEL="linux": not an absolute path; begin it with a /`,
	}, "\n")
	if err == nil || err.Error() != want {
		t.Errorf("Load() = error\n%v\nwant\n%s", err, want)
	}
	if got.Initramfs != "/fine" || got.Rootfs != "" {
		t.Errorf("Load() = initramfs %q and rootfs %q beside the error, want the valid one only", got.Initramfs, got.Rootfs)
	}
}

func TestLoadSingleProblem(t *testing.T) {
	for _, test := range []struct{ name, value, want string }{
		{"MEM", "16M", `MEM="16M": too little to boot with; write at least 32M`},
		{"PORTS", "99999", `PORTS="99999": character 1: port 99999 is not between 1 and 65535`},
		{"HOSTNAME", "-a", `HOSTNAME="-a": not a host name;`},
		{"HOSTNAME", "a.", `HOSTNAME="a.": not a host name;`},
		{"HOSTNAME", "ä", `HOSTNAME="ä": not a host name;`},
		{"HOSTNAME", strings.Repeat("a", 64), `: not a host name;`},
		{"HOSTNAME", strings.Repeat("a.", 32) + "a", `: 65 characters long; a host name has at most 64`},
		{"ROOT_PASSWORD", "hunter2\n", `ROOT_PASSWORD: holds a line break or a NUL byte,`},
		{"ROOT_PASSWORD", "hunter2\xff", `ROOT_PASSWORD: is not valid UTF-8;`},
		{"ROOT_PASSWORD", strings.Repeat("hunter2", 100), `ROOT_PASSWORD: is 700 bytes long; write at most 511`},
	} {
		_, err := loadWith(t, map[string]string{test.name: test.value})
		if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("Load() with %s=%q = %v, want one line with %q", test.name, test.value, err, test.want)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("Load() shows the password: %v", err)
		}
	}
}

func TestLoadWithoutNetwork(t *testing.T) {
	for _, test := range []struct {
		name string
		env  map[string]string
		want []string
	}{
		{"nothing else set", nil, nil},
		{"nothing but \"\"", map[string]string{
			"PORTS": "", "NET_ALLOW": "", "NET_DENY": "", "NET_MTU": "", "NET_PCAP": "", "NET_METRICS": "",
		}, nil},
		{"settings of no consequence", map[string]string{"PORTS_SOURCE": "client"}, nil},
		{"one", map[string]string{"PORTS": "22"}, []string{
			`NET="off": a guest without a network has no use for PORTS="22"; unset one of the two`,
		}},
		{"all", map[string]string{
			"PORTS": "all", "NET_ALLOW": "gateway", "NET_DENY": "all", "NET_MTU": "1500", "NET_PCAP": "/a", "NET_METRICS": ":1",
		}, []string{
			`NET="off": a guest without a network has no use for PORTS="all"; unset one of the two`,
			`NET="off": a guest without a network has no use for NET_ALLOW="gateway"; unset one of the two`,
			`NET="off": a guest without a network has no use for NET_DENY="all"; unset one of the two`,
			`NET="off": a guest without a network has no use for NET_MTU="1500"; unset one of the two`,
			`NET="off": a guest without a network has no use for NET_PCAP="/a"; unset one of the two`,
			`NET="off": a guest without a network has no use for NET_METRICS=":1"; unset one of the two`,
		}},
	} {
		env := map[string]string{"NET": "off"}
		maps.Copy(env, test.env)
		c, err := loadWith(t, env)
		got := ""
		if err != nil {
			got = err.Error()
		}
		if want := strings.Join(test.want, "\n"); got != want {
			t.Errorf("%s: Load() = error\n%s\nwant\n%s", test.name, got, want)
		}
		if c.Net || err == nil && c.Ports != nil {
			t.Errorf("%s: Load() = net %v, ports %v, want neither", test.name, c.Net, c.Ports)
		}
	}
}

func TestLoadRoundsMemToPages(t *testing.T) {
	const want = 64<<20 + 4096
	if c, err := loadWith(t, map[string]string{"MEM": fmt.Sprint(64<<20 + 1)}); err != nil || c.Mem != want {
		t.Errorf("Load() with MEM of 64M and a byte = %d, %v, want %d", c.Mem, err, want)
	}
}

func TestLogLevels(t *testing.T) {
	for s, want := range map[string]zerolog.Level{
		"trace": zerolog.TraceLevel, "debug": zerolog.DebugLevel, "info": zerolog.InfoLevel,
		"WARN": zerolog.WarnLevel, "error": zerolog.ErrorLevel,
	} {
		if got, err := parseLogLevel(s); err != nil || got != want {
			t.Errorf("parseLogLevel(%q) = %v, %v, want %v", s, got, err, want)
		}
	}
}

func TestConfigNeverShowsPassword(t *testing.T) {
	c := Config{Mem: MinMem, RootPassword: "hunter2"}
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		if got := fmt.Sprintf(format, c); strings.Contains(got, "hunter2") {
			t.Errorf("Sprintf(%q, c) = %q, want no password", format, got)
		}
	}
}

func TestParseKeys(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const mend = "write one per line, like ssh-ed25519 AAAA... me@example"
	for _, test := range []struct {
		name, value string
		want        []string
		wantErrs    []string
	}{
		{"none", "", nil, nil},
		{"one", keyA, []string{keyA}, nil},
		{"comments, blank lines and CRLF", "# mine\r\n\r\n" + keyA + "\r\n  " + keyB + " \n", []string{keyA, keyB}, nil},
		{"file", file("two", keyA+"\n"+keyB+"\n"), []string{keyA, keyB}, nil},
		{"file with a line break after its name", file("one", keyA) + "\n", []string{keyA}, nil},
		{"bad lines", keyA + "\nx\n\nssh-rsa AAAA", nil, []string{
			": line 2 is not a public key; " + mend, ": line 4 is not a public key; " + mend,
		}},
		{"bad line in a file", file("bad", "x"), nil, []string{
			fmt.Sprintf("=%q: line 1 is not a public key; %s", filepath.Join(dir, "bad"), mend),
		}},
		{"blank", " \n", nil, []string{": holds no key; " + mend}},
		{"only comments", "# none", nil, []string{": holds no key; " + mend}},
		{"empty file", file("empty", ""), nil, []string{
			fmt.Sprintf("=%q: holds no key; %s", filepath.Join(dir, "empty"), mend),
		}},
		{"missing file", filepath.Join(dir, "none"), nil, []string{
			fmt.Sprintf("=%q: no such file or directory; mount a file with public keys there", filepath.Join(dir, "none")),
		}},
		{"directory", dir, nil, []string{
			fmt.Sprintf("=%q: is a directory; mount a file with public keys there", dir),
		}},
		{"endless file", "/dev/zero", nil, []string{`="/dev/zero": longer than 1M; give a file with public keys`}},
		{"private key", "-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0\n", nil, []string{
			": holds a private key; give the public one, from the file that ends in .pub",
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, errs := parseKeys(test.value)
			if !reflect.DeepEqual(got, test.want) {
				t.Errorf("parseKeys(%q) = %q, want %q", test.value, got, test.want)
			}
			var texts []string
			for _, err := range errs {
				texts = append(texts, err.Error())
			}
			if !reflect.DeepEqual(texts, test.wantErrs) {
				t.Errorf("parseKeys(%q) = errors %q, want %q", test.value, texts, test.wantErrs)
			}
		})
	}
}
