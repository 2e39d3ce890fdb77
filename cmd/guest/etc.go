//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"docker-usermode-linux/internal/boot"
)

const (
	// filesDir is where the tmpfs with our files is mounted in the initramfs. It has no path in the guest later on,
	// so that no init can mount over it; the bind mounts keep it alive.
	filesDir = "/files"
	// runDir is where a tmpfs for the guest's /run is prepared.
	runDir = "/run"
)

// placeEtcFiles sets the host name and covers files of /etc with ours. Each returned error is a file that stays as
// the root file system has it.
//
// A symbolic link is followed inside the new root. One that dangles below /run, such as that of systemd-resolved and
// resolvconf, gets its target made on a tmpfs on /run, where an init that finds one mounted leaves it; the program
// that owns the file will replace ours when it starts. systemd-resolved is told our name servers too.
func placeEtcFiles(root *os.Root, s boot.Settings) []error {
	hostname := s.Hostname
	if hostname == "" {
		// Ours by courtesy only: a shell as init sets none.
		data, _ := root.ReadFile("etc/hostname")
		hostname = firstWord(data)
	}
	var errs []error
	if hostname != "" {
		if err := unix.Sethostname([]byte(hostname)); err != nil {
			errs = append(errs, fmt.Errorf("set host name %q: %w", hostname, err))
		}
	}
	p, err := newPlacer(root)
	if err != nil {
		return append(errs, err)
	}
	defer p.close()
	var addr netip.Addr
	if s.Network != nil {
		if len(s.Network.Addresses) > 0 {
			addr = s.Network.Addresses[0].Prefix.Addr()
		}
		if len(s.Network.Nameservers) > 0 {
			errs = append(errs, p.placeResolvConf(*s.Network))
		}
	}
	if s.Hostname != "" {
		errs = append(errs, p.place("etc/hostname", []byte(s.Hostname+"\n")))
	}
	errs = append(errs, p.place("etc/hosts", hosts(hostname, addr, s.Hosts)), p.finish())
	return dropNil(errs)
}

// placer covers files of the root file system.
type placer struct {
	root    *os.Root
	dir     *os.File // the root directory
	haveRun bool     // runDir is mounted
}

func newPlacer(root *os.Root) (*placer, error) {
	if err := mountTmpfs(filesDir, "mode=0755,size=1m"); err != nil {
		return nil, err
	}
	dir, err := root.Open(".")
	if err != nil {
		return nil, err
	}
	_ = root.Mkdir("etc", 0o755) // there already, or the files are reported
	return &placer{root: root, dir: dir}, nil
}

// close detaches the tmpfs; the files that are in use stay.
func (p *placer) close() {
	_ = p.dir.Close()
	_ = unix.Unmount(filesDir, unix.MNT_DETACH)
}

// place covers the file name with text. A missing file is made, empty, for something has to be mounted over.
func (p *placer) place(name string, text []byte) error {
	err := p.tryPlace(name, text)
	if errors.Is(err, unix.EROFS) {
		return fmt.Errorf("no /%s: it is missing from a read-only root file system", name)
	}
	if err != nil {
		return fmt.Errorf("place /%s: %w", name, err)
	}
	return nil
}

func (p *placer) tryPlace(name string, text []byte) error {
	source := path.Join(filesDir, path.Base(name))
	if err := os.WriteFile(source, text, 0o644); err != nil {
		return err
	}
	target, err := openInRoot(int(p.dir.Fd()), name, unix.O_PATH)
	if errors.Is(err, unix.ENOENT) {
		target, err = openInRoot(int(p.dir.Fd()), name, unix.O_RDONLY|unix.O_CREAT)
	}
	if err != nil {
		return err
	}
	defer unix.Close(target)
	return bindOver(source, target)
}

// placeResolvConf covers resolv.conf, or makes the file below /run that it is a dangling link to.
func (p *placer) placeResolvConf(n boot.Network) error {
	const name = "etc/resolv.conf"
	text := resolvConf(n)
	link, err := p.root.Readlink(name)
	if err != nil {
		return p.place(name, text) // no link
	}
	file, ok := belowRun(name, link)
	if !ok {
		return p.place(name, text)
	}
	if fd, err := openInRoot(int(p.dir.Fd()), name, unix.O_PATH); err == nil {
		unix.Close(fd)
		return p.place(name, text)
	}
	files := map[string][]byte{file: text}
	if strings.HasPrefix(file, "systemd/resolve/") {
		files["systemd/resolved.conf.d/00-docker-usermode-linux.conf"] = resolvedConf(n)
	}
	for file, text := range files {
		if err := p.placeRun(file, text); err != nil {
			return fmt.Errorf("place /run/%s for /%s: %w", file, name, err)
		}
	}
	return nil
}

