package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Theory of operation of a Registry
//
// On a host, guests have names. A registry is a directory of one user's with a directory for each guest, NAME, in which
// that guest makes the directories of its runs: Find looks in there as it does anywhere.
//
//	.lock          held for the moment of each change, and of each look: what is seen is never half of one
//	NAME           locked as well, which has systemd-tmpfiles(8) leave alone what is in it, where that is in /tmp
//	NAME/lock      held (flock(2)) by the supervising process for as long as it lives: only that tells whether a guest
//	               is there, no process number. It gets the exit code as its last content, for those who have it open.
//	NAME/guest.json
//	NAME/uml-*     directories of runs
//
// An entry whose lock nobody holds is what a crash has left, and is removed by whoever sees it. The kernel drops a lock
// with the last copy of the descriptor, all of which close on exec: children do not keep it.
//
// What a detached guest of that name said last is elsewhere, since this directory is in RAM as a rule: NAME.log in the
// user's directory for what programs keep (XDG_STATE_HOME), and only without one in .logs.
//
// Of two guests on one root file system the registry only tells who the other one is. What keeps them apart is a lock on
// the root file system itself (package disk), since a user may have several registries: with sudo, without a login.

// Names in a registry. Those of guests do not begin with a dot.
const (
	registryLock = ".lock"
	guestLock    = "lock"
	guestFile    = "guest.json"
	logsDir      = ".logs"
	trashPrefix  = ".gone-"
)

const (
	// maxName is the longest name of a guest, in bytes.
	maxName = 32
	// maxSocket is the longest path of a socket (sun_path in unix(7), with its NUL), and longestSocket the longest of a
	// run within the directory of its guest.
	maxSocket     = 107
	longestSocket = "/uml-4294967295/guest/mconsole"
	// maxLogs is how many logs of guests that have ended are kept.
	maxLogs = 20
	// registryDirName is that of a registry within a user's directory for what runs.
	registryDirName = "uml"
)

// Guest is what a registry knows of a guest. The names in the JSON are stable.
type Guest struct {
	Name string `json:"name"`
	// PID is the supervising process.
	PID int `json:"pid"`
	// PIDNamespace is that in which the process has this number (pid_namespaces(7)).
	PIDNamespace uint64    `json:"pid_namespace"`
	Started      time.Time `json:"started"`
	// Rootfs or Disk is where its root file system is; ReadOnly: it writes nothing to it.
	Rootfs   string `json:"rootfs,omitempty"`
	Disk     string `json:"disk,omitempty"`
	ReadOnly bool   `json:"read_only,omitempty"`
	// Ports are its forwards as PORTS spells them.
	Ports []string `json:"ports"`
	// Command is what it was run for; without one it is a guest of its own.
	Command []string `json:"command,omitempty"`
	// Detached is a guest without a terminal, that has a log.
	Detached bool `json:"detached"`

	// Dir is the guest's directory.
	Dir string `json:"-"`
}

// root is the path of the root file system.
func (g Guest) root() string {
	if g.Disk != "" {
		return g.Disk
	}
	return g.Rootfs
}

// Client finds the guest's supervisor.
func (g Guest) Client(ctx context.Context) (*Client, error) {
	c, err := Find(ctx, g.Dir)
	if errors.Is(err, ErrNoGuest) {
		return nil, fmt.Errorf("guest %s does not answer: it starts, or ends", g.Name)
	}
	return c, err
}

// Registry is where the guests of a user are known by their names.
type Registry struct {
	dir string
	// logs is where their logs are.
	logs string
}

// OpenRegistry returns the registry of a user, which is in the directory that a login gets for what runs, or else in
// one of his own below TMPDIR. It is the user of this process, by the number that he has for all processes of his, in
// whichever user namespace they are.
func OpenRegistry(user int) (Registry, error) {
	uid := os.Geteuid() // as this process sees owners
	// Not uml-…, which is what Find takes for a run.
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("%s.%d", registryDirName, user))
	for _, place := range []string{os.Getenv("XDG_RUNTIME_DIR"), fmt.Sprintf("/run/user/%d", user)} {
		// One that is somebody else's came along with su(1).
		if place != "" && owned(place, uid) == nil {
			dir = filepath.Join(place, registryDirName)
			break
		}
	}
	r, err := openRegistry(dir, uid)
	if err != nil {
		return r, err
	}
	if state := stateDir(uid); state != "" {
		r.logs = state
	}
	return r, nil
}

// stateDir is our directory for what is kept (XDG Base Directory Specification), below one that is the user's, as somebody
// else's may have come along with su(1); "" where there is none.
func stateDir(uid int) string {
	place, below := os.Getenv("XDG_STATE_HOME"), ""
	if filepath.IsAbs(place) {
		_ = os.MkdirAll(place, 0o700) // what is wrong shows below
	} else {
		place, below = os.Getenv("HOME"), ".local/state"
	}
	real, err := filepath.EvalSymlinks(place)
	if err != nil || !filepath.IsAbs(real) || owned(real, uid) != nil {
		return ""
	}
	return filepath.Join(real, below, registryDirName)
}

