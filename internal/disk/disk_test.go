package disk

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// newTar makes an archive. An entry's size is its content's.
func newTar(t testing.TB, entries ...tarEntry) *bytes.Buffer {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		h := e.Header
		h.Size = int64(len(e.content))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatalf("%q: %v", h.Name, err)
		}
		if _, err := io.WriteString(w, e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &out
}

type tarEntry struct {
	tar.Header
	content string
}

// needTools skips where e2fsprogs is missing.
func needTools(t *testing.T) {
	t.Helper()
	if _, err := findTools("mke2fs", "debugfs", "e2fsck", "resize2fs", "dumpe2fs"); err != nil {
		t.Skip(err)
	}
}

// debugfs asks an image something. The question has no foreign text in it.
func debugfs(t *testing.T, image, request string) string {
	t.Helper()
	tool, err := findTools("debugfs")
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(tool["debugfs"], "-R", request, image).Output()
	if err != nil {
		t.Fatalf("debugfs %q: %v", request, err)
	}
	return string(out)
}

// checkClean has e2fsck look for mistakes.
func checkClean(t *testing.T, image string) {
	t.Helper()
	tool, err := findTools("e2fsck")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(tool["e2fsck"], "-fn", image).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v: %s", err, out)
	}
}

// stat of debugfs, and what is read from it.
var statPattern = regexp.MustCompile(`(?s)^Inode: (\d+) +Type: ([A-Za-z ]+?) +Mode: +(\d+).*User: +(\d+) +Group: +(-?\d+).*` +
	`Size: (\d+).*Links: (\d+).* atime: 0x([0-9a-f]+):([0-9a-f]+).* mtime: 0x([0-9a-f]+):([0-9a-f]+)`)

// file describes a file of an image: type, mode, owner, links, and device or target.
func file(t *testing.T, image, request string) string {
	t.Helper()
	out := debugfs(t, image, "stat "+request)
	m := statPattern.FindStringSubmatch(out)
	if m == nil {
		return "stat " + request + ": " + out
	}
	text := fmt.Sprintf("%s %s %s:%s %s", m[2], m[3], m[4], m[5], m[7])
	for _, pattern := range []string{`Device major/minor number: (\S+)`, `device major/minor number: (\S+)`, `Fast link dest: "(.*)"`} {
		if found := regexp.MustCompile(pattern).FindStringSubmatch(out); found != nil {
			text += " " + found[1]
		}
	}
	return text
}

var someTime = time.Unix(1_700_000_000, 123_456_789)

func head(name string, kind byte, mode int64, uid, gid int) tar.Header {
	return tar.Header{
		Name: name, Typeflag: kind, Mode: mode, Uid: uid, Gid: gid, ModTime: someTime, AccessTime: someTime.Add(time.Hour),
		Format: tar.FormatPAX,
	}
}

func link(h tar.Header, target string) tar.Header { h.Linkname = target; return h }

func device(h tar.Header, major, minor int64) tar.Header {
	h.Devmajor, h.Devminor = major, minor
	return h
}

func xattrs(h tar.Header, pairs ...string) tar.Header {
	h.PAXRecords = map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		h.PAXRecords["SCHILY.xattr."+pairs[i]] = pairs[i+1]
	}
	return h
}

// capability is a security.capability (struct vfs_cap_data): cap_net_raw, permitted and effective.
const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// acl is a system.posix_acl_access as the kernel passes it: user::rw-, user:1000:r--, group::r--, mask::r--, other::---.
const acl = "\x02\x00\x00\x00" + "\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\xe8\x03\x00\x00" +
	"\x04\x00\x04\x00\xff\xff\xff\xff" + "\x10\x00\x04\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff"

// aclOnDisk is how debugfs shows it: in the file system's own form (fs/ext4/acl.h).
const aclOnDisk = "system.posix_acl_access (28) = 01 00 00 00 01 00 06 00 02 00 04 00 e8 03 00 00 04 00 04 00 10 00 04 00 20 00 00 00"

const oddName = "odd \"name\"\n' \\ <12> #;\x01\xff%s"

