package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// script is what debugfs(8) is to do.
type script struct {
	dir    string // where the image is
	text   bytes.Buffer
	values map[string]string // of extended attributes, to the files that they are in
}

func (s *script) add(format string, a ...any) { fmt.Fprintf(&s.text, format+"\n", a...) }

// fromTree gives the image's inodes what the archive says of them.
func (s *script) fromTree(t *tree) error {
	numbers, err := s.match(t)
	if err != nil {
		return err
	}
	for _, n := range t.numbered {
		for _, ino := range numbers[n] {
			if err := s.set(n, ino, numbers); err != nil {
				return err
			}
		}
	}
	return nil
}

// match finds the inodes of nodes by their times. There is one for each, but for a symbolic link with several names, which
// mke2fs gives as many inodes.
func (s *script) match(t *tree) (map[*node][]uint32, error) {
	numbers := map[*node][]uint32{t.numbered[0]: {rootInode}}
	err := s.inodes(func(i inode) error {
		switch {
		case i.number == rootInode:
			return nil
		case i.mtime == 0 || int64(i.mtime) >= int64(len(t.numbered)):
			// lost+found, which mke2fs adds to what is there, with today's date. If there is another, one is missing below.
			return nil
		}
		n := t.numbered[i.mtime]
		want := n.mode & unix.S_IFMT
		if n.isDevice() {
			want = unix.S_IFIFO
		}
		if uint32(i.mode)&unix.S_IFMT != want || len(numbers[n]) > 0 && want != unix.S_IFLNK {
			return fmt.Errorf("inode %d cannot be told from another", i.number)
		}
		numbers[n] = append(numbers[n], i.number)
		return nil
	})
	if err == nil && len(numbers) != len(t.numbered) {
		err = fmt.Errorf("%d of %d files are in the file system", len(numbers), len(t.numbered))
	}
	return numbers, err
}

func (s *script) inodes(visit func(inode) error) error {
	image, err := os.Open(filepath.Join(s.dir, imageName))
	if err != nil {
		return err
	}
	defer image.Close()
	return readInodes(image, visit)
}

// set writes the commands for one inode of a node.
func (s *script) set(n *node, ino uint32, numbers map[*node][]uint32) error {
	if n.isDevice() {
		if err := s.makeDevice(n, ino, numbers); err != nil {
			return fmt.Errorf("device %q: %w", n.names[0].name, err)
		}
	}
	s.add("sif <%d> mode 0%o", ino, n.mode)
	s.add("sif <%d> uid %d", ino, n.uid)
	s.add("sif <%d> gid %d", ino, n.gid)
	s.addTime(ino, "mtime", n.mtime)
	s.addTime(ino, "atime", n.atime)
	for _, name := range n.spare {
		if _, replaced := n.xattrs[name]; replaced {
			continue
		}
		word, err := quote(name)
		if err != nil {
			return err
		}
		s.add("ea_rm <%d> %s", ino, word)
	}
	for _, name := range slices.Sorted(maps.Keys(n.xattrs)) {
		word, err := quote(name)
		if err != nil {
			return fmt.Errorf("extended attribute %q: %w", name, err)
		}
		file, err := s.value(n.xattrs[name])
		if err != nil {
			return err
		}
		s.add("ea_set -f %s <%d> %s", file, ino, word)
	}
	return nil
}

// addTime sets a time: 32 bits of seconds, signed, which two bits beside the nanoseconds extend (EXT4_EPOCH_BITS in
// fs/ext4/ext4.h): from 1901 to 2446, of which we leave out what is before 1970.
func (s *script) addTime(ino uint32, field string, t time.Time) {
	const last = 3<<32 + 1<<31 - 1
	seconds, nanoseconds := t.Unix(), t.Nanosecond()
	if seconds < 0 || seconds > last {
		seconds, nanoseconds = min(max(seconds, 0), last), 0
	}
	epoch := (seconds - int64(int32(seconds))) >> 32
	s.add("sif <%d> %s @%d", ino, field, uint32(seconds))
	s.add("sif <%d> %s_extra %d", ino, field, int64(nanoseconds)<<2|epoch)
}

// makeDevice turns a FIFO into a device. The type is in the directory's entry, too, so that the entry has to be made
// anew; neither unlink nor ln of debugfs changes the inode's number of links.
func (s *script) makeDevice(n *node, ino uint32, numbers map[*node][]uint32) error {
	// new_encode_dev and old_encode_dev in include/linux/kdev_t.h; ext4_mknod has the one in the second place.
	old, new := n.major<<8|n.minor, uint32(0)
	if n.major >= 1<<8 || n.minor >= 1<<8 {
		old, new = 0, n.minor&0xff|n.major<<8|n.minor&^0xff<<12
	}
	s.add("sif <%d> mode 0%o", ino, n.mode)
	s.add("sif <%d> block[0] %d", ino, old)
	s.add("sif <%d> block[1] %d", ino, new)
	for _, name := range n.names {
		word, err := quote("./" + name.name)
		if err != nil {
			return err
		}
		s.add("cd <%d>", numbers[name.parent][0])
		s.add("unlink %s", word)
		s.add("ln <%d> %s", ino, word)
	}
	return nil
}

// value puts a value into a file and returns the file's name.
func (s *script) value(value string) (string, error) {
	if name, ok := s.values[value]; ok {
		return name, nil
	}
	if s.values == nil {
		s.values = map[string]string{}
	}
	name := fmt.Sprintf("value%d", len(s.values))
	s.values[value] = name
	return name, os.WriteFile(filepath.Join(s.dir, name), []byte(value), 0o600)
}

// quote makes one word of a text, for libss, which reads debugfs's commands: within quotes only a quote means something,
// and is doubled (lib/ss/parse.c). A line ends at a line break in any case.
func quote(text string) (string, error) {
	if strings.ContainsAny(text, "\n\r\x00") {
		return "", errors.New("a name with a line break cannot be made")
	}
	return `"` + strings.ReplaceAll(text, `"`, `""`) + `"`, nil
}

// edit has debugfs do what the script says. It goes on after an error, and does not always tell by its exit code: whatever
// it says on standard error, besides who it is, is one.
func (t tools) edit(ctx context.Context, work string, s *script) error {
	if err := os.WriteFile(filepath.Join(work, scriptName), s.text.Bytes(), 0o600); err != nil {
		return err
	}
	complaints, err := t.run(ctx, work, "debugfs", "-w", "-f", scriptName, imageName)
	if err != nil {
		return err
	}
	for line := range strings.Lines(complaints) {
		if !strings.HasPrefix(line, "debugfs 1.") {
			return fmt.Errorf("debugfs: %s", strings.TrimSpace(line))
		}
	}
	return nil
}
