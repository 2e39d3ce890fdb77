package disk

import (
	"archive/tar"
	"bytes"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestInTree(t *testing.T) {
	for name, want := range map[string]string{
		"": ".", "./": ".", "/": ".", "a/b/": "a/b", "./a": "a", "/a": "a", "../../a": "a", "a/../../../b": "b", "a//b": "a/b",
	} {
		if got := inTree(name); got != want {
			t.Errorf("inTree(%q) = %q, want %q", name, got, want)
		}
	}
}

func TestNewNodeNot(t *testing.T) {
	for name, h := range map[string]tar.Header{
		"owner":  head("f", tar.TypeReg, 0, -1, 0),
		"group":  head("f", tar.TypeReg, 0, 0, math.MaxUint32),
		"major":  device(head("f", tar.TypeChar, 0, 0, 0), 1<<12, 0),
		"minor":  device(head("f", tar.TypeChar, 0, 0, 0), 0, 1<<20),
		"minor2": device(head("f", tar.TypeBlock, 0, 0, 0), 0, -1),
	} {
		if n, err := newNode(&h, types[h.Typeflag]); err == nil {
			t.Errorf("%s: newNode() = %+v, want an error", name, n)
		}
	}
}

func TestSparseWriter(t *testing.T) {
	content := slices.Concat(make([]byte, 10*blockSize), []byte("abc"), make([]byte, 5*blockSize), []byte("d"), make([]byte, 7000))
	for _, chunk := range []int{1, 13, blockSize, 32 << 10, len(content)} {
		f, err := os.Create(filepath.Join(t.TempDir(), "f"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		w := sparseWriter{file: f}
		for part := range slices.Chunk(content, chunk) {
			if n, err := w.Write(part); n != len(part) || err != nil {
				t.Fatalf("Write() = %d, %v", n, err)
			}
		}
		if err := f.Truncate(w.size); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(f.Name())
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("in chunks of %d: the content is another, %v", chunk, err)
		}
	}
}

// TestUnpackReplaces has entries that take the place of earlier ones, whose inode number the host may give out again.
func TestUnpackReplaces(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tree")
	tree, err := unpack(t.Context(), newTar(t,
		tarEntry{head("a", tar.TypeReg, 0o600, 1, 1), ""},
		tarEntry{link(head("a", tar.TypeSymlink, 0o777, 2, 2), "b"), ""},
		tarEntry{head("a", tar.TypeDir, 0o701, 3, 3), ""},
		tarEntry{head("a/x", tar.TypeReg, 0o600, 4, 4), ""},
		tarEntry{head("a", tar.TypeDir, 0o702, 5, 5), ""},
		tarEntry{head("c", tar.TypeDir, 0o703, 6, 6), ""},
		tarEntry{head("c", tar.TypeFifo, 0o604, 7, 7), ""},
		tarEntry{head("d/e", tar.TypeReg, 0o605, 8, 8), ""}, // d may have c's number
		tarEntry{link(head("c", tar.TypeLink, 0, 0, 0), "c"), ""},
		tarEntry{link(head("f", tar.TypeLink, 0, 0, 0), "d/e"), ""},
	), dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := tree.number(); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, n := range tree.numbered {
		got = append(got, strings.TrimSpace(string(rune('0'+n.uid))+" "+(map[uint32]string{
			unix.S_IFDIR: "dir", unix.S_IFREG: "file", unix.S_IFIFO: "fifo", unix.S_IFLNK: "link",
		})[n.mode&unix.S_IFMT]))
	}
	if want := []string{"0 dir", "5 dir", "4 file", "7 fifo", "0 dir", "8 file"}; !slices.Equal(got, want) {
		t.Errorf("nodes %q, want %q", got, want)
	}
}

// FuzzUnpack has nothing of an archive get out of its directory.
func FuzzUnpack(f *testing.F) {
	f.Add(newTar(f,
		tarEntry{head("../a", tar.TypeReg, 0o600, 1, 1), "x"},
		tarEntry{link(head("out", tar.TypeSymlink, 0o777, 0, 0), ".."), ""},
		tarEntry{head("out/b", tar.TypeReg, 0o600, 1, 1), "x"}).Bytes())
	f.Add(newTar(f,
		tarEntry{link(head("out", tar.TypeSymlink, 0o777, 0, 0), "/"), ""},
		tarEntry{link(head("c", tar.TypeLink, 0, 0, 0), "out/etc/passwd"), ""},
		tarEntry{device(head("out/tmp/d", tar.TypeChar, 0o666, 0, 5), 5, 0), ""}).Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		// A sparse entry of a few bytes may stand for terabytes, which would only take the fuzzer's time.
		for reader := tar.NewReader(bytes.NewReader(data)); ; {
			header, err := reader.Next()
			if err != nil {
				break
			}
			if header.Size > 1<<20 {
				t.Skip()
			}
		}
		tree, err := unpack(t.Context(), bytes.NewReader(data), filepath.Join(dir, "tree"))
		if err == nil {
			err = tree.number()
		}
		entries, readErr := os.ReadDir(dir)
		if readErr != nil || len(entries) != 1 {
			t.Fatalf("unpack() = %v, leaves %v, %v", err, entries, readErr)
		}
		if err != nil {
			return
		}
		for _, n := range tree.numbered {
			s := script{dir: dir}
			// All that gets into the script are numbers, and words of one line.
			if err := s.set(n, 12, map[*node][]uint32{n: {12}, tree.numbered[0]: {rootInode}}); err == nil &&
				strings.Count(s.text.String(), "\n") != len(strings.FieldsFunc(s.text.String(), func(r rune) bool { return r == '\n' })) {
				t.Fatalf("script %q", s.text.String())
			}
		}
	})
}

func TestAddTime(t *testing.T) {
	for _, test := range []struct {
		time time.Time
		want string
	}{
		{time.Unix(0, 0), "sif <12> mtime @0\nsif <12> mtime_extra 0\n"},
		{time.Unix(-5, 7), "sif <12> mtime @0\nsif <12> mtime_extra 0\n"},
		{time.Unix(1700000000, 999999999), "sif <12> mtime @1700000000\nsif <12> mtime_extra 3999999996\n"},
		{time.Unix(1<<31, 0), "sif <12> mtime @2147483648\nsif <12> mtime_extra 1\n"},
		{time.Unix(1<<32+5, 1), "sif <12> mtime @5\nsif <12> mtime_extra 5\n"},
		{time.Unix(1<<60, 1), "sif <12> mtime @2147483647\nsif <12> mtime_extra 3\n"},
	} {
		var s script
		s.addTime(12, "mtime", test.time)
		if got := s.text.String(); got != test.want {
			t.Errorf("addTime(%v) = %q, want %q", test.time, got, test.want)
		}
	}
}

// unquote is what libss makes of a line (parse.c there): its words.
func unquote(line string) []string {
	var words []string
	for i := 0; i < len(line); {
		if line[i] == ' ' || line[i] == '\t' {
			i++
			continue
		}
		var word strings.Builder
		quoted := false
		for ; i < len(line) && (quoted || line[i] != ' ' && line[i] != '\t'); i++ {
			switch {
			case line[i] != '"':
				word.WriteByte(line[i])
			case quoted && i+1 < len(line) && line[i+1] == '"':
				word.WriteByte('"')
				i++
			default:
				quoted = !quoted
			}
		}
		words = append(words, word.String())
	}
	return words
}

func FuzzQuote(f *testing.F) {
	for _, text := range []string{"a", `a "b"`, `"`, `""`, " ", "a\nquit", "\\", "#", "\t\r"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		word, err := quote(text)
		if err != nil {
			return
		}
		if got := unquote("ln <12> " + word); len(got) != 3 || got[2] != text || strings.ContainsAny(word, "\n\r") {
			t.Errorf("quote(%q) = %q, which is read as %q", text, word, got)
		}
	})
}

// FuzzInodes has the reader of inode tables survive any image.
func FuzzInodes(f *testing.F) {
	image := make([]byte, 3*blockSize)
	super := image[superOffset:]
	super[superInodes], super[superInodesPerGroup], super[superFirstInode], super[superLogBlockSize] = 16, 16, 11, 2
	super[superInodeSize+1], super[superMagic], super[superMagic+1] = 1, 0x53, 0xef
	image[blockSize+descInodeTable] = 2
	image[2*blockSize+11*inodeSize+inodeLinks] = 1
	if err := readInodes(bytes.NewReader(image), func(i inode) error {
		if i.number != 12 {
			f.Errorf("inode %d, want 12", i.number)
		}
		return io.EOF
	}); err != io.EOF {
		f.Errorf("readInodes() = %v", err)
	}
	f.Add(image)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		visited := 0
		_ = readInodes(bytes.NewReader(data), func(inode) error {
			if visited++; visited > 1000 {
				return io.EOF
			}
			return nil
		})
	})
}