func openRegistry(dir string, uid int) (Registry, error) {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return Registry{}, fmt.Errorf("make the directory where guests are known: %w; set XDG_RUNTIME_DIR or TMPDIR to one that "+
			"can be written", err)
	}
	if err := owned(dir, uid); err != nil {
		return Registry{}, fmt.Errorf("the directory where guests are known cannot be trusted: %w; remove it, or set "+
			"XDG_RUNTIME_DIR to another place", err)
	}
	if info, err := os.Lstat(dir); err != nil || info.Mode().Perm()&0o077 != 0 {
		return Registry{}, fmt.Errorf("the directory where guests are known, %s, is open to other users; run chmod 700 on it", dir)
	}
	return Registry{dir: dir, logs: filepath.Join(dir, logsDir)}, nil
}

// owned is an error unless dir is a directory of the user's own. A link is none.
func owned(dir string, uid int) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is not a directory", dir)
	}
	if owner := int(info.Sys().(*syscall.Stat_t).Uid); owner != uid {
		return fmt.Errorf("%s belongs to user %d", dir, owner)
	}
	return nil
}

// Dir is the registry's directory.
func (r Registry) Dir() string { return r.dir }

// Claim is a guest's entry, held by the process that supervises it.
type Claim struct {
	Guest
	registry  Registry
	lock, dir *os.File
}

// Claim enters a guest: it then is the only one of its name, and the only one on its root file system, unless all there
// write nothing. With another, unique, a name that is taken gets a number.
func (r Registry) Claim(g Guest, unique bool) (*Claim, error) {
	if err := CheckName(g.Name); err != nil {
		return nil, err
	}
	var claim *Claim
	err := r.locked(func() error {
		guests, err := r.list()
		if err != nil {
			return err
		}
		taken := func(name string) bool {
			return slices.ContainsFunc(guests, func(other Guest) bool { return other.Name == name })
		}
		if taken(g.Name) && !unique {
			return fmt.Errorf("a guest named %s is running: choose another --name, or stop it with uml stop %[1]s", g.Name)
		}
		base := g.Name
		for n := 2; taken(g.Name); n++ {
			suffix := "-" + strconv.Itoa(n)
			g.Name = base[:min(len(base), maxName-len(suffix))] + suffix
		}
		if length := len(filepath.Join(r.dir, g.Name) + longestSocket); length > maxSocket {
			return fmt.Errorf("the sockets of guest %s in %s would have paths of %d bytes, and %d is the most; choose a shorter --name, "+
				"or set XDG_RUNTIME_DIR to a directory with a shorter path", g.Name, r.dir, length, maxSocket)
		}
		if err := checkRoot(g, guests); err != nil {
			return err
		}
		if claim, err = r.enter(g); err != nil {
			return fmt.Errorf("enter guest %s into %s: %w", g.Name, r.dir, err)
		}
		return nil
	})
	return claim, err
}

// enter makes the entry.
//
// Preconditions: the registry is locked and has no guest of that name.
func (r Registry) enter(g Guest) (*Claim, error) {
	g.Dir = filepath.Join(r.dir, g.Name)
	g.PIDNamespace = pidNamespace()
	if err := os.Mkdir(g.Dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(g.Dir, guestLock), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(g.Dir))
	}
	dir, err := os.Open(g.Dir)
	if err != nil {
		return nil, errors.Join(err, lock.Close(), os.RemoveAll(g.Dir))
	}
	_ = unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB) // it is there for tmpfiles alone
	data, err := json.Marshal(g)
	err = errors.Join(err,
		unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB),
		os.WriteFile(filepath.Join(g.Dir, guestFile), data, 0o600))
	if err != nil {
		return nil, errors.Join(err, dir.Close(), lock.Close(), os.RemoveAll(g.Dir))
	}
	return &Claim{Guest: g, registry: r, lock: lock, dir: dir}, nil
}

// checkRoot is an error that names the guest which has the root file system of g, unless both write nothing to it.
func checkRoot(g Guest, guests []Guest) error {
	own, err := os.Stat(g.root())
	if err != nil {
		return fmt.Errorf("look at the root file system: %w", err)
	}
	for _, other := range guests {
		if info, err := os.Stat(other.root()); err == nil && os.SameFile(own, info) && !(g.ReadOnly && other.ReadOnly) {
			return fmt.Errorf("guest %s has %s as its root file system: two guests that write to one would damage it; stop the other, "+
				"use a copy, or start all that share it with --ephemeral", other.Name, g.root())
		}
	}
	return nil
}

