package agent

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// maxAccountFile bounds /etc/passwd, /etc/group and /etc/shadow in bytes: 100000 accounts have room.
	maxAccountFile = 8 << 20
	// maxGroups is NGROUPS_MAX, the number of groups a process can have (getgroups(2)).
	maxGroups = 65536
	// defaultShell is for accounts that name none (passwd(5)).
	defaultShell = "/bin/sh"
)

// user is whom a command runs as.
type user struct {
	name        string // empty for a number without an account
	uid, gid    uint32
	groups      []uint32 // supplementary
	home, shell string
}

// passwdEntry is a line of passwd(5).
type passwdEntry struct {
	name, password string
	uid, gid       uint32
	home, shell    string
}

// groupEntry is a line of group(5).
type groupEntry struct {
	name    string
	gid     uint32
	members []string
}

// accounts looks users up in the files below a directory, which is "/" but in tests. Every look-up reads them anew:
// they are short, and change.
type accounts struct{ root string }

// read returns a file, which is empty if it is not there.
func (a accounts) read(name string) ([]byte, error) {
	file, err := os.Open(filepath.Join(a.root, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxAccountFile+1))
	if err == nil && len(data) > maxAccountFile {
		err = fmt.Errorf("/%s is longer than %d bytes", name, maxAccountFile)
	}
	return data, err
}

// byName returns the account of that name, with all its groups.
func (a accounts) byName(name string) (*user, error) {
	return a.find(name, func(e passwdEntry) bool { return e.name == name })
}

// find returns the first account that match takes; what is for the error. A tree without an account of root still has
// a root.
func (a accounts) find(what string, match func(passwdEntry) bool) (*user, error) {
	passwd, err := a.read("etc/passwd")
	if err != nil {
		return nil, err
	}
	entry, ok := findPasswd(passwd, match)
	if !ok {
		entry = passwdEntry{name: "root", home: "/root"}
		if _, exists := findPasswd(passwd, func(e passwdEntry) bool { return e.uid == 0 }); exists || !match(entry) {
			return nil, fmt.Errorf("no user %q in /etc/passwd of the guest", what)
		}
	}
	group, err := a.read("etc/group")
	if err != nil {
		return nil, err
	}
	return &user{
		name: entry.name, uid: entry.uid, gid: entry.gid,
		groups: groupsOf(group, entry.name),
		home:   cmp.Or(entry.home, "/"),
		shell:  cmp.Or(entry.shell, defaultShell),
	}, nil
}

// lookup returns the user of a specification as docker-exec(1) takes it: "USER" or "USER:GROUP", each a name or a
// number. A name goes before a number. A number needs no account; it then has group 0 and the home "/". With a group
// there are no supplementary groups. Empty means root.
func (a accounts) lookup(spec string) (*user, error) {
	name, group, hasGroup := strings.Cut(spec, ":")
	if hasGroup && group == "" {
		return nil, fmt.Errorf("user %q has an empty group, want USER or USER:GROUP", spec)
	}
	name = cmp.Or(name, "root")
	u, err := a.byName(name)
	if err != nil {
		id, ok := parseID(name)
		if !ok {
			return nil, err
		}
		u, err = a.find(name, func(e passwdEntry) bool { return e.uid == id })
		if err != nil {
			u = &user{uid: id, home: "/", shell: defaultShell}
		}
	}
	if !hasGroup {
		return u, nil
	}
	data, err := a.read("etc/group")
	if err != nil {
		return nil, err
	}
	u.groups = nil
	if entry, ok := findGroup(data, group); ok {
		u.gid = entry.gid
	} else if u.gid, ok = parseID(group); !ok {
		return nil, fmt.Errorf("no group %q in /etc/group of the guest", group)
	}
	return u, nil
}

// findPasswd returns the first entry that match takes. Lines that are no entries, such as comments and those of NIS
// ("+::::::"), do not exist.
func findPasswd(data []byte, match func(passwdEntry) bool) (passwdEntry, bool) {
	for line := range bytes.Lines(data) {
		if entry, ok := parsePasswdLine(string(bytes.TrimRight(line, "\r\n"))); ok && match(entry) {
			return entry, true
		}
	}
	return passwdEntry{}, false
}

