package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// unpack makes a root file system in a directory that the test removes.
func unpack(t testing.TB, data []byte, o UnpackOptions) (string, Report) {
	t.Helper()
	dir := filepath.Join(tempDir(t), "root")
	report, err := Unpack(context.Background(), bytes.NewReader(data), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return dir, report
}

// tempDir is one that may come to hold directories of any mode.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Remove(dir); err != nil {
			t.Errorf("Remove() = %v", err)
		}
	})
	return dir
}

// tree says what is below a directory, a line for each file in the order of names.
func listTree(t testing.TB, dir string) []string {
	t.Helper()
	var out []string
	names := map[uint64]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		info, err := d.Info()
		if err != nil {
			return err
		}
		line := name
		switch info.Mode().Type() {
		case fs.ModeDir:
			line += "/"
		case fs.ModeSymlink:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + target
		case fs.ModeNamedPipe:
			line += "|"
		case 0:
			ino := info.Sys().(*syscall.Stat_t).Ino
			if first, ok := names[ino]; ok {
				line += " = " + first
				break
			}
			names[ino] = name
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += ": " + string(text)
		default:
			line += " " + info.Mode().Type().String()
		}
		out = append(out, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestUnpack(t *testing.T) {
	tests := []struct {
		name    string
		entries []entry
		want    []string
	}{
		{"all types", []entry{
			dirEntry("d"), reg("d/a", "1"), hard("d/b", "d/a"), sym("d/c", "/nowhere"), newEntry(tar.TypeFifo, "p", 0o600),
		}, []string{"d/", "d/a: 1", "d/b = d/a", "d/c -> /nowhere", "p|"}},
		{"without directories", []entry{reg("a/b/c", "1")}, []string{"a/", "a/b/", "a/b/c: 1"}},
		{"absolute names", []entry{reg("/a", "1"), hard("//b", "/a")}, []string{"a: 1", "b = a"}},

		{
			"below a link",
			[]entry{dirEntry("usr/bin"), sym("bin", "usr/bin"), reg("bin/a", "1")},
			[]string{"bin -> usr/bin", "usr/", "usr/bin/", "usr/bin/a: 1"},
		},
		{
			"below an absolute link",
			[]entry{sym("x/l", "/usr"), reg("x/l/a", "1")},
			[]string{"usr/", "usr/a: 1", "x/", "x/l -> /usr"},
		},
		{
			"below a link that leads out",
			[]entry{sym("l", "../../../../tmp"), reg("l/a", "1")},
			[]string{"l -> ../../../../tmp", "tmp/", "tmp/a: 1"},
		},
		{
			"below links in a row",
			[]entry{sym("a", "b/x"), sym("b", "/c"), reg("a/f", "1")},
			[]string{"a -> b/x", "b -> /c", "c/", "c/x/", "c/x/f: 1"},
		},
		{
			"a link that is swapped",
			[]entry{sym("l", "a"), reg("l/f", "1"), sym("l", "/b"), reg("l/f", "2")},
			[]string{"a/", "a/f: 1", "b/", "b/f: 2", "l -> /b"},
		},
		{
			"a directory that becomes a link",
			[]entry{dirEntry("d"), sym("d", "/tmp"), reg("d/f", "1")},
			[]string{"d -> /tmp", "tmp/", "tmp/f: 1"},
		},
		{
			"a file through a link is made in its place",
			[]entry{reg("a", "1"), sym("l", "a"), reg("l", "2")},
			[]string{"a: 1", "l: 2"},
		},
		{
			"hard link to a link that leads out",
			[]entry{sym("l", "/etc/passwd"), hard("h", "l")},
			[]string{"h -> /etc/passwd", "l -> /etc/passwd"},
		},
		{
			"hard link through a link",
			[]entry{sym("l", "/usr"), reg("usr/a", "1"), hard("h", "l/a")},
			[]string{"h: 1", "l -> /usr", "usr/", "usr/a = h"},
		},

		{"later ones win", []entry{reg("a", "long"), reg("a", "2")}, []string{"a: 2"}},
		{"not in other names", []entry{reg("a", "1"), hard("b", "a"), reg("a", "2")}, []string{"a: 2", "b: 1"}},
		{"file over empty directory", []entry{dirEntry("a"), reg("a", "1")}, []string{"a: 1"}},
		{"directory over file", []entry{reg("a", "1"), dirEntry("a"), reg("a/b", "2")}, []string{"a/", "a/b: 2"}},
		{
			"directory over link",
			[]entry{sym("a", "b"), dirEntry("b"), dirEntry("a"), reg("a/f", "2")},
			[]string{"a/", "a/f: 2", "b/"},
		},
		{"directory twice", []entry{dirEntry("a"), reg("a/b", "1"), dirEntry("a")}, []string{"a/", "a/b: 1"}},
		{
			"link to itself",
			[]entry{reg("a", "1"), hard("a", "a"), hard("b", "a"), hard("a", "b")},
			[]string{"a: 1", "b = a"},
		},
		{"pipe over link", []entry{sym("a", "b"), newEntry(tar.TypeFifo, "a", 0o600)}, []string{"a|"}},
		{
			"global header, label",
			[]entry{
				{Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "x"}}},
				reg("a", "1"),
			},
			[]string{"a: 1"},
		},
		{"nothing", nil, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir, _ := unpack(t, pack(t, tt.entries...), UnpackOptions{})
			if got := listTree(t, dir); !slices.Equal(got, tt.want) {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
			// The flattened archive means the same.
			if len(tt.entries) == 0 {
				return
			}
			s := open(t, write(t, pack(t, tt.entries...)), Options{})
			r, err := s.Tar(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer closeAll(t, r)
			other := filepath.Join(tempDir(t), "root")
			if _, err := Unpack(t.Context(), r, other, UnpackOptions{}); err != nil {
				t.Fatal(err)
			}
			if got := listTree(t, other); !slices.Equal(got, tt.want) {
				t.Errorf("flattened: got %q\nwant %q", got, tt.want)
			}
		})
	}
}

func TestUnpackRefused(t *testing.T) {
	tests := map[string][]entry{
		`entry "a": in its place is a directory with something in it`: {reg("a/b", "1"), reg("a", "2")},
		`entry "x/y": "x" in its path is a file`:                      {reg("x", "1"), reg("x/y", "2")},
	}
	for want, entries := range tests {
		dir := tempDir(t)
		_, err := Unpack(t.Context(), bytes.NewReader(pack(t, entries...)), filepath.Join(dir, "root"), UnpackOptions{})
		checkError(t, err, want)
		if left := listTree(t, dir); len(left) != 0 {
			t.Errorf("left behind: %q", left)
		}
	}
}

// Names that a tar.Writer does not write.
func TestUnpackForged(t *testing.T) {
	data := pack(t, reg("AAAAAAAAAA", "1"))
	for _, name := range []string{"../../xx\x00A", "/../../xx/", "a/../../xx"} {
		forged := bytes.Clone(data)
		copy(forged, name[:10])
		fixChecksum(forged)
		_, err := Unpack(t.Context(), bytes.NewReader(forged), filepath.Join(tempDir(t), "root"), UnpackOptions{})
		checkError(t, err, "its name has a ..")
	}
}

func fixChecksum(block []byte) {
	copy(block[148:], "        ")
	sum := 0
	for _, b := range block[:tarBlock] {
		sum += int(b)
	}
	copy(block[148:], fmt.Sprintf("%06o\x00 ", sum))
}

func TestUnpackModes(t *testing.T) {
	old := time.Unix(1_000_000_000, 123456789)
	data := pack(t,
		dirEntry("./").mode(0o751).time(old),
		dirEntry("closed").mode(0).time(old), reg("closed/f", "1").mode(0).time(old),
		dirEntry("tmp").mode(0o1777).time(old), reg("su", "").mode(0o4755).time(old),
		sym("l", "x").time(old), newEntry(tar.TypeFifo, "p", 0o622).time(old), reg("implied/x", ""),
	)
	dir, _ := unpack(t, data, UnpackOptions{})
	// What the user could not read otherwise is opened for the user.
	for name, want := range map[string]uint32{
		".": 0o751, "closed": 0o700, "closed/f": 0o600, "tmp": 0o1777, "su": 0o4755, "p": 0o622, "implied": 0o755,
	} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, name), &st); err != nil {
			t.Fatal(err)
		}
		if got := st.Mode & modeBits; got != want {
			t.Errorf("mode of %s = %#o, want %#o", name, got, want)
		}
		if at := time.Unix(st.Mtim.Unix()); name != "implied" && !at.Equal(old) {
			t.Errorf("time of %s = %v, want %v", name, at, old)
		}
	}
	if info, err := os.Lstat(filepath.Join(dir, "l")); err != nil || !info.ModTime().Equal(old) {
		t.Errorf("time of l = %v, %v, want %v", info.ModTime(), err, old)
	}
}

