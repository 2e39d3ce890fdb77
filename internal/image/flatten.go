package image

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"docker-usermode-linux/internal/image/runconfig"
)

// xattrPrefix is what a PAX record of an extended attribute begins with, as star, GNU tar and Docker write it.
const xattrPrefix = "SCHILY.xattr."

// plan is what the flattened archive has in it: first all directories, each after the one that it is in, then the files
// in the order in which the layers have them, so that each layer is read once more, from its begin to its end.
type plan struct {
	dirs    []dir
	files   []map[int]*file // by layer and by place in it
	entries int
	size    int64 // bytes of content
}

type dir struct {
	name   string
	header *tar.Header // nil if no entry told of it
}

type file struct {
	typ   byte
	names []string // all of them, at least one
}

func (l *layers) plan() *plan {
	p := &plan{files: make([]map[int]*file, l.current+1)}
	for i := range p.files {
		p.files[i] = map[int]*file{}
	}
	if l.root.header != nil {
		p.dirs = append(p.dirs, dir{"./", l.root.header})
	}
	p.walk(l.root, "")
	p.entries += len(p.dirs)
	return p
}

// walk adds what is in a directory whose name is prefix, in the order of names.
func (p *plan) walk(in *node, prefix string) {
	for _, base := range slices.Sorted(maps.Keys(in.children)) {
		n, path := in.children[base], prefix+base
		if n.typ == tar.TypeDir {
			p.dirs = append(p.dirs, dir{path + "/", n.header})
			p.walk(n.node, path+"/")
			continue
		}
		p.entries++
		layer := p.files[n.node.layer]
		if layer[n.index] == nil {
			layer[n.index] = &file{typ: n.typ}
			p.size += n.size
		}
		layer[n.index].names = append(layer[n.index].names, path)
	}
}

// Tar returns the root file system as one uncompressed tar archive. It has no name twice, no whiteouts, no name that leads
// through a symbolic link and no hard link before its target, each directory comes before what is in it, and the
// image's Config comes last, as the file runconfig.File. The end of ctx ends it with the context's error. The caller
// closes it; several may be read at the same time.
func (s *Source) Tar(ctx context.Context) (io.ReadCloser, error) {
	var config []byte
	if s.fromImage {
		var err error
		if config, err = s.config.Marshal(); err != nil {
			return nil, fmt.Errorf("configuration of %s: %w", s.name, err)
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	r, w := io.Pipe()
	stream := &tarStream{PipeReader: r, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(stream.done)
		buffered := bufio.NewWriterSize(w, 64<<10) // a hand-over for each header would take longer than the copy
		err := s.write(ctx, buffered, config)
		if err == nil {
			err = buffered.Flush()
		}
		_ = w.CloseWithError(err) // never fails
	}()
	return stream, nil
}

// tarStream owns the goroutine that writes into it.
type tarStream struct {
	*io.PipeReader
	cancel context.CancelFunc
	done   chan struct{}
}

// Close ends the writer and waits for it.
func (t *tarStream) Close() error {
	t.cancel()
	err := t.PipeReader.Close()
	<-t.done
	return err
}

func (s *Source) write(ctx context.Context, to io.Writer, config []byte) error {
	w := tar.NewWriter(to)
	for _, d := range s.plan.dirs {
		if err := w.WriteHeader(dirHeader(d)); err != nil {
			return fmt.Errorf("%s: %w", s.name, entryError(d.name, err))
		}
	}
	for i, l := range s.layers {
		left := len(s.plan.files[i])
		if left == 0 {
			continue
		}
		err := l.scan(ctx, false, newMeter(nil, 0, ""), func(h *tar.Header, index int, content io.Reader, _ int64) error {
			f := s.plan.files[i][index]
			if f == nil {
				return nil
			}
			left--
			return f.write(ctx, w, h, content)
		})
		if err == nil && left > 0 {
			err = errChanged
		}
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	if s.fromImage {
		h := tar.Header{
			Typeflag: tar.TypeReg, Name: runconfig.File, Mode: 0o644, Size: int64(len(config)), ModTime: s.created,
		}
		if err := w.WriteHeader(&h); err != nil {
			return err
		}
		if _, err := w.Write(config); err != nil {
			return err
		}
	}
	return w.Close()
}

var errChanged = errors.New("it was changed while it was read")

// write puts out a file with its content, and a hard link for each further name.
func (f *file) write(ctx context.Context, w *tar.Writer, from *tar.Header, content io.Reader) error {
	if typ, _ := fileType(from); typ != f.typ {
		return errChanged
	}
	h := outHeader(from, f.typ, f.names[0])
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	if h.Size > 0 {
		if _, err := io.Copy(w, &contextReader{ctx: ctx, r: content}); err != nil {
			return err
		}
	}
	for _, name := range f.names[1:] {
		link := outHeader(from, tar.TypeLink, name)
		link.Linkname = f.names[0]
		link.PAXRecords = nil
		if err := w.WriteHeader(link); err != nil {
			return err
		}
	}
	return nil
}

func dirHeader(d dir) *tar.Header {
	if d.header == nil {
		return &tar.Header{Typeflag: tar.TypeDir, Name: d.name, Mode: 0o755, ModTime: time.Unix(0, 0)}
	}
	return outHeader(d.header, tar.TypeDir, d.name)
}

// outHeader returns a header by another name, with all that a root file system has of it.
func outHeader(from *tar.Header, typ byte, name string) *tar.Header {
	h := &tar.Header{
		Typeflag: typ, Name: name, Mode: from.Mode & modeBits, ModTime: from.ModTime,
		Uid: from.Uid, Gid: from.Gid, Uname: from.Uname, Gname: from.Gname,
		// For names, numbers and times that the old format cannot hold; where it can, they are the same.
		Format: tar.FormatPAX,
	}
	switch typ {
	case tar.TypeReg:
		h.Size = from.Size
	case tar.TypeSymlink:
		h.Linkname = from.Linkname
	case tar.TypeChar, tar.TypeBlock:
		h.Devmajor, h.Devminor = from.Devmajor, from.Devminor
	}
	for key, value := range from.PAXRecords {
		if strings.HasPrefix(key, xattrPrefix) {
			if h.PAXRecords == nil {
				h.PAXRecords = map[string]string{}
			}
			h.PAXRecords[key] = value
		}
	}
	return h
}
