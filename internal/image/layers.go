package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
)

// Whiteouts, from the OCI image specification, layer.md. The names with a second prefix are what AUFS kept for itself.
const (
	whiteout       = ".wh."
	whiteoutMeta   = whiteout + whiteout
	whiteoutOpaque = whiteoutMeta + ".opq"
)

// maxEntries keeps an archive of names alone from taking all memory. Large distributions have half a million files.
const maxEntries = 20_000_000

// node is a file of the merged tree, with as many names as there are hard links.
type node struct {
	typ          byte   // as fileType says; never TypeLink
	layer, index int    // the entry that it comes from
	size         int64  // regular files: bytes
	target       string // symbolic links

	// Directories alone:
	header   *tar.Header // nil if no entry told of it
	children map[string]dirent
}

// dirent is an element of a directory.
type dirent struct {
	*node
	layer int // the topmost that had it
}

// layers is the root file system of an image in memory, without content: what is left of all entries once the upper layers
// have replaced and removed what is below them. Entries are added from the lowest layer on. It is also what an archive
// means that has names twice, or goes through its own symbolic links.
type layers struct {
	root    *node
	current int // the layer that entries are added to
	entries int
}

func newLayers() *layers {
	return &layers{root: newDir(nil)}
}

func newDir(h *tar.Header) *node {
	return &node{typ: tar.TypeDir, header: h, children: map[string]dirent{}}
}

// addTo returns the function that adds what a layer has.
func (l *layers) addTo(from *layer) entryFunc {
	return func(h *tar.Header, index int, _ io.Reader, _ int64) error {
		return l.add(h, index, from.whiteouts)
	}
}

// add puts an entry of the current layer into the tree.
func (l *layers) add(h *tar.Header, index int, whiteouts bool) error {
	typ, ok := fileType(h)
	if !ok {
		return nil
	}
	if l.entries++; l.entries > maxEntries {
		return fmt.Errorf("more than %d entries", maxEntries)
	}
	if err := checkHeader(h); err != nil {
		return err
	}
	elems, err := elements(h.Name)
	if err != nil {
		return err
	}
	if len(elems) == 0 {
		if typ != tar.TypeDir {
			return errors.New("the root is no directory in it")
		}
		l.root.header = h
		return nil
	}
	parents, base := elems[:len(elems)-1], elems[len(elems)-1]
	if whiteouts && strings.HasPrefix(base, whiteout) {
		return l.whiteout(parents, base)
	}
	dir, err := resolve(l, l.root, parents, true)
	if err != nil {
		return err
	}
	return l.put(dir, base, typ, h, index)
}

func (l *layers) put(dir *node, base string, typ byte, h *tar.Header, index int) error {
	n := &node{typ: typ, layer: l.current, index: index}
	switch typ {
	case tar.TypeDir:
		if old, ok := dir.children[base]; ok && old.typ == tar.TypeDir {
			n = old.node // keeps what is in it
			n.header = h
		} else {
			n = newDir(h)
		}
	case tar.TypeLink:
		var err error
		if n, err = l.linked(h.Linkname); err != nil {
			return fmt.Errorf("it is a hard link to %.200q: %w", h.Linkname, err)
		}
	case tar.TypeReg:
		n.size = h.Size
	case tar.TypeSymlink:
		n.target = h.Linkname
	}
	dir.children[base] = dirent{n, l.current}
	return nil
}

// linked returns the file that a hard link leads to, in whichever layer it is.
func (l *layers) linked(target string) (*node, error) {
	elems, err := elements(target)
	if err != nil {
		return nil, err
	}
	if len(elems) == 0 {
		return nil, errors.New("a directory")
	}
	dir, err := resolve(l, l.root, elems[:len(elems)-1], false)
	if err != nil {
		return nil, err
	}
	n, ok := dir.children[elems[len(elems)-1]]
	switch {
	case !ok:
		return nil, errors.New("which is not there")
	case n.typ == tar.TypeDir:
		return nil, errors.New("a directory")
	}
	return n.node, nil
}

// whiteout takes away what lower layers have by a name, or all that they have in the directory. What the current layer
// has is kept, whether it came before or comes after.
func (l *layers) whiteout(parents []string, base string) error {
	if strings.HasPrefix(base, whiteoutMeta) && base != whiteoutOpaque {
		return nil
	}
	dir, err := resolve(l, l.root, parents, false)
	if err != nil {
		return nil // there is nothing to take away
	}
	if base == whiteoutOpaque {
		l.prune(dir)
		return nil
	}
	gone := strings.TrimPrefix(base, whiteout)
	if n, ok := dir.children[gone]; ok && !l.keep(n) {
		delete(dir.children, gone)
	}
	return nil
}

// prune removes from a directory what only lower layers have.
func (l *layers) prune(dir *node) {
	for base, n := range dir.children {
		if !l.keep(n) {
			delete(dir.children, base)
		}
	}
}

// keep says whether the current layer has n, or something in it, and removes what it does not have.
func (l *layers) keep(n dirent) bool {
	if n.typ != tar.TypeDir {
		return n.layer == l.current
	}
	l.prune(n.node)
	return n.layer == l.current || len(n.children) > 0
}

// look implements tree.
func (l *layers) look(dir *node, base string) (kind, *node, string, error) {
	n, ok := dir.children[base]
	switch {
	case !ok:
		return missing, nil, "", nil
	case n.typ == tar.TypeDir:
		return directory, n.node, "", nil
	case n.typ == tar.TypeSymlink:
		return symlink, nil, n.target, nil
	}
	return other, nil, "", nil
}

// mkdir implements tree.
func (l *layers) mkdir(dir *node, base string) (*node, error) {
	n := newDir(nil)
	dir.children[base] = dirent{n, l.current}
	return n, nil
}

// remove takes a name at the root away.
func (l *layers) remove(base string) {
	delete(l.root.children, path.Clean(base))
}
