package image

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"syscall"
)

// maxLinks is how many symbolic links a path may lead through, as in the kernel.
const maxLinks = 40

// kind is what a name in a directory stands for, as far as it matters on the way to something else.
type kind int

const (
	missing kind = iota
	directory
	symlink
	other
)

// tree is what resolve walks: a root file system in memory (layers) or on the disk (unpacker). D is a directory in it.
type tree[D any] interface {
	// look says what name is in dir: the directory if it is one, the target if it is a symbolic link.
	look(dir D, name string) (k kind, sub D, target string, err error)
	// mkdir makes a directory that no entry has announced.
	mkdir(dir D, name string) (D, error)
}

// resolve returns the directory that elems lead to from root. Symbolic links are followed as after a chroot into the root:
// an absolute one starts at root, and the ".." of root is root. Directories that are missing are made, or fs.ErrNotExist
// returned if make is false.
func resolve[D any](t tree[D], root D, elems []string, make bool) (D, error) {
	var none D
	way := []D{root}
	links := 0
	for rest := slices.Clone(elems); len(rest) > 0; {
		elem := rest[0]
		rest = rest[1:]
		switch elem {
		case "", ".":
			continue
		case "..":
			way = way[:max(1, len(way)-1)]
			continue
		}
		dir := way[len(way)-1]
		k, sub, target, err := t.look(dir, elem)
		if err == nil && k == missing {
			if !make {
				return none, fs.ErrNotExist
			}
			sub, err = t.mkdir(dir, elem)
			k = directory
		}
		if err != nil {
			return none, err
		}
		switch k {
		case directory:
			way = append(way, sub)
		case symlink:
			if links++; links > maxLinks {
				return none, fmt.Errorf("%q in its path: %w", elem, syscall.ELOOP)
			}
			if strings.HasPrefix(target, "/") {
				way = way[:1]
			}
			rest = append(strings.Split(target, "/"), rest...)
		default:
			return none, fmt.Errorf("%q in its path is a file, %w", elem, errNotDir)
		}
	}
	return way[len(way)-1], nil
}

var errNotDir = errors.New("not a directory")
