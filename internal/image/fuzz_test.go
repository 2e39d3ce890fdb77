package image

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// maxFuzz is how much content an archive may have in a fuzz test: holes of a sparse file cost nothing in it, but time here.
const maxFuzz = 1 << 20

// scripts are archives for script.
var scripts = []string{
	"f a\nh b a\ns c /a\nd d\nf c/x",
	"s l ../../..\nf l/x\nh h l/../x\nf ../x",
	"s l /\ns l/l ..\nf l/l/x\nd l\nf l",
	"p p\nc null\nf p\nd p\nf p/x",
	"d ./\nf a/.wh.b\nf a/.wh..wh..opq\nd d/e\nf .wh.d",
	"s d e\nf d/x\nf l/y\nh z l/y\nf .wh.l\nh z z",
}

// script returns the archive that a text describes: in each line a type, a name and a link's target. What a
// tar.Writer refuses is left out. Bytes of an archive would be a worse input: most changes only break a checksum.
func script(t testing.TB, text string) []byte {
	types := map[string]byte{
		"f": tar.TypeReg, "d": tar.TypeDir, "h": tar.TypeLink, "s": tar.TypeSymlink, "p": tar.TypeFifo, "c": tar.TypeChar,
	}
	var entries []entry
	for line := range strings.SplitSeq(text, "\n") {
		fields := append(strings.SplitN(line, " ", 3), "", "")
		typ, ok := types[fields[0]]
		if !ok {
			continue
		}
		e := newEntry(typ, fields[1], int64(len(line))*0o111)
		e.Linkname = fields[2]
		if tar.NewWriter(io.Discard).WriteHeader(&e.Header) == nil {
			entries = append(entries, e)
		}
	}
	return pack(t, entries...)
}

// Whatever the archive, nothing appears outside of its directory; and what fails leaves nothing.
func FuzzUnpack(f *testing.F) {
	for _, s := range scripts {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		data := script(t, text)
		top := tempDir(t)
		outer := filepath.Join(top, "outer")
		if err := os.MkdirAll(outer, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(outer, "x"), []byte("canary"), 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := Unpack(context.Background(), bytes.NewReader(data), filepath.Join(outer, "root"), UnpackOptions{})
		want := []string{"outer/", "outer/x: canary"}
		got := slices.DeleteFunc(listTree(t, top), func(line string) bool {
			return err == nil && (line == "outer/root/" || strings.HasPrefix(line, "outer/root/"))
		})
		if !slices.Equal(got, want) {
			t.Fatalf("outside is %q, want %q", got, want)
		}
	})
}

// Whatever the layers, what comes out of them is an archive as Source.Tar promises, which can be unpacked.
func FuzzLayers(f *testing.F) {
	for _, s := range scripts {
		f.Add("f a\ns l d\nf d/e/f", s)
	}
	f.Fuzz(func(t *testing.T, lower, upper string) {
		i := &image{name: "x", config: &v1.ConfigFile{}, layers: []*layer{
			{data: sectionOf(script(t, lower)), whiteouts: true}, {data: sectionOf(script(t, upper)), whiteouts: true},
		}}
		s, err := i.source(context.Background(), Options{})
		if err != nil {
			return
		}
		r, err := s.Tar(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		once, err := io.ReadAll(r)
		closeAll(t, r)
		if err != nil {
			t.Fatal(err)
		}
		checkFlat(t, once)
		unpack(t, once, UnpackOptions{})
	})
}

func sectionOf(data []byte) *io.SectionReader {
	return io.NewSectionReader(bytes.NewReader(data), 0, int64(len(data)))
}

// checkFlat checks what Source.Tar promises.
func checkFlat(t *testing.T, data []byte) {
	t.Helper()
	types := map[string]byte{".": tar.TypeDir}
	archive := tar.NewReader(bytes.NewReader(data))
	for {
		h, err := archive.Next()
		if err != nil {
			return
		}
		elems, err := elements(h.Name)
		if err != nil {
			t.Fatal(entryError(h.Name, err))
		}
		path := strings.Join(append([]string{"."}, elems...), "/")
		parent := path[:max(strings.LastIndex(path, "/"), 1)]
		if _, again := types[path]; again && path != "." {
			t.Fatalf("%q is there twice", path)
		}
		if types[parent] != tar.TypeDir {
			t.Fatalf("%q is not below a directory", path)
		}
		if typ, ok := types["./"+h.Linkname]; h.Typeflag == tar.TypeLink && (!ok || typ == tar.TypeDir) {
			t.Fatalf("%q is a link to %q, which is not there", path, h.Linkname)
		}
		types[path] = h.Typeflag
	}
}

// Whatever the file, Open says what it is, or what is wrong.
func FuzzOpen(f *testing.F) {
	for _, s := range scripts {
		f.Add(script(f, s))
	}
	img := newImage(f, v1.Config{}, pack(f, reg("a", "1")))
	f.Add(saved(f, map[string]v1.Image{"x": img}))
	f.Add(bothLayouts(f, img))
	for _, compressor := range compressors {
		f.Add(compressed(f, pack(f, reg("a", "1")), compressor))
	}
	for _, s := range strangers {
		f.Add(append(make([]byte, s.offset), s.bytes...))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for at := 0; at+tarBlock <= len(data); at += tarBlock {
			if bytes.HasPrefix(data[at+257:], []byte("ustar")) {
				data = bytes.Clone(data)
				fixChecksum(data[at:])
			}
		}
		s, err := Open(context.Background(), "-", Options{Stdin: bytes.NewReader(data), TempDir: t.TempDir()})
		if err != nil {
			if s != nil {
				t.Fatal("a Source beside an error")
			}
			return
		}
		defer closeAll(t, s)
		if s.Size() > maxFuzz {
			return
		}
		r, err := s.Tar(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		defer closeAll(t, r)
		if _, err := io.Copy(io.Discard, r); err != nil {
			t.Fatalf("Open took what Tar cannot read: %v", err)
		}
	})
}
