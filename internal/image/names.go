package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"math"
	"strings"
)

const (
	maxPath    = 4095 // PATH_MAX without its NUL: what is longer exists, but no program can name it
	maxElement = 255  // NAME_MAX
)

// elements splits the name of an entry, or of a hard link's target, into the names on its path. The root itself has none.
// Absolute names are taken as relative ones, as every tar does. A ".." is refused: no image needs it, and what it
// means depends on who reads it.
func elements(name string) ([]string, error) {
	if strings.IndexByte(name, 0) >= 0 {
		return nil, errors.New("its name has a NUL byte")
	}
	if len(name) > maxPath {
		return nil, fmt.Errorf("its name has %d bytes, %d at most", len(name), maxPath)
	}
	var elems []string
	for elem := range strings.SplitSeq(name, "/") {
		switch {
		case elem == "" || elem == ".":
		case elem == "..":
			return nil, errors.New("its name has a .. in it")
		case len(elem) > maxElement:
			return nil, fmt.Errorf("its name has an element of %d bytes, %d at most", len(elem), maxElement)
		default:
			elems = append(elems, elem)
		}
	}
	return elems, nil
}

// fileType returns what an entry is: TypeReg, TypeDir, TypeLink, TypeSymlink, TypeChar, TypeBlock or TypeFifo. For
// anything else, a volume's label say, ok is false.
func fileType(h *tar.Header) (typ byte, ok bool) {
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont, '\x00':
		return tar.TypeReg, true
	case tar.TypeDir, tar.TypeLink, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return h.Typeflag, true
	}
	return 0, false
}

// checkHeader refuses what no file system can hold, before anything is made of it.
func checkHeader(h *tar.Header) error {
	// The largest is not an id for chown(2), which takes it for "leave it".
	if h.Uid < 0 || h.Uid >= math.MaxUint32 || h.Gid < 0 || h.Gid >= math.MaxUint32 {
		return fmt.Errorf("its owner is %d:%d, ids go from 0 to %d", h.Uid, h.Gid, uint32(math.MaxUint32-1))
	}
	if h.Typeflag == tar.TypeSymlink {
		switch {
		case h.Linkname == "":
			return errors.New("it is a symbolic link to nowhere")
		case len(h.Linkname) > maxPath:
			return fmt.Errorf("it is a symbolic link to a name of %d bytes, %d at most", len(h.Linkname), maxPath)
		case strings.IndexByte(h.Linkname, 0) >= 0:
			return errors.New("it is a symbolic link to a name with a NUL byte")
		}
	}
	return nil
}

// entryError names the entry that an error is about. %q: the name is a stranger's, and may have escape sequences.
func entryError(name string, err error) error {
	return fmt.Errorf("entry %.200q: %w", name, err)
}
