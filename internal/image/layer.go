package image

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// layer is a tar archive that we can read more than once, compressed or not.
type layer struct {
	name string // for errors, "layer 2 of 5"; empty for a plain archive
	data *io.SectionReader
	// What the image says that their SHA-256 is: of data, and of the tar in it. The zero value says nothing.
	digest, diffID v1.Hash
	// whiteouts says that .wh. files take away what is in the layers below, and are no files themselves.
	whiteouts bool
}

// entryFunc gets an entry, its place among the others, its content, and where in layer.data that starts, -1 in a compressed
// layer.
type entryFunc func(h *tar.Header, index int, content io.Reader, offset int64) error

// scan calls each for every entry, in order. With verify it reads all that there is, and an end without an error means
// that it is what the image promised.
func (l *layer) scan(ctx context.Context, verify bool, m *meter, each entryFunc) error {
	err := l.scanAll(ctx, verify, m, each)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("ends too early, it is not complete: %w", err)
	}
	if err != nil && l.name != "" {
		err = fmt.Errorf("%s: %w", l.name, err)
	}
	return err
}

func (l *layer) scanAll(ctx context.Context, verify bool, m *meter, each entryFunc) error {
	section := io.NewSectionReader(l.data, 0, l.data.Size())
	head := make([]byte, headSize)
	n, err := section.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	how, err := detect(head[:n])
	if err != nil {
		return err
	}
	verify = verify && (l.digest != v1.Hash{} || l.diffID != v1.Hash{})
	if how == uncompressed && !verify {
		// tar.Reader jumps over content that nobody reads, as it can seek.
		defer m.add(section.Size())
		return scanTar(ctx, section, section, each)
	}

	compressedSum, plainSum := newSum(verify, l.digest), newSum(verify, l.diffID)
	raw := io.TeeReader(io.TeeReader(&contextReader{ctx: ctx, r: section}, m), compressedSum)
	plain, err := decompress(raw)
	if err != nil {
		return err
	}
	defer plain.Close()
	summed := io.TeeReader(plain, plainSum)
	if err := scanTar(ctx, summed, nil, each); err != nil || !verify {
		return err
	}
	// What is behind the archive's end counts as well.
	for _, r := range []io.Reader{summed, raw} {
		if _, err := io.Copy(io.Discard, r); err != nil {
			return err
		}
	}
	return errors.Join(compressedSum.check("its content"), plainSum.check("the tar in it"))
}

func scanTar(ctx context.Context, r io.Reader, position io.Seeker, each entryFunc) error {
	archive := tar.NewReader(r)
	for index := 0; ; index++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the tar archive: %w", err)
		}
		offset := int64(-1)
		if position != nil {
			if offset, err = position.Seek(0, io.SeekCurrent); err != nil {
				return err
			}
		}
		if err := each(h, index, archive, offset); err != nil {
			return entryError(h.Name, err)
		}
	}
}

// sum is a SHA-256 that is compared in the end, or nothing.
type sum struct {
	hash.Hash // nil for nothing
	want      v1.Hash
}

func newSum(verify bool, want v1.Hash) *sum {
	s := &sum{want: want}
	if verify && want != (v1.Hash{}) {
		s.Hash = sha256.New()
	}
	return s
}

func (s *sum) Write(p []byte) (int, error) {
	if s.Hash == nil {
		return len(p), nil
	}
	return s.Hash.Write(p)
}

func (s *sum) check(what string) error {
	if s.Hash == nil {
		return nil
	}
	if got := hex.EncodeToString(s.Sum(nil)); s.want.Algorithm != "sha256" || got != s.want.Hex {
		return fmt.Errorf("%s has the digest sha256:%s, the image says %s: damaged, fetch it again", what, got, s.want)
	}
	return nil
}
