package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"syscall"

	"docker-usermode-linux/internal/image/runconfig"
)

const (
	// maxText is the most that is read of JSON: an index, a manifest, a configuration. Registries take manifests of 4 MiB.
	maxText = 8 << 20
	// maxDepth is how many elements the name of an image's part has at most: blobs/sha256/DIGEST.
	maxDepth = 3
)

// parts are the files of an image: JSON, and layers.
type parts interface {
	// open returns a part, fs.ErrNotExist if there is none by the name. It stays open as long as the Source.
	open(name string) (*io.SectionReader, error)
}

func readText(p parts, name string) ([]byte, error) {
	data, err := p.open(name)
	if err != nil {
		return nil, err
	}
	if data.Size() > maxText {
		return nil, fmt.Errorf("%s has %d bytes, %d at most", name, data.Size(), maxText)
	}
	text := make([]byte, data.Size())
	_, err = io.ReadFull(data, text)
	return text, err
}

// isImage says whether there is an image, of whichever kind.
func isImage(p parts) bool {
	if _, ok := layoutIndex(p); ok {
		return true
	}
	_, ok := dockerManifest(p)
	return ok
}

// archive is a tar whose parts are found by where they begin. What a compressed one has is known, but not where: of that
// only texts can be opened.
type archive struct {
	data     *io.SectionReader
	seekable bool
	members  map[string]member
	texts    map[string][]byte
}

type member struct {
	offset, size int64
	link         string // the part in whose place this one stands: docker save does that for layers that are the same
}

// topTexts are those that say what an archive is.
var topTexts = map[string]bool{layoutFile: true, indexFile: true, dockerFile: true, runconfig.File: true}

func newArchive(data *io.SectionReader) *archive {
	return &archive{data: data, seekable: true, members: map[string]member{}, texts: map[string][]byte{}}
}

// add takes note of an entry. As everywhere, the last one by a name counts.
func (a *archive) add(h *tar.Header, content io.Reader, offset int64) error {
	name := strings.TrimPrefix(path.Clean(h.Name), "/")
	if strings.Count(name, "/") >= maxDepth {
		return nil
	}
	if offset < 0 {
		a.seekable = false
	}
	m := member{offset: offset, size: h.Size}
	switch typ, _ := fileType(h); typ {
	case tar.TypeReg:
	case tar.TypeSymlink:
		m.link = path.Join(path.Dir(name), h.Linkname)
	case tar.TypeLink:
		m.link = strings.TrimPrefix(path.Clean(h.Linkname), "/")
	default:
		return nil
	}
	a.members[name] = m
	delete(a.texts, name)
	if m.link != "" || !topTexts[name] || h.Size > maxText {
		return nil
	}
	text, err := io.ReadAll(content)
	a.texts[name] = text
	return err
}

// isImage also tells of archives that are compressed.
func (a *archive) isImage() bool { return isImage(a) }

func (a *archive) open(name string) (*io.SectionReader, error) {
	name = strings.TrimPrefix(path.Clean(name), "/")
	if text, ok := a.texts[name]; ok {
		r := strings.NewReader(string(text))
		return io.NewSectionReader(r, 0, r.Size()), nil
	}
	m, ok := a.members[name]
	for links := 0; ok && m.link != ""; links++ {
		if links > maxLinks {
			return nil, fmt.Errorf("%s: %w", name, syscall.ELOOP)
		}
		m, ok = a.members[m.link]
	}
	if !ok {
		return nil, fmt.Errorf("there is no %s in it: %w", name, os.ErrNotExist)
	}
	if m.offset < 0 || m.offset+m.size > a.data.Size() {
		return nil, fmt.Errorf("%s cannot be read from a compressed archive", name)
	}
	return io.NewSectionReader(a.data, m.offset, m.size), nil
}

// folder is a directory.
type folder struct {
	root *os.Root
	own  *closers
}

func (f *folder) open(name string) (*io.SectionReader, error) {
	// A named pipe is not waited for.
	file, err := f.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	f.own.add(file)
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New(name + " is not a regular file")
	}
	return io.NewSectionReader(file, 0, info.Size()), nil
}
