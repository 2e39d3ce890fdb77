package image

import (
	"bytes"
	"errors"
	"io"
	"os"
)

const (
	copySize  = 256 << 10
	blockSize = 4 << 10 // what a hole is made of, in the file systems that are in use
)

var zeros [blockSize]byte

// copySparse copies to an empty file, and leaves holes for blocks of zeros. It calls each with the length of every piece.
// buf has copySize bytes.
func copySparse(to *os.File, from io.Reader, buf []byte, each func(n int)) (int64, error) {
	done := int64(0)
	for {
		n, err := io.ReadFull(from, buf)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return done, err
		}
		last := err != nil
		if err := writeSparse(to, buf[:n], done); err != nil {
			return done, err
		}
		done += int64(n)
		each(n)
		if last {
			break
		}
	}
	// A hole at the end needs its length; content has brought its own.
	info, err := to.Stat()
	if err == nil && info.Size() < done {
		err = to.Truncate(done)
	}
	return done, err
}

// writeSparse writes the blocks of data that have something in them, each run of them at once.
func writeSparse(to *os.File, data []byte, offset int64) error {
	start := -1 // of the run
	for at := 0; at < len(data); at += blockSize {
		block := data[at:min(at+blockSize, len(data))]
		switch empty := len(block) == blockSize && bytes.Equal(block, zeros[:]); {
		case !empty && start < 0:
			start = at
		case empty && start >= 0:
			if _, err := to.WriteAt(data[start:at], offset+int64(start)); err != nil {
				return err
			}
			start = -1
		}
	}
	if start < 0 {
		return nil
	}
	_, err := to.WriteAt(data[start:], offset+int64(start))
	return err
}
