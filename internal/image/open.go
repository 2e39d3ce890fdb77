package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/term"

	"docker-usermode-linux/internal/image/runconfig"
)

// Open reads a root file system from a file, from standard input ("-"), or from a directory that is an OCI layout. A
// file is a tar of a root file system, of an OCI layout, or what docker save writes, compressed or not. The caller
// closes the Source.
func Open(ctx context.Context, path string, o Options) (_ *Source, err error) {
	var own closers
	defer func() {
		if err != nil {
			_ = own.Close() // the first error tells more
			err = fmt.Errorf("read %s: %w", display(path), err)
		}
	}()
	var s *Source
	if path == "-" {
		s, err = openStream(ctx, o.stdin(), o, &own)
	} else {
		s, err = openPath(ctx, path, o, &own)
	}
	if err != nil {
		return nil, err
	}
	if s.name == "" {
		s.name = display(path)
	}
	s.closers = own
	return s, nil
}

func display(path string) string {
	if path == "-" {
		return "standard input"
	}
	return path
}

func (o Options) stdin() io.Reader {
	if o.Stdin != nil {
		return o.Stdin
	}
	return os.Stdin
}

// cause leaves out the path, which Open names.
func cause(err error) error {
	var at *os.PathError
	if errors.As(err, &at) {
		return at.Err
	}
	return err
}

// closers are what a Source has open.
type closers []io.Closer

func (c *closers) add(closer io.Closer) { *c = append(*c, closer) }

func (c *closers) Close() error {
	var errs []error
	for _, closer := range *c {
		errs = append(errs, closer.Close())
	}
	*c = nil
	return errors.Join(errs...)
}

func openPath(ctx context.Context, path string, o Options, own *closers) (*Source, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, cause(err)
	}
	if info.IsDir() {
		return openDir(ctx, path, o, own)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, cause(err)
	}
	own.add(file)
	switch {
	case info.Mode().IsRegular():
		return openFile(ctx, io.NewSectionReader(file, 0, info.Size()), o, own)
	case info.Mode().Type() == os.ModeNamedPipe:
		return openStream(ctx, file, o, own)
	}
	return nil, fmt.Errorf("is neither a file nor a directory (%s)", info.Mode().Type())
}

// openStream reads what cannot be read twice.
func openStream(ctx context.Context, r io.Reader, o Options, own *closers) (*Source, error) {
	if file, ok := r.(*os.File); ok {
		if term.IsTerminal(int(file.Fd())) {
			return nil, errors.New("is a terminal; redirect it from an archive, or name a file")
		}
		// A shell's <file, perhaps with something before it that was read already.
		info, err := file.Stat()
		if err != nil {
			return nil, err
		}
		if info.Mode().IsRegular() {
			offset, err := file.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, err
			}
			return openFile(ctx, io.NewSectionReader(file, offset, max(0, info.Size()-offset)), o, own)
		}
	}
	copied, err := keep(ctx, r, newMeter(o.Progress, -1, "reading"), o, own)
	if err != nil {
		return nil, err
	}
	return openFile(ctx, copied, o, own)
}

// keep makes a temporary copy.
func keep(ctx context.Context, r io.Reader, m *meter, o Options, own *closers) (*io.SectionReader, error) {
	file, err := spool(ctx, r, o.TempDir, m)
	if err != nil {
		return nil, err
	}
	own.add(file)
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	return io.NewSectionReader(file, 0, size), nil
}

// openFile reads an archive. Whether its entries are a root file system or parts of an image is known at their end.
func openFile(ctx context.Context, data *io.SectionReader, o Options, own *closers) (*Source, error) {
	if data.Size() == 0 {
		return nil, errors.New("is empty")
	}
	l := &layer{data: data}
	parts, merged := newArchive(data), newLayers()
	m := newMeter(o.Progress, data.Size(), "reading")
	err := l.scan(ctx, false, m, func(h *tar.Header, index int, content io.Reader, offset int64) error {
		if err := parts.add(h, content, offset); err != nil {
			return err
		}
		return merged.add(h, index, false)
	})
	if err != nil {
		return nil, err
	}
	m.finish()
	if parts.isImage() {
		return openArchive(ctx, parts, o, own)
	}
	if merged.entries == 0 {
		return nil, errors.New("is a tar archive without entries")
	}
	if o.Image != "" {
		return nil, fmt.Errorf("is a root file system and no image, so there is no %s in it", o.Image)
	}
	s := &Source{layers: []*layer{l}, plan: merged.plan(), created: time.Unix(0, 0)}
	// What was made of an image once still says how that is run.
	if text, ok := parts.texts[runconfig.File]; ok {
		if s.config, err = runconfig.Parse(text); err != nil {
			return nil, fmt.Errorf("its %s is no configuration of an image: %w", runconfig.File, err)
		}
	}
	return s, nil
}

// openArchive reads an image out of a tar.
func openArchive(ctx context.Context, parts *archive, o Options, own *closers) (*Source, error) {
	if !parts.seekable {
		var err error
		if parts, err = unpackParts(ctx, parts.data, o, own); err != nil {
			return nil, err
		}
	}
	return openImage(ctx, parts, o)
}

// unpackParts makes a copy of a compressed archive that is not compressed, so that its parts can be read in any order.
func unpackParts(ctx context.Context, data *io.SectionReader, o Options, own *closers) (*archive, error) {
	m := newMeter(o.Progress, -1, "decompressing")
	plain, err := decompress(io.NewSectionReader(data, 0, data.Size()))
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	copied, err := keep(ctx, plain, m, o, own)
	if err != nil {
		return nil, err
	}
	m.finish()
	parts := newArchive(copied)
	l := &layer{data: copied}
	err = l.scan(ctx, false, newMeter(nil, 0, ""), func(h *tar.Header, _ int, content io.Reader, offset int64) error {
		return parts.add(h, content, offset)
	})
	return parts, err
}

func openDir(ctx context.Context, path string, o Options, own *closers) (*Source, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, cause(err)
	}
	own.add(root)
	parts := &folder{root: root, own: own}
	if !isImage(parts) {
		return nil, fmt.Errorf("is a directory, but no OCI layout: that has the files %s and %s. A directory that is a "+
			"root file system already needs no import", layoutFile, indexFile)
	}
	return openImage(ctx, parts, o)
}

// openImage reads the image that o chooses.
func openImage(ctx context.Context, parts parts, o Options) (*Source, error) {
	var found *image
	var err error
	if index, ok := layoutIndex(parts); ok {
		found, err = ociImage(parts, index, o.Image)
	} else if list, ok := dockerManifest(parts); ok {
		found, err = dockerImage(parts, list, o.Image)
	} else {
		err = errors.New("is no image any more") // it was one a moment ago
	}
	if err != nil {
		return nil, err
	}
	if err := found.check(); err != nil {
		return nil, err
	}
	return found.source(ctx, o)
}