// Release ends the entry, with the exit code for those who wait for it.
func (c *Claim) Release(code int) error {
	_, writeErr := c.lock.WriteString(strconv.Itoa(code))
	err := c.registry.locked(func() error { return c.registry.remove(c.Dir) })
	return errors.Join(writeErr, err, c.dir.Close(), c.lock.Close())
}

// remove deletes a guest's directory; under its own name it goes at once.
//
// Preconditions: the registry is locked.
func (r Registry) remove(dir string) error {
	trash, err := os.MkdirTemp(r.dir, trashPrefix)
	if err != nil {
		return err
	}
	return errors.Join(os.Rename(dir, filepath.Join(trash, "guest")), os.RemoveAll(trash))
}

// Guests lists the guests that run, by name.
func (r Registry) Guests() ([]Guest, error) {
	var guests []Guest
	err := r.locked(func() (err error) {
		guests, err = r.list()
		return err
	})
	return guests, err
}

// Guest returns the guest of that name, or without one the only guest.
func (r Registry) Guest(name string) (Guest, error) {
	guests, err := r.Guests()
	if err != nil {
		return Guest{}, err
	}
	return choose(guests, name)
}

func choose(guests []Guest, name string) (Guest, error) {
	var names []string
	for _, g := range guests {
		if g.Name == name {
			return g, nil
		}
		names = append(names, g.Name)
	}
	switch {
	case len(guests) == 0:
		return Guest{}, ErrNoGuest
	case name != "":
		return Guest{}, fmt.Errorf("%w of the name %s; there are: %s", ErrNoGuest, name, strings.Join(names, ", "))
	case len(guests) > 1:
		return Guest{}, fmt.Errorf("several guests are running, name one of them: %s", strings.Join(names, ", "))
	}
	return guests[0], nil
}

// list is Guests, and removes what is left of guests that crashed.
//
// Preconditions: the registry is locked.
func (r Registry) list() ([]Guest, error) {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return nil, err
	}
	var guests []Guest
	for _, e := range entries {
		path := filepath.Join(r.dir, e.Name())
		switch {
		case strings.HasPrefix(e.Name(), trashPrefix):
			_ = os.RemoveAll(path) // whoever deleted it was killed meanwhile
		case strings.HasPrefix(e.Name(), "."), !e.IsDir():
		default:
			g, runs, err := r.look(path)
			if err != nil {
				return nil, err
			}
			if runs {
				guests = append(guests, g)
			}
		}
	}
	return guests, nil
}

// look reads a guest's entry, and removes it if the guest does not run.
//
// Preconditions: the registry is locked.
func (r Registry) look(dir string) (g Guest, runs bool, err error) {
	if runs, err = held(filepath.Join(dir, guestLock)); err != nil {
		return Guest{}, false, fmt.Errorf("look whether guest %s runs: %w", filepath.Base(dir), err)
	}
	if !runs {
		if err := r.remove(dir); err != nil {
			return Guest{}, false, fmt.Errorf("remove what a guest that crashed has left: %w", err)
		}
		return Guest{}, false, nil
	}
	g, err = readGuest(dir)
	return g, true, err
}

func readGuest(dir string) (Guest, error) {
	path := filepath.Join(dir, guestFile)
	data, err := os.ReadFile(path)
	if err != nil {
		return Guest{}, err
	}
	g := Guest{}
	if err := json.Unmarshal(data, &g); err != nil {
		return Guest{}, fmt.Errorf("read %s: %w", path, err)
	}
	g.Name, g.Dir = filepath.Base(dir), dir
	return g, nil
}

// held says whether somebody holds a lock, which nobody does where there is none. Only under the registry's own lock is
// that nobody who looks, too.
func held(path string) (bool, error) {
	lock, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer lock.Close()
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("lock %s: %w", path, err)
	}
	return false, nil
}

// locked calls f while no other process looks at the registry or changes it.
func (r Registry) locked(f func() error) error {
	lock, err := os.OpenFile(filepath.Join(r.dir, registryLock), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	for {
		err := unix.Flock(int(lock.Fd()), unix.LOCK_EX)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("lock %s: %w", lock.Name(), err)
		}
	}
	return f()
}

// Process is the supervising process of a guest, and never another one that got its number.
type Process struct {
	lock *os.File
	fd   int
}

// Process opens the process that supervises a guest.
func (r Registry) Process(g Guest) (*Process, error) {
	var p *Process
	err := r.locked(func() (err error) {
		p, err = openProcess(g)
		return err
	})
	return p, err
}

