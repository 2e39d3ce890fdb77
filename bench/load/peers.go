//go:build linux

package main

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"docker-usermode-linux/bench/figures"
)

// peer is one way to give a User-Mode Linux guest a network.
type peer struct {
	name  string
	title string // in the table
	mtus  []int
	// bridge is the command line of a bridge that is a process of its own; it listens on place.socket.
	bridge func(place) []string
	// kernel is that of the kernel, or of what starts it, with environment variables before it.
	kernel func(place) []string
	// process is how the name of the bridge's process begins.
	process string
	// nic is what the guest has to set up itself.
	nic nic
	// host is the guest's address for the host, and its loopback.
	host func() netip.Addr
	// forward opens forwardPort, where bridge and kernel did not.
	forward func(place) error
	// version says what exactly was measured.
	version func() string
}

// place is where one guest of a peer lives.
type place struct {
	dir  string // for sockets and other files
	root string // the guest's root file system
	mtu  int
	// hostPort is where the host's end listens.
	hostPort uint16
	// Ports are forwarded to the same ports of the guest: the first, and how many.
	first, count int
}

func (p place) socket() string { return filepath.Join(p.dir, "bridge.sock") }
func (p place) api() string    { return filepath.Join(p.dir, "api.sock") }

// portRange is the forwarded ports as most programs write them.
func (p place) portRange() string {
	if p.count == 1 {
		return fmt.Sprint(p.first)
	}
	return fmt.Sprintf("%d-%d", p.first, p.first+p.count-1)
}

const (
	ourKernel = "/linux"
	guestMem  = "512M"
	// bigMTU is the largest that all peers take who take more than 1500.
	smallMTU, bigMTU = 1500, 65520
)

var (
	bothMTUs = []int{smallMTU, bigMTU}
	slirpNIC = nic{
		Address: netip.MustParsePrefix("10.0.2.15/24"),
		Gateway: netip.MustParseAddr("10.0.2.2"),
	}
	slirpHost = func() netip.Addr { return slirpNIC.Gateway }
)

// peers are compared in this order; ours is the first column.
var peers = []peer{
	{
		name: "ours", title: "this project",
		mtus: bothMTUs,
		kernel: func(p place) []string {
			return []string{
				"ROOTFS=" + p.root, "KERNEL=" + ourKernel, "INITRAMFS=/initramfs", "MEM=" + guestMem,
				"PORTS=" + p.portRange(), "NET_ALLOW=gateway", fmt.Sprintf("NET_MTU=%d", p.mtu), "LOG_LEVEL=error",
				"/entrypoint", "supervise", "init=/" + guestName, "quiet", agentEnv,
			}
		},
		process: "entrypoint",
		host:    slirpHost,
		version: func() string { return os.Getenv("VERSION") },
	},
	{
		name: "passt", title: "passt, vhost-user",
		mtus: bothMTUs,
		bridge: func(p place) []string {
			return []string{
				"passt", "-f", "--vhost-user", "--socket", p.socket(), "-a", "10.0.2.15", "-g", "10.0.2.2", "-n", "24",
				"-m", fmt.Sprint(p.mtu), "--map-host-loopback", "10.0.2.2", "-4", "--runas", "0", "-t", p.portRange(),
			}
		},
		kernel:  func(p place) []string { return umlWith(p, "virtio_uml.device="+p.socket()+":1") },
		process: "passt",
		nic:     slirpNIC,
		host:    slirpHost,
		version: debianVersion("passt"),
	},
	{
		name: "slirp4netns", title: "slirp4netns, BESS",
		mtus: bothMTUs,
		bridge: func(p place) []string {
			return []string{
				"slirp4netns", "--mtu=" + fmt.Sprint(p.mtu), "--target-type=bess", "--api-socket=" + p.api(), p.socket(),
			}
		},
		kernel:  func(p place) []string { return umlWith(p, bess(p)) },
		process: "slirp4netns",
		nic:     slirpNIC,
		host:    slirpHost,
		forward: forwardSlirp4netns,
		version: debianVersion("slirp4netns"),
	},
	{
		name: "gvproxy", title: "gvisor-tap-vsock, BESS",
		mtus: bothMTUs,
		bridge: func(p place) []string {
			return []string{
				"/gvproxy", "-mtu", fmt.Sprint(p.mtu), "-listen-bess", "unixpacket://" + p.socket(),
				"-services", "unix://" + p.api(),
			}
		},
		// The only MAC address that it answers.
		kernel:  func(p place) []string { return umlWith(p, bess(p)+",mac=5a:94:ef:e4:0c:ee") },
		process: "gvproxy",
		nic: nic{
			Address: netip.MustParsePrefix("192.168.127.2/24"),
			Gateway: netip.MustParseAddr("192.168.127.1"),
		},
		host:    func() netip.Addr { return netip.MustParseAddr("192.168.127.254") },
		forward: forwardGvproxy,
		version: goVersion("/gvproxy"),
	},
	{
		name: "classic", title: "UML 6.1 and slirp",
		mtus:    []int{smallMTU},
		kernel:  classicKernel,
		process: "slirp-fullbolt",
		nic:     slirpNIC,
		host:    slirpHost,
		version: func() string {
			return debianVersion("user-mode-linux")() + ", " + debianVersion("slirp")()
		},
	},
}