func TestUnpackReport(t *testing.T) {
	data := pack(t,
		dirEntry("d"), reg("mine", "12345").owner(os.Geteuid(), os.Getegid()),
		reg("other", "1").owner(4242, 4242), hard("link", "other"),
		newEntry(tar.TypeChar, "null", 0o666).device(1, 3), newEntry(tar.TypeBlock, "loop", 0o666).device(7, 0),
		reg("x", "").xattr("user.a", "b"), reg("y", "").xattr("trusted.a", "b"), sym("z", "x").xattr("user.a", "b"),
		newEntry('V', "label", 0),
	)
	dir, report := unpack(t, data, UnpackOptions{})
	want := Report{Entries: 7, Bytes: 6, SkippedDevices: 2, SkippedOthers: 1, LostOwners: 1, LostXattrs: 2}
	value := make([]byte, 10)
	n, err := unix.Getxattr(filepath.Join(dir, "x"), "user.a", value)
	if errors.Is(err, unix.ENOTSUP) {
		want.LostXattrs++
	} else if string(value[:max(n, 0)]) != "b" {
		t.Errorf("user.a = %q, %v, want b", value[:max(n, 0)], err)
	}
	if report != want {
		t.Errorf("Report = %+v, want %+v", report, want)
	}
}

func TestUnpackOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	capability := "\x01\x00\x00\x02\x00\x04" + strings.Repeat("\x00", 14) // cap_net_bind_service=ep
	data := pack(t,
		dirEntry("./").owner(1, 2), dirEntry("d").owner(3, 4).mode(0), reg("d/su", "x").owner(5, 6).mode(0o6755),
		sym("l", "d").owner(7, 8), newEntry(tar.TypeFifo, "p", 0o600).owner(9, 10),
		reg("cap", "x").xattr("security.capability", capability),
		newEntry(tar.TypeChar, "null", 0o666).device(1, 3).owner(0, 11),
	)
	dir, report := unpack(t, data, UnpackOptions{Owner: true})
	for name, want := range map[string][3]uint32{
		".": {1, 2, 0o755}, "d": {3, 4, 0}, "d/su": {5, 6, 0o6755}, "l": {7, 8, 0o777}, "p": {9, 10, 0o600},
		"null": {0, 11, 0o666},
	} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, name), &st); err != nil {
			if name == "null" && report.SkippedDevices == 1 {
				continue // root of a container may not make them
			}
			t.Fatal(err)
		}
		if got := [3]uint32{st.Uid, st.Gid, st.Mode & modeBits}; got != want {
			t.Errorf("%s: owner and mode = %v, want %v", name, got, want)
		}
	}
	value := make([]byte, 100)
	n, err := unix.Getxattr(filepath.Join(dir, "cap"), "security.capability", value)
	if report.LostXattrs == 0 && string(value[:max(n, 0)]) != capability {
		t.Errorf("security.capability = %q, %v, want %q", value[:max(n, 0)], err, capability)
	}
	if report.LostOwners != 0 {
		t.Errorf("LostOwners = %d, want 0", report.LostOwners)
	}
}