// openProcess is Process.
//
// Preconditions: the registry is locked.
func openProcess(g Guest) (*Process, error) {
	path := filepath.Join(g.Dir, guestLock)
	lock, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("guest %s: %w", g.Name, ErrNoGuest)
	}
	p := &Process{lock: lock, fd: -1}
	now, err := readGuest(g.Dir)
	switch {
	case err == nil && now.PIDNamespace != pidNamespace():
		err = fmt.Errorf("guest %s runs in another pid namespace than this process: say it there, or to the guest itself (uml exec)",
			g.Name)
		return nil, errors.Join(err, p.Close())
	case err == nil:
		p.fd, err = unix.PidfdOpen(now.PID, 0)
	}
	// Whoever held the lock when the process was opened holds it still: it was not gone, nor its number another's.
	runs, heldErr := held(path)
	if err = errors.Join(err, heldErr); err != nil || !runs {
		return nil, errors.Join(fmt.Errorf("guest %s: %w", g.Name, ErrNoGuest), err, p.Close())
	}
	return p, nil
}

// pidNamespace is the number of this process's own.
func pidNamespace() uint64 {
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/pid", &st); err != nil {
		return 0 // a kernel with one alone
	}
	return st.Ino
}

// Signal sends a signal. To a process that has ended it is no error.
func (p *Process) Signal(sig unix.Signal) error {
	if err := unix.PidfdSendSignal(p.fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal the guest's supervisor: %w", err)
	}
	return nil
}

// errTimeout is Wait's error when the time is over.
var errTimeout = errors.New("it has not ended in time")

// Wait waits for the end, at most for timeout unless that is negative, and returns the exit code.
func (p *Process) Wait(timeout time.Duration) (int, error) {
	deadline := time.Now().Add(timeout)
	for {
		ms := -1
		if timeout >= 0 {
			ms = int(max(0, time.Until(deadline).Milliseconds()))
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}, ms)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, err
		case n == 0:
			return 0, errTimeout
		default:
			return p.code()
		}
	}
}

// IsTimeout says that the error of Wait is but the time's.
func IsTimeout(err error) bool { return errors.Is(err, errTimeout) }

// code is what Release has left.
func (p *Process) code() (int, error) {
	buf := make([]byte, 16)
	n, _ := p.lock.ReadAt(buf, 0) // always an EOF
	code, err := strconv.Atoi(string(buf[:n]))
	if err != nil {
		return 0, errors.New("the guest's supervisor was killed")
	}
	return code, nil
}

// Close forgets the process, which goes on.
func (p *Process) Close() error {
	err := p.lock.Close()
	if p.fd >= 0 {
		err = errors.Join(err, unix.Close(p.fd))
	}
	return err
}

// LogPath is where the log of a detached guest of that name is, or was. The directory exists then; logs beyond the
// latest few of guests that are gone are removed.
func (r Registry) LogPath(name string) (string, error) {
	if err := CheckName(name); err != nil {
		return "", err
	}
	if err := os.MkdirAll(r.logs, 0o700); err != nil {
		return "", fmt.Errorf("make a directory for logs: %w; set XDG_STATE_HOME to one that can be written", err)
	}
	r.dropLogs(r.logs)
	return filepath.Join(r.logs, name+".log"), nil
}

// dropLogs removes the oldest logs when there are too many. Nobody needs them: what fails is tried the next time.
func (r Registry) dropLogs(dir string) {
	_ = r.locked(func() error {
		guests, err := r.list()
		if err != nil {
			return err
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		var old []fs.FileInfo
		for _, e := range entries {
			name, isLog := strings.CutSuffix(e.Name(), ".log")
			info, err := e.Info()
			if isLog && err == nil && !slices.ContainsFunc(guests, func(g Guest) bool { return g.Name == name }) {
				old = append(old, info)
			}
		}
		slices.SortFunc(old, func(a, b fs.FileInfo) int { return b.ModTime().Compare(a.ModTime()) })
		for _, info := range old[min(len(old), maxLogs):] {
			path := filepath.Join(dir, info.Name())
			_ = os.Remove(path)
			_ = os.Remove(path + ".1")
		}
		return nil
	})
}

// CheckName says what is wrong with a guest's name.
func CheckName(name string) error {
	bad := func(r rune) bool { return !isNameRune(r) && r != '.' && r != '-' && r != '_' }
	if name == "" || len(name) > maxName || !isNameRune(rune(name[0])) || strings.ContainsFunc(name, bad) {
		return fmt.Errorf("%q is not a name for a guest: write letters, digits, and inner dots, hyphens or underscores, "+
			"%d at most", name, maxName)
	}
	return nil
}

// MakeName makes a name of any text, such as that of a directory.
func MakeName(text string) string {
	name := strings.Map(func(r rune) rune {
		if isNameRune(r) || r == '.' || r == '-' || r == '_' {
			return r
		}
		return '-'
	}, text)
	name = strings.TrimLeft(name, ".-_")
	name = strings.TrimRight(name[:min(len(name), maxName)], ".-_")
	if name == "" {
		return "guest"
	}
	return name
}

func isNameRune(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9'
}