// pinned runs a command on the first CPU: a guest's system call is a hand-over between two processes, which is ten
// times as fast on one CPU. Our supervisor sees to that itself, this does it for the others. What is left of the CPUs
// is the bridge's.
func pinned(args ...string) []string { return append([]string{"taskset", "-c", "0"}, args...) }

// umlWith is the command line of our own kernel with another bridge.
func umlWith(p place, nic string) []string {
	return pinned(append(append([]string{ourKernel, "seccomp=on", "ncpus=1"}, commonArgs(p)...), nic)...)
}

// commonArgs are those of every kernel; they are the ones that our supervisor gives, as far as they matter.
func commonArgs(p place) []string {
	return []string{
		"mem=" + guestMem, "root=/dev/root", "rootfstype=hostfs", "rootflags=" + p.root, "rw", "init=/" + guestName,
		"con0=fd:0,fd:1", "con=null", "noreboot", "quiet", "lpj=20000000", "uml_dir=" + p.dir, "umid=guest", agentEnv,
	}
}

func bess(p place) string {
	return fmt.Sprintf("vec0:transport=bess,dst=%s,depth=64,mtu=%d", p.socket(), p.mtu)
}

// classicKernel starts slirp by a script, as everybody did, for it takes no arguments: what it forwards has to be on
// its command line. It must not inherit the kernel's CPU.
func classicKernel(p place) []string {
	script := filepath.Join(p.dir, "slirp")
	text := "#!/bin/sh\nexec taskset -c \"$CPUS\" slirp-fullbolt"
	for port := p.first; port < p.first+p.count; port++ {
		text += fmt.Sprintf(" 'redir %d %d'", port, port)
	}
	text += " \"$@\"\n"
	// A missing script shows in the kernel's own words.
	_ = os.WriteFile(script, []byte(text), 0o755)
	return append([]string{"TMPDIR=" + p.dir, "CPUS=" + figures.CPUs()},
		pinned(append(append([]string{"linux.uml"}, commonArgs(p)...), "eth0=slirp,,"+script)...)...)
}

// callGuard is far more than a bridge takes to open a port.
const callGuard = 10 * time.Second

// forwardSlirp4netns asks for one port after the other: see slirp4netns(1), API socket.
func forwardSlirp4netns(p place) error {
	// Made when a guest has connected.
	if err := waitFile(p.api()); err != nil {
		return err
	}
	for port := p.first; port < p.first+p.count; port++ {
		reply, err := callUnix(p.api(), fmt.Sprintf(`{"execute":"add_hostfwd","arguments":{"proto":"tcp",`+
			`"host_addr":"127.0.0.1","host_port":%d,"guest_addr":"10.0.2.15","guest_port":%d}}`, port, port))
		if err != nil {
			return err
		}
		if bytes.Contains(reply, []byte("error")) {
			return fmt.Errorf("add_hostfwd %d: %s", port, reply)
		}
	}
	return nil
}

// callUnix sends a request, and returns all that is answered.
func callUnix(socket, request string) ([]byte, error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(callGuard)); err != nil {
		return nil, err
	}
	if _, err := io.WriteString(conn, request); err != nil {
		return nil, err
	}
	if err := conn.(*net.UnixConn).CloseWrite(); err != nil {
		return nil, err
	}
	return io.ReadAll(conn)
}

// forwardGvproxy does the same with gvproxy's HTTP services.
func forwardGvproxy(p place) error {
	client := http.Client{Timeout: callGuard, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", p.api())
		},
	}}
	defer client.CloseIdleConnections()
	for port := p.first; port < p.first+p.count; port++ {
		body, err := json.Marshal(map[string]string{
			"local": fmt.Sprintf("127.0.0.1:%d", port), "remote": fmt.Sprintf("192.168.127.2:%d", port),
		})
		if err != nil {
			return err
		}
		reply, err := client.Post("http://gvproxy/services/forwarder/expose", "application/json", bytes.NewReader(body))
		if err != nil {
			return err
		}
		reply.Body.Close()
		if reply.StatusCode != http.StatusOK {
			return fmt.Errorf("expose %d: %s", port, reply.Status)
		}
	}
	return nil
}

func debianVersion(pkg string) func() string {
	return func() string { return figures.DebianVersion(pkg) }
}

func goVersion(path string) func() string {
	return func() string {
		info, err := buildinfo.ReadFile(path)
		if err != nil {
			return err.Error()
		}
		for _, dep := range info.Deps {
			if strings.HasPrefix(info.Path, dep.Path+"/") {
				return dep.Path + " " + dep.Version + ", " + info.GoVersion
			}
		}
		return info.Main.Path + " " + info.Main.Version + ", " + info.GoVersion
	}
}