func TestUnpackOwnerAsUser(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may give files away")
	}
	dir := tempDir(t)
	data := pack(t, reg("a", "").owner(0, 0))
	_, err := Unpack(t.Context(), bytes.NewReader(data), filepath.Join(dir, "x"), UnpackOptions{Owner: true})
	checkError(t, err, `entry "a"`, "0:0")
}

func TestUnpackDestination(t *testing.T) {
	data := pack(t, reg("a", "1"))
	unpackTo := func(dir string, o UnpackOptions) error {
		_, err := Unpack(t.Context(), bytes.NewReader(data), dir, o)
		return err
	}
	want := []string{"a: 1"}
	check := func(dir string) {
		t.Helper()
		if got := listTree(t, dir); !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	temp := tempDir(t)
	at := func(name string) string { return filepath.Join(temp, name) }
	mkdir := func(name string) {
		t.Helper()
		if err := os.MkdirAll(at(name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	put := func(name string) {
		t.Helper()
		if err := os.WriteFile(at(name), []byte("old"), 0o644); err != nil {
			t.Fatal(err)
		}
	}

	if err := unpackTo(at("deep/new"), UnpackOptions{}); err != nil {
		t.Error(err)
	}
	check(at("deep/new"))

	mkdir("empty")
	if err := unpackTo(at("empty/"), UnpackOptions{}); err != nil {
		t.Error(err)
	}
	check(at("empty"))

	mkdir("linked")
	if err := os.Symlink("linked", at("link")); err != nil {
		t.Fatal(err)
	}
	if err := unpackTo(at("link"), UnpackOptions{}); err != nil {
		t.Error(err)
	}
	check(at("linked"))

	mkdir("full/home")
	checkError(t, unpackTo(at("full"), UnpackOptions{}), "not empty", "name another")
	put("file")
	checkError(t, unpackTo(at("file"), UnpackOptions{}), "not a directory")
	checkError(t, unpackTo("/", UnpackOptions{}), "/ is no place")
	entries, err := os.ReadDir(temp)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			t.Errorf("%s is left behind", e.Name())
		}
	}
}

func TestUnpackTruncated(t *testing.T) {
	data := pack(t, dirEntry("d").mode(0), reg("d/a", strings.Repeat("x", 2*copySize)), reg("b", "2"))
	for _, n := range []int{100, 600, 2000, copySize + 1024, len(data) - 2049} {
		dir := tempDir(t)
		_, err := Unpack(t.Context(), bytes.NewReader(data[:n]), filepath.Join(dir, "x"), UnpackOptions{})
		checkError(t, err, "not complete")
		if left := listTree(t, dir); len(left) != 0 {
			t.Errorf("after %d bytes, left behind: %q", n, left)
		}
	}
}

// cancelReader ends a context once so many bytes were read.
type cancelReader struct {
	io.Reader
	left   int
	cancel func()
}

func (c *cancelReader) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	if c.left -= n; c.left < 0 {
		c.cancel()
	}
	return n, err
}

func TestUnpackCancelled(t *testing.T) {
	data := pack(t, reg("a", strings.Repeat("x", 4*copySize)), reg("b", strings.Repeat("x", 4*copySize)))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	dir := tempDir(t)
	r := &cancelReader{bytes.NewReader(data), 5 * copySize, cancel}
	_, err := Unpack(ctx, r, filepath.Join(dir, "x"), UnpackOptions{})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Unpack() = %v, want %v", err, context.Canceled)
	}
	if left := listTree(t, dir); len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestSpaceError(t *testing.T) {
	err := spaceError(entryError("usr/big", &os.PathError{Op: "write", Path: "usr/big", Err: unix.ENOSPC}), "/srv/x")
	checkError(t, err, "/srv/x is full", `entry "usr/big"`)
	if other := errors.New("other"); spaceError(other, "x") != other {
		t.Error("spaceError changes other errors")
	}
}

func TestRemove(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tree")
	outside := t.TempDir()
	kept := filepath.Join(outside, "kept")
	if err := os.WriteFile(kept, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"a/b/c", "d"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "a/b/c/f"), nil, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "a/l")); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"a/b/c", "a/b", "a", "d", "."} {
		if err := os.Chmod(filepath.Join(dir, d), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := Remove(dir); err != nil {
		t.Errorf("Remove() = %v", err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is still there: %v", dir, err)
	}
	if _, err := os.Lstat(kept); err != nil {
		t.Error(err)
	}
	for _, gone := range []string{dir, filepath.Join(dir, "x/y")} {
		if err := Remove(gone); err != nil {
			t.Errorf("Remove of what is not there = %v", err)
		}
	}
}
