package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// headSize is how much of a file is looked at to see what it is: up to the magic of an ISO 9660 image.
const headSize = 0x8001 + 5

// maxWindow is the memory that a zstd file may ask for: the command's own limit, and enough for its --ultra -22.
const maxWindow = 128 << 20

const tarBlock = 512

type compression int

const (
	uncompressed compression = iota
	gzipped
	zstandard
	xzipped
	bzipped
)

type magic struct {
	offset int
	bytes  string
}

func (m magic) matches(head []byte) bool {
	return len(head) >= m.offset && bytes.HasPrefix(head[m.offset:], []byte(m.bytes))
}

// compressions are those that we read.
var compressions = []struct {
	magic
	is compression
}{
	{magic{0, "\x1f\x8b\x08"}, gzipped},
	{magic{0, "\x28\xb5\x2f\xfd"}, zstandard},
	{magic{1, "\x2a\x4d\x18"}, zstandard}, // a skippable frame, as pzstd and zstd:chunked have them
	{magic{0, "\xfd7zXZ\x00"}, xzipped},
	{magic{0, "BZh"}, bzipped},
}

// strangers are what people take for a root file system, or get in its place, and what may be said to it.
var strangers = []struct {
	magic
	is string
}{
	{magic{0, "\x04\x22\x4d\x18"}, "compressed by lz4; decompress it first"},
	{magic{0, "LZIP"}, "compressed by lzip; decompress it first"},
	{magic{0, "PK\x03\x04"}, "a zip file; make a tar of what is in it"},
	{magic{0, "070701"}, "a cpio archive; make a tar of what is in it"},
	{magic{0, "hsqs"}, "a squashfs image; make a tar of what is in it"},
	{magic{0x8001, "CD001"}, "an ISO image; a root file system is a tar"},
	{magic{0x438, "\x53\xef"}, "an ext4 disk, which a machine boots as it is"},
	{magic{0, "QFI\xfb"}, "a qcow2 disk; make a tar of what is in it"},
	{magic{0, "\x7fELF"}, "a program"},
	{magic{0, "!<arch>\n"}, "a Debian package or a library"},
	{magic{0, "{"}, "JSON"},
	{magic{0, "<"}, "a web page or XML"},
	{magic{510, "\x55\xaa"}, "a disk with partitions; make a tar of what is in it"},
}

// detect says how a file that starts with head is compressed. What is neither compressed nor a tar is an error that says
// what it is instead. Nothing at all counts as a tar without entries.
func detect(head []byte) (compression, error) {
	for _, c := range compressions {
		if c.matches(head) {
			return c.is, nil
		}
	}
	if len(head) >= tarBlock {
		// An extended header may go on behind head: what follows the first block is not judged.
		_, err := tar.NewReader(bytes.NewReader(head)).Next()
		if !errors.Is(err, tar.ErrHeader) && !errors.Is(err, io.EOF) {
			return uncompressed, nil
		}
	}
	for _, s := range strangers {
		if s.matches(head) {
			return 0, fmt.Errorf("is %s", s.is)
		}
	}
	if len(head) == 0 || len(head) >= tarBlock && bytes.Equal(head[:tarBlock], zeros[:tarBlock]) {
		return uncompressed, nil
	}
	return 0, errors.New("is neither a tar archive nor one compressed by gzip, zstd, xz or bzip2")
}

// decompress returns the tar that r holds, compressed or not.
func decompress(r io.Reader) (io.ReadCloser, error) {
	outer, how, err := peek(r)
	if err != nil || how == uncompressed {
		return io.NopCloser(outer), err
	}
	plain, err := how.reader(outer)
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	inner, how, err := peek(plain)
	if err == nil && how != uncompressed {
		err = errors.New("is compressed twice; decompress it first")
	}
	if err != nil {
		_ = plain.Close() // the first error tells more
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{inner, plain}, nil
}

// peek says what r is, and returns a reader that has all of it still.
func peek(r io.Reader) (io.Reader, compression, error) {
	buffered := bufio.NewReaderSize(r, headSize)
	head, err := buffered.Peek(headSize)
	if err != nil && !errors.Is(err, io.EOF) {
		return buffered, 0, err
	}
	how, err := detect(head)
	return buffered, how, err
}

func (c compression) reader(r io.Reader) (io.ReadCloser, error) {
	switch c {
	case gzipped:
		return gzip.NewReader(r)
	case zstandard:
		d, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	case xzipped:
		d, err := xz.NewReader(r)
		return io.NopCloser(d), err
	case bzipped:
		return io.NopCloser(bzip2.NewReader(r)), nil
	default:
		return io.NopCloser(r), nil
	}
}
