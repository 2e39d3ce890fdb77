package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// entry is one of an archive that a test makes.
type entry struct {
	tar.Header
	text string
}

func (e entry) mode(mode int64) entry    { e.Mode = mode; return e }
func (e entry) owner(uid, gid int) entry { e.Uid, e.Gid = uid, gid; return e }
func (e entry) xattr(k, v string) entry {
	e.PAXRecords = map[string]string{xattrPrefix + k: v}
	return e
}
func (e entry) time(t time.Time) entry    { e.ModTime = t; e.Format = tar.FormatPAX; return e }
func (e entry) device(ma, mi int64) entry { e.Devmajor, e.Devminor = ma, mi; return e }

var stamp = time.Unix(1_600_000_000, 0)

func newEntry(typ byte, name string, mode int64) entry {
	return entry{Header: tar.Header{Typeflag: typ, Name: name, Mode: mode, ModTime: stamp}}
}

func reg(name, text string) entry {
	e := newEntry(tar.TypeReg, name, 0o644)
	e.text, e.Size = text, int64(len(text))
	return e
}

func dirEntry(name string) entry { return newEntry(tar.TypeDir, name, 0o755) }

func link(typ byte, name, target string) entry {
	e := newEntry(typ, name, 0o777)
	e.Linkname = target
	return e
}

func sym(name, target string) entry  { return link(tar.TypeSymlink, name, target) }
func hard(name, target string) entry { return link(tar.TypeLink, name, target) }

// pack makes an archive.
func pack(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// list says what is in an archive: a line for each entry.
func list(t testing.TB, r io.Reader) []string {
	t.Helper()
	var out []string
	for archive := tar.NewReader(r); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, describe(h, text))
	}
}

func describe(h *tar.Header, text []byte) string {
	switch h.Typeflag {
	case tar.TypeDir:
		return h.Name
	case tar.TypeSymlink:
		return h.Name + " -> " + h.Linkname
	case tar.TypeLink:
		return h.Name + " = " + h.Linkname
	case tar.TypeReg:
		return h.Name + ": " + string(text)
	case tar.TypeFifo:
		return h.Name + "|"
	}
	return fmt.Sprintf("%s %c %d:%d", h.Name, h.Typeflag, h.Devmajor, h.Devminor)
}

// newImage makes an image with a layer for each archive.
func newImage(t testing.TB, config v1.Config, layers ...[]byte) v1.Image {
	t.Helper()
	image, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: linux, Architecture: arch, Config: config})
	if err != nil {
		t.Fatal(err)
	}
	for _, data := range layers {
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
		if err != nil {
			t.Fatal(err)
		}
		if image, err = mutate.AppendLayers(image, l); err != nil {
			t.Fatal(err)
		}
	}
	return image
}

// write makes a file in a directory of the test's own.
func write(t testing.TB, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "archive")
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t testing.TB, path string, o Options) *Source {
	t.Helper()
	s, err := Open(context.Background(), path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeAll(t, s) })
	return s
}

func closeAll(t testing.TB, c io.Closer) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Errorf("Close() = %v", err)
	}
}

// flat returns the lines of a Source's archive, and checks what it says of it.
func flat(t testing.TB, s *Source) []string {
	t.Helper()
	r, err := s.Tar(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(t, r)
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	size := int64(0)
	archive := tar.NewReader(bytes.NewReader(data))
	for h, err := archive.Next(); err == nil; h, err = archive.Next() {
		size += h.Size
	}
	lines := list(t, bytes.NewReader(data))
	if s.Entries() != len(lines) || s.Size() != size {
		t.Errorf("Entries, Size = %d, %d, want %d, %d", s.Entries(), s.Size(), len(lines), size)
	}
	return lines
}

// withoutConfig leaves out the file that says how an image is run.
func withoutConfig(lines []string) []string {
	return slices.DeleteFunc(lines, func(l string) bool { return strings.HasPrefix(l, ".uml-image.json: ") })
}

func checkError(t testing.TB, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want one with %q", parts)
		return
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q, want %q in it", err, part)
		}
	}
}
