package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	modeBits   = 0o7777
	capability = "security.capability"
	userXattr  = "user."
)

// attributes gives a file or a directory what the archive says of it, but for the time. Without the owners of the archive
// all is the user's, and least is the mode that the user needs.
func (u *unpacker) attributes(f *os.File, h *tar.Header, least uint32) error {
	fd := int(f.Fd())
	mode := uint32(h.Mode & modeBits)
	if u.options.Owner {
		if err := unix.Fchown(fd, h.Uid, h.Gid); err != nil {
			return ownerError(h, err)
		}
	} else {
		mode |= least
	}
	// After the owner, whose change takes set-user-id bits and capabilities away.
	if err := unix.Fchmod(fd, mode); err != nil {
		return fmt.Errorf("set its mode: %w", err)
	}
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrPrefix)
		if !ok {
			continue
		}
		if name != capability && !strings.HasPrefix(name, userXattr) || unix.Fsetxattr(fd, name, []byte(value), 0) != nil {
			u.report.LostXattrs++
		}
	}
	return nil
}

// attributesAt is the same for what cannot be opened: symbolic links, which have no mode, named pipes and devices.
func (u *unpacker) attributesAt(at place, h *tar.Header) error {
	if u.options.Owner {
		if err := unix.Fchownat(at.fd(), at.base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return ownerError(h, err)
		}
	}
	if h.Typeflag != tar.TypeSymlink {
		mode := uint32(h.Mode & modeBits)
		if !u.options.Owner {
			mode |= 0o600
		}
		// Follows a link, but there is none: it was made a moment ago, in a directory that is closed to others.
		if err := unix.Fchmodat(at.fd(), at.base, mode, 0); err != nil {
			return fmt.Errorf("set its mode: %w", err)
		}
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, xattrPrefix) {
			u.report.LostXattrs++ // the kernel has none for them but of root's kinds
		}
	}
	return setTime(at.fd(), at.base, h)
}

func ownerError(h *tar.Header, err error) error {
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("its owner %d:%d has no id in this user namespace: give the user more of them in /etc/subuid and "+
			"/etc/subgid, or do without owners: %w", h.Uid, h.Gid, err)
	}
	return fmt.Errorf("give it to its owner %d:%d: %w", h.Uid, h.Gid, err)
}

// setTime sets access and modification time, both to the latter.
func setTime(dir int, base string, h *tar.Header) error {
	t := unix.Timespec{Sec: h.ModTime.Unix(), Nsec: int64(h.ModTime.Nanosecond())}
	if h.ModTime.IsZero() {
		t = unix.Timespec{}
	}
	if err := unix.UtimesNanoAt(dir, base, []unix.Timespec{t, t}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set its time: %w", err)
	}
	return nil
}
