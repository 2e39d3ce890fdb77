// Package userns gives a process of a plain user many user ids: it finds the subordinate ids that the user may have
// (subuid(5)), and executes the program anew in a user namespace (user_namespaces(7)) that has them, as its root. There a
// chown to any id works, and a guest's root file system, served from a directory, has the owners that it should.
//
// # Theory of operation
//
// In the namespace id 0 is the user and 1, 2, … are the subordinate ids, in the order of the files, as with podman
// unshare. Only the programs newuidmap and newgidmap, which have the privilege for it, may write such a map, and only for
// another process. So Enter
//
//  1. starts a process in a new user namespace, which does nothing;
//  2. has newuidmap and newgidmap write the maps of that process;
//  3. opens its namespace and ends it. The namespace stays as long as it is open;
//  4. joins the namespace and executes the program once more.
//
// Joining is for processes with one thread alone (setns(2)), which no Go program is. So what is executed first is a
// program of a few instructions, the stage (stage_amd64.s), out of an anonymous file: it joins, and executes ours. The
// stage is also what does nothing in step 1.
//
// Because of that the process stays the same one: its parent, its process group and terminal, its exit code and the
// signals that it gets are what they were, and no second process waits for it that would have to pass them on. (A Ctrl-C
// reaches all of a process group; a parent that forwards it as well would double it, and cannot tell, as Go does not say
// who has sent a signal.) Until step 4 nothing has changed, so that the caller can go on without the ids if it fails.
//
// Non-goals: no other namespace is made. Mounts, network and processes stay the host's.
package userns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Reasons why there is no namespace to be had. The error that wraps one of them says in one line what is missing, and
// what mends it.
var (
	// ErrNoRange means that no subordinate ids are the user's, or too few.
	ErrNoRange = errors.New("too few subordinate ids")
	// ErrNoHelper means that newuidmap or newgidmap cannot be used.
	ErrNoHelper = errors.New("no helper for subordinate ids")
	// ErrForbidden means that the host lets the user make no user namespace, or none with capabilities.
	ErrForbidden = errors.New("user namespaces are forbidden here")
)

// minIDs is how many ids a guest needs: those of 16 bits, of which 65534 is nobody and 61184 to 65519 are systemd's for
// services with DynamicUser=.
const minIDs = 1 << 16

// Range is a piece of a map: Count ids from Inside on, in the namespace, are those from Outside on.
type Range struct{ Inside, Outside, Count uint32 }

// Mapping is what the ids of a namespace are outside. The zero value stands for a process that needs none.
type Mapping struct {
	UIDs, GIDs []Range

	newuidmap, newgidmap string
}

// Needed says whether there is something to enter: root needs no other ids.
func (m Mapping) Needed() bool { return len(m.UIDs) > 0 }

// Find tells which ids this process can have. As root, which is also what it is in a namespace that Enter has entered,
// it needs none, unless it is root of a namespace with too few. The error wraps one of the reasons above.
//
// That there are ids does not say that a namespace may be made: Enter finds out.
func Find() (Mapping, error) {
	h := host{root: "/", uid: os.Getuid(), gid: os.Getgid(), euid: os.Geteuid(), name: strconv.Itoa(os.Getuid())}
	// Without an account, or one that only a network's directory has, the number has to do; newuidmap knows both.
	if account, err := user.Current(); err == nil {
		h.name = account.Username
	}
	h.lookPath, h.subIDs = lookPath, getsubids
	h.noNewPrivs, _ = unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	return h.find()
}

// Outside tells which user this process belongs to outside of its user namespace, and whether it is root in there of a
// plain user's, as after Enter: what is kept for each user by number goes by the id outside.
func Outside() (uid int, entered bool) {
	own := os.Geteuid()
	data, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return own, false // a kernel without such namespaces
	}
	uid = outsideOf(data, own)
	return uid, own == 0 && uid != 0
}

// host is what Find depends on.
type host struct {
	root           string // of the files read
	uid, gid, euid int
	name           string
	noNewPrivs     int
	lookPath       func(name string) (string, error)
	subIDs         func(option, name string) []span
}

func (h host) find() (Mapping, error) {
	if h.euid == 0 {
		return Mapping{}, h.checkRoot()
	}
	if err := h.checkSysctls(); err != nil {
		return Mapping{}, err
	}
	var m Mapping
	var err error
	if m.newuidmap, err = h.helper("newuidmap"); err != nil {
		return Mapping{}, err
	}
	if m.newgidmap, err = h.helper("newgidmap"); err != nil {
		return Mapping{}, err
	}
	if m.UIDs, err = h.ranges("/etc/subuid", "-u", h.uid); err != nil {
		return Mapping{}, err
	}
	if m.GIDs, err = h.ranges("/etc/subgid", "-g", h.gid); err != nil {
		return Mapping{}, err
	}
	return m, nil
}

// checkRoot is about root of a namespace, whose ids may be as few as one (unshare -r).
func (h host) checkRoot() error {
	for _, name := range []string{"/proc/self/uid_map", "/proc/self/gid_map"} {
		data, err := h.read(name)
		if err != nil {
			return fmt.Errorf("read the ids of this user namespace: %w", err)
		}
		if n := mapped(data); n < minIDs {
			return fmt.Errorf("%w: %s has ids up to %d, but %d is needed: start as a plain user, or in a namespace with more",
				ErrNoRange, name, int64(n)-1, minIDs-1)
		}
	}
	return nil
}

// checkSysctls looks for the settings that forbid a plain user every user namespace: the limit of the kernel's
// (namespaces(7)), and a switch that Debian's kernel has.
func (h host) checkSysctls() error {
	for _, name := range []string{"user.max_user_namespaces", "kernel.unprivileged_userns_clone"} {
		data, err := h.read("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
		if err == nil && strings.TrimSpace(string(data)) == "0" {
			return fmt.Errorf("%w: sysctl %s is 0", ErrForbidden, name)
		}
	}
	return nil
}

func (h host) helper(name string) (string, error) {
	path, err := h.lookPath(name)
	if err != nil {
		return "", fmt.Errorf("%w: %s is not installed: install package uidmap (shadow-utils, shadow)", ErrNoHelper, name)
	}
	if h.noNewPrivs != 0 {
		return "", fmt.Errorf("%w: %s would get no privilege, as this process has no_new_privs set", ErrNoHelper, path)
	}
	return path, nil
}

// ranges lays out the ids of a file, in which an owner is named or given by its number.
func (h host) ranges(file, option string, own int) ([]Range, error) {
	data, err := h.read(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", ErrNoRange, err)
	}
	spans := parseSubIDs(data, h.name, strconv.Itoa(h.uid))
	if len(spans) == 0 {
		// They may come from a network's directory (subid: in nsswitch.conf).
		spans = h.subIDs(option, h.name)
	}
	ranges := layOut(uint32(own), spans)
	if n := total(ranges); n < minIDs {
		return nil, fmt.Errorf("%w: user %s has %d in %s, needs %d: add a range that nobody else has, as root: "+
			"usermod --add-sub%sids 100000-165535 %s", ErrNoRange, h.name, n-1, file, minIDs-1, option[1:], h.name)
	}
	return ranges, nil
}

func (h host) read(name string) ([]byte, error) { return os.ReadFile(filepath.Join(h.root, name)) }

// lookPath also looks where a service's PATH may not.
func lookPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/bin", "/usr/sbin", "/usr/local/bin"} {
		if err == nil {
			break
		}
		path, err = exec.LookPath(filepath.Join(dir, name))
	}
	return path, err
}