// everything is an archive with one of each.
func everything(t *testing.T) *bytes.Buffer {
	return newTar(t,
		tarEntry{head("./", tar.TypeDir, 0o750, 5, 6), ""},
		tarEntry{head("etc/", tar.TypeDir, 0o755, 0, 0), ""},
		tarEntry{head("etc/shadow", tar.TypeReg, 0o640, 0, 42), "root:*:1\n"},
		tarEntry{head("closed", tar.TypeDir, 0o000, 1000, 1000), ""},
		tarEntry{head("closed/none", tar.TypeReg, 0o000, 70000, 4294967294), "secret"},
		tarEntry{head("usr/bin/su", tar.TypeReg, 0o4755, 0, 0), "#!/bin/false\n"},
		tarEntry{link(head("usr/bin/su2", tar.TypeLink, 0, 0, 0), "usr/bin/su"), ""},
		tarEntry{link(head("usr/bin/su3", tar.TypeLink, 0, 0, 0), "/usr/bin/su"), ""},
		tarEntry{link(head("lib", tar.TypeSymlink, 0o777, 7, 8), "usr/lib"), ""},
		tarEntry{link(head("abs", tar.TypeSymlink, 0o777, 7, 8), "/etc/../../"+strings.Repeat("long/", 30)), ""},
		tarEntry{link(head("lib2", tar.TypeLink, 0, 0, 0), "lib"), ""},
		tarEntry{device(head("dev/tty", tar.TypeChar, 0o666, 0, 5), 5, 0), ""},
		tarEntry{device(head("dev/big", tar.TypeBlock, 0o660, 0, 6), 259, 70000), ""},
		tarEntry{device(head(`dev/a "b"`, tar.TypeChar, 0o600, 9, 9), 1, 3), ""},
		tarEntry{device(head(`dev/<12>`, tar.TypeChar, 0o600, 10, 9), 1, 3), ""},
		tarEntry{link(head("dev/tty2", tar.TypeLink, 0, 0, 0), "dev/tty"), ""},
		tarEntry{head("run/fifo", tar.TypeFifo, 0o620, 3, 4), ""},
		tarEntry{head(oddName, tar.TypeReg, 0o1644, 11, 12), "odd"},
		tarEntry{head(oddName+"dir/x", tar.TypeReg, 0o644, 11, 12), "odd"},
		tarEntry{xattrs(head("ping", tar.TypeReg, 0o755, 0, 0),
			"security.capability", capability, "user.\"q\" a", "1\n2", "trusted.t", strings.Repeat("x", 200),
			"system.posix_acl_access", acl, "com.apple.quarantine", "no"), "ping"},
		tarEntry{xattrs(head("xdir", tar.TypeDir, 0o2775, 1, 2), "user.a", "b"), ""},
		tarEntry{head("sparse", tar.TypeReg, 0o644, 0, 0), strings.Repeat("\x00", 3<<20) + "end"},
		tarEntry{head("empty", tar.TypeReg, 0o644, 2, 2), ""},
		tarEntry{head("twice", tar.TypeReg, 0o644, 2, 2), "first"},
		tarEntry{head("twice", tar.TypeReg, 0o600, 3, 3), "second"},
		tarEntry{tar.Header{Name: "future", Typeflag: tar.TypeReg, ModTime: time.Unix(5e9, 0), Format: tar.FormatPAX}, ""},
		tarEntry{head("../../up", tar.TypeReg, 0o644, 2, 2), "up"},
	)
}