func parsePasswdLine(line string) (entry passwdEntry, ok bool) {
	fields := strings.Split(line, ":")
	if len(fields) != 7 || !isName(fields[0]) || strings.ContainsRune(line, 0) {
		return entry, false
	}
	uid, okUID := parseID(fields[2])
	gid, okGID := parseID(fields[3])
	return passwdEntry{fields[0], fields[1], uid, gid, fields[5], fields[6]}, okUID && okGID
}

// findGroup returns the group of that name.
func findGroup(data []byte, name string) (groupEntry, bool) {
	for line := range bytes.Lines(data) {
		if entry, ok := parseGroupLine(string(bytes.TrimRight(line, "\r\n"))); ok && entry.name == name {
			return entry, true
		}
	}
	return groupEntry{}, false
}

// groupsOf returns the numbers of all groups that list a user, without doubles.
func groupsOf(data []byte, user string) []uint32 {
	var groups []uint32
	seen := make(map[uint32]bool)
	for line := range bytes.Lines(data) {
		entry, ok := parseGroupLine(string(bytes.TrimRight(line, "\r\n")))
		if !ok || seen[entry.gid] || !slices.Contains(entry.members, user) || len(groups) == maxGroups {
			continue
		}
		seen[entry.gid] = true
		groups = append(groups, entry.gid)
	}
	return groups
}

func parseGroupLine(line string) (entry groupEntry, ok bool) {
	fields := strings.Split(line, ":")
	if len(fields) != 4 || !isName(fields[0]) || strings.ContainsRune(line, 0) {
		return entry, false
	}
	gid, ok := parseID(fields[2])
	members := strings.FieldsFunc(fields[3], func(r rune) bool { return r == ',' || r == ' ' })
	return groupEntry{fields[0], gid, members}, ok
}

// isName says whether an entry with that name is one of this machine, and not a comment or a reference to NIS.
func isName(name string) bool {
	return name != "" && !strings.ContainsAny(name[:1], "#+-")
}

// parseID parses a user's or a group's number. The highest one means "leave it as it is" to the kernel (setresuid(2)).
func parseID(s string) (id uint32, ok bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n != 1<<32-1
}

// environment returns the variables that every command of the user gets.
func (u *user) environment() []string {
	path := "/usr/local/bin:/usr/bin:/bin"
	if u.uid == 0 {
		path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	}
	env := []string{"PATH=" + path, "HOME=" + u.home, "SHELL=" + u.shell}
	if u.name != "" {
		env = append(env, "USER="+u.name, "LOGNAME="+u.name)
	}
	return env
}

// isSelf says whether the process already has the user's rights, or could not get other ones.
func (u *user) isSelf() bool {
	return os.Geteuid() != 0 && uint32(os.Geteuid()) == u.uid
}

// as calls f with the rights of the user on files, and only those: the check that the kernel would make when the user
// came along. f must not start goroutines that touch files.
func (u *user) as(f func() error) error {
	if os.Geteuid() != 0 || (u.uid == 0 && u.gid == 0) {
		return f()
	}
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		if err := u.takeThread(); err != nil {
			result <- err
			return
		}
		result <- f()
	}()
	return <-result
}

// takeThread gives the calling thread alone the user's rights on files, for good. Capabilities that override
// permissions go with the number 0 (capabilities(7), "Effect of user ID changes on capabilities").
func (u *user) takeThread() error {
	var first *uint32
	if len(u.groups) > 0 {
		first = &u.groups[0]
	}
	// Without libc, and not through package syscall, a system call is one of the thread.
	_, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(u.groups)), uintptr(unsafe.Pointer(first)), 0)
	if errno != 0 {
		return fmt.Errorf("set groups: %w", errno)
	}
	for _, id := range []struct {
		call uintptr
		id   uint32
	}{{unix.SYS_SETFSGID, u.gid}, {unix.SYS_SETFSUID, u.uid}} {
		// Neither reports errors; the second call changes nothing and returns what is set.
		unix.RawSyscall(id.call, uintptr(id.id), 0, 0)
		if now, _, _ := unix.RawSyscall(id.call, uintptr(^uint32(0)), 0, 0); uint32(now) != id.id {
			return fmt.Errorf("take the rights of user %d, group %d: %w", u.uid, u.gid, unix.EPERM)
		}
	}
	return nil
}