// placeRun makes a file in the guest's /run.
func (p *placer) placeRun(name string, text []byte) error {
	if !p.haveRun {
		// The options are those of systemd.
		if err := mountTmpfs(runDir, "mode=0755,size=20%,nr_inodes=800k"); err != nil {
			return err
		}
		p.haveRun = true
	}
	file := path.Join(runDir, name)
	if err := os.MkdirAll(path.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o644)
}

// finish moves the prepared /run to its place.
func (p *placer) finish() error {
	if !p.haveRun {
		return nil
	}
	target, err := openInRoot(int(p.dir.Fd()), "run", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		_ = unix.Unmount(runDir, unix.MNT_DETACH)
		return fmt.Errorf("open /run: %w", err)
	}
	defer unix.Close(target)
	if err := moveOver(runDir, target); err != nil {
		return fmt.Errorf("move mount to /run: %w", err)
	}
	return nil
}

func mountTmpfs(dir, options string) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", dir, err)
	}
	return nil
}

// belowRun says which file below /run the symbolic link name, with target link, leads to.
func belowRun(name, link string) (file string, ok bool) {
	if !path.IsAbs(link) {
		link = path.Join("/", path.Dir(name), link)
	}
	link = strings.TrimPrefix(path.Clean(link), "/var") // /var/run is /run
	return strings.CutPrefix(link, "/run/")
}

// resolvConf renders resolv.conf(5).
func resolvConf(n boot.Network) []byte {
	var b bytes.Buffer
	b.WriteString("# Made by docker-usermode-linux at every start; changes are lost then.\n")
	for _, server := range n.Nameservers {
		fmt.Fprintf(&b, "nameserver %s\n", server)
	}
	if len(n.Search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(n.Search, " "))
	}
	if len(n.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(n.Options, " "))
	}
	return b.Bytes()
}

// resolvedConf renders resolved.conf(5).
func resolvedConf(n boot.Network) []byte {
	var b bytes.Buffer
	b.WriteString("# Made by docker-usermode-linux at every start.\n[Resolve]\nDNS=")
	for i, server := range n.Nameservers {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(server.String())
	}
	fmt.Fprintf(&b, "\nDomains=%s\n", strings.Join(n.Search, " "))
	return b.Bytes()
}

// hosts renders hosts(5) with what Docker writes, and more entries after it. Without an address the host name is given
// Debian's 127.0.1.1, so that it resolves in a guest without a network too.
func hosts(hostname string, addr netip.Addr, more []boot.HostsEntry) []byte {
	var b bytes.Buffer
	b.WriteString("127.0.0.1\tlocalhost\n" +
		"::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::\tip6-localnet\n" +
		"ff00::\tip6-mcastprefix\n" +
		"ff02::1\tip6-allnodes\n" +
		"ff02::2\tip6-allrouters\n")
	if hostname != "" && hostname != "localhost" {
		if !addr.IsValid() {
			addr = netip.AddrFrom4([4]byte{127, 0, 1, 1})
		}
		fmt.Fprintf(&b, "%s\t%s", addr, hostname)
		if short, _, ok := strings.Cut(hostname, "."); ok {
			fmt.Fprintf(&b, " %s", short)
		}
		b.WriteByte('\n')
	}
	for _, e := range more {
		fmt.Fprintf(&b, "%s\t%s\n", e.Addr, strings.Join(e.Names, " "))
	}
	return b.Bytes()
}

// firstWord returns the first word that is not in a comment, as hostname(5) is read.
func firstWord(text []byte) string {
	for line := range strings.Lines(string(text)) {
		if words := strings.Fields(line); len(words) > 0 && !strings.HasPrefix(words[0], "#") {
			return words[0]
		}
	}
	return ""
}

func dropNil(errs []error) []error {
	out := errs[:0]
	for _, err := range errs {
		if err != nil {
			out = append(out, err)
		}
	}
	return out
}