func TestCreate(t *testing.T) {
	needTools(t)
	dir := t.TempDir()
	image := filepath.Join(dir, "a disk?x")
	if err := Create(t.Context(), image, Options{Tar: everything(t)}); err != nil {
		t.Fatal(err)
	}
	plain := filepath.Join(dir, "image") // e2fsprogs would take what follows a ? for options
	if err := os.Symlink(image, plain); err != nil {
		t.Fatal(err)
	}
	checkClean(t, plain)
	for name, want := range map[string]string{
		"/":              "directory 0750 5:6 10",
		"/etc":           "directory 0755 0:0 2",
		"/etc/shadow":    "regular 0640 0:42 1",
		"/closed":        "directory 0000 1000:1000 2",
		"/closed/none":   "regular 0000 70000:-2 1",
		"/usr":           "directory 0755 0:0 3", // not in the archive
		"/usr/bin/su":    "regular 04755 0:0 3",
		"/usr/bin/su2":   "regular 04755 0:0 3",
		"/usr/bin/su3":   "regular 04755 0:0 3",
		"/lib":           "symlink 0777 7:8 1 usr/lib",
		"/lib2":          "symlink 0777 7:8 1 usr/lib",
		"/abs":           "symlink 0777 7:8 1",
		"/dev/tty":       "character special 0666 0:5 2 05:00",
		"/dev/tty2":      "character special 0666 0:5 2 05:00",
		"/dev/big":       "block special 0660 0:6 1 259:70000",
		`"/dev/a ""b"""`: "character special 0600 9:9 1 01:03",
		"/dev/<12>":      "character special 0600 10:9 1 01:03",
		"/run/fifo":      "FIFO 0620 3:4 1",
		"/ping":          "regular 0755 0:0 1",
		"/xdir":          "directory 02775 1:2 2",
		"/sparse":        "regular 0644 0:0 1",
		"/twice":         "regular 0600 3:3 1",
		"/up":            "regular 0644 2:2 1",
		"/lost+found":    "directory 0700 0:0 2",
	} {
		if got := file(t, plain, name); !strings.HasPrefix(got, want) {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	checkContents(t, plain)
	checkAttributes(t, plain)
	checkSparse(t, image, 2<<30)
	if entries, _ := os.ReadDir(dir); len(entries) != 2 {
		t.Errorf("left beside the image: %v", entries)
	}
}

// checkContents copies all out of the image, as who runs the test, and compares.
func checkContents(t *testing.T, image string) {
	t.Helper()
	out := t.TempDir()
	debugfs(t, image, "rdump / "+out)
	t.Cleanup(func() { _ = os.Chmod(filepath.Join(out, "closed"), 0o700) }) // else a plain user could not remove it
	for name, want := range map[string]string{
		"etc/shadow": "root:*:1\n", "usr/bin/su3": "#!/bin/false\n", oddName: "odd", oddName + "dir/x": "odd",
		"sparse": strings.Repeat("\x00", 3<<20) + "end", "empty": "", "twice": "second", "up": "up", "ping": "ping",
	} {
		if got, err := os.ReadFile(filepath.Join(out, name)); err != nil || string(got) != want {
			t.Errorf("content of %q = %.40q, %v, want %.40q", name, got, err, want)
		}
	}
	if got, err := os.Readlink(filepath.Join(out, "abs")); err != nil || !strings.HasPrefix(got, "/etc/../../long/") {
		t.Errorf("abs leads to %q, %v", got, err)
	}
}

// checkAttributes looks at the times and extended attributes.
func checkAttributes(t *testing.T, image string) {
	t.Helper()
	m := statPattern.FindStringSubmatch(debugfs(t, image, "stat /etc/shadow"))
	want := []string{"6553ff10", "1d6f3454", "6553f100", "1d6f3454"} // seconds, nanoseconds<<2, as in the inode
	if got := m[len(m)-4:]; strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("access and modification time of /etc/shadow = %v, want %v", got, want)
	}
	m = statPattern.FindStringSubmatch(debugfs(t, image, "stat /future"))
	if got := strings.Join(m[len(m)-4:], " "); got != "2a05f200 00000001 2a05f200 00000001" { // 5e9 is 1<<32 and that
		t.Errorf("access and modification time of /future = %s", got)
	}
	list := debugfs(t, image, "ea_list /ping")
	for _, want := range []string{"security.capability (20)", `user.\"q\" a (3) = 31 0a 32`, "trusted.t (200)", aclOnDisk} {
		if !strings.Contains(list, want) {
			t.Errorf("attributes of /ping: no %s in %s", want, list)
		}
	}
	if strings.Contains(list, "quarantine") {
		t.Errorf("attributes of /ping: %s", list)
	}
	out := filepath.Join(t.TempDir(), "value")
	debugfs(t, image, "ea_get -f "+out+" /ping security.capability")
	if got, err := os.ReadFile(out); err != nil || string(got) != capability {
		t.Errorf("security.capability of /ping = %q, %v, want %q", got, err, capability)
	}
	if list := debugfs(t, image, "ea_list /xdir"); !strings.Contains(list, `user.a (1) = "b"`) {
		t.Errorf("attributes of /xdir: %s", list)
	}
}

// checkSparse has an image be of a size, and take little of it.
func checkSparse(t *testing.T, image string, size int64) {
	t.Helper()
	info, err := os.Stat(image)
	if err != nil {
		t.Fatal(err)
	}
	if used := statOf(info).Blocks * 512; info.Size() != size || used > 64<<20 {
		t.Errorf("the image has %d bytes and takes %d, want %d and less than 64 MiB", info.Size(), used, size)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the image's mode is %v, want 0600", info.Mode())
	}
}

// TestCreateLargeDirectory has a large directory get an index, which mke2fs does not make.
func TestCreateLargeDirectory(t *testing.T) {
	needTools(t)
	var entries []tarEntry
	for i := range 500 {
		entries = append(entries, tarEntry{head(fmt.Sprintf("d/a rather long name of a file %d", i), tar.TypeReg, 0o644, i, i), ""})
	}
	image := filepath.Join(t.TempDir(), "disk")
	if err := Create(t.Context(), image, Options{Tar: newTar(t, entries...), Size: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	checkClean(t, image)
	if out := debugfs(t, image, "htree_dump /d"); !strings.Contains(out, "Root node dump") {
		t.Errorf("/d has no index: %s", out)
	}
	if got := file(t, image, `"/d/a rather long name of a file 499"`); got != "regular 0644 499:499 1" {
		t.Errorf("the last file is %s", got)
	}
}

func TestCreateNot(t *testing.T) {
	needTools(t)
	dir := t.TempDir()
	existing := filepath.Join(dir, "existing")
	if err := os.WriteFile(existing, []byte("keep"), 0o600); err != nil {
		t.Fatal(err)
	}
	small := newTar(t, tarEntry{head("f", tar.TypeReg, 0o644, 0, 0), strings.Repeat("x", 40<<20)})
	for _, test := range []struct {
		name, path string
		o          Options
		want       string
	}{
		{"an existing file", "existing", Options{Tar: newTar(t)}, "exists already"},
		{"a directory", ".", Options{Tar: newTar(t)}, "exists already"},
		{"no directory for it", "none/new", Options{Tar: newTar(t)}, "no such file"},
		{"too small", "new", Options{Tar: small, Size: 32 << 20}, "33554432 bytes may be too few for 4194"},
		{"no archive", "new", Options{Tar: strings.NewReader(strings.Repeat("no archive", 100))}, "read archive"},
		{"half an archive", "new", Options{Tar: io.LimitReader(everything(t), 3<<20)}, "unexpected EOF"},
		{"a device with a line break", "new", Options{
			Tar: newTar(t, tarEntry{device(head("a\nb", tar.TypeChar, 0o600, 0, 0), 1, 3), ""}),
		}, "a name with a line break cannot be made"},
		{"no target", "new", Options{Tar: newTar(t, tarEntry{link(head("a", tar.TypeLink, 0, 0, 0), "b"), ""})}, "hard link"},
		{"out by a link", "new", Options{Tar: newTar(t,
			tarEntry{link(head("out", tar.TypeSymlink, 0o777, 0, 0), "../.."), ""},
			tarEntry{head("out/f", tar.TypeReg, 0o644, 0, 0), "x"})}, "escapes"},
	} {
		path := filepath.Join(dir, test.path)
		err := Create(t.Context(), path, test.o)
		if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: Create() = %v, want %q", test.name, err, test.want)
		}
	}
	entries, _ := os.ReadDir(dir)
	if got, err := os.ReadFile(existing); err != nil || string(got) != "keep" || len(entries) != 1 {
		t.Errorf("after all that: %q, %v, and %v", got, err, entries)
	}
}

func TestGrow(t *testing.T) {
	needTools(t)
	image := filepath.Join(t.TempDir(), "disk?")
	plain := filepath.Join(t.TempDir(), "image")
	if err := errors.Join(Create(t.Context(), image, Options{Tar: everything(t), Size: 32 << 20}), os.Symlink(image, plain)); err != nil {
		t.Fatal(err)
	}
	if err := Grow(t.Context(), image, 16<<20); !errors.Is(err, ErrShrink) {
		t.Errorf("Grow to less = %v, want %v", err, ErrShrink)
	}
	held, err := LockShared(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := Grow(t.Context(), image, 1<<30); !errors.Is(err, ErrInUse) {
		t.Errorf("Grow of an image in use = %v, want %v", err, ErrInUse)
	}
	held.Release()
	for _, size := range []int64{1<<30 + 1000, 1 << 30} { // the second time there is nothing to do
		if err := Grow(t.Context(), image, size); err != nil {
			t.Fatal(err)
		}
		checkClean(t, plain)
		checkSparse(t, image, 1<<30)
		if got := file(t, plain, "/closed/none"); got != "regular 0000 70000:-2 1" {
			t.Errorf("afterwards a file is %s", got)
		}
		if out := debugfs(t, plain, "show_super_stats -h"); !strings.Contains(out, "Block count:              262144") {
			t.Errorf("the file system has not grown: %s", out)
		}
	}
	if err := Grow(t.Context(), filepath.Join(t.TempDir(), "none"), 1<<30); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Grow of no image = %v", err)
	}
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Grow(t.Context(), empty, 2<<20); !errors.Is(err, ErrNotExt4) {
		t.Errorf("Grow of what is no file system = %v", err)
	}
	if info, _ := os.Stat(empty); info.Size() != 1<<20 {
		t.Errorf("what is no file system has grown to %d bytes", info.Size())
	}
}

func TestFindToolsMissing(t *testing.T) {
	if _, err := findTools("mke9fs"); !errors.Is(err, ErrNoTools) || !strings.Contains(err.Error(), "install package e2fsprogs") {
		t.Errorf("findTools() = %v", err)
	}
}

// TestAsPlainUser runs the other tests once more as a user without privileges, where this one is root.
func TestAsPlainUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("is one already")
	}
	needTools(t)
	dir, err := os.MkdirTemp("", "disk-test")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	const id = 54321
	if err := os.Chown(dir, id, id); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "-test.v", "-test.run=.")
	cmd.Dir = dir
	cmd.Env = []string{"TMPDIR=" + dir, "PATH=/usr/bin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: id, Gid: id}, Pdeathsig: syscall.SIGKILL}
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestCreate ") {
		t.Errorf("as a plain user: %v\n%s", err, out)
	}
}
