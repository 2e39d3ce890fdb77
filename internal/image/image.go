// Package image is where root file systems come from: a tar archive, an image of Docker or OCI in a file or a directory, or
// a registry. What comes out is the same in each case, a Source: one flattened tar archive, for Unpack or for whoever
// makes a disk of it, and what the image says about how it is run.
//
// # Theory of operation
//
// Open tells what a file is by what is in it, whatever its name. It reads the archive once, and Pull does with each layer:
// digests are verified, and the names of all layers are merged in memory (layers.go), whiteouts and hard links included.
// So a Source is known to be whole before anything is made of it, and knows its size. Source.Tar then reads each layer
// once more and puts out what is left of it. Twice, because only the last layer tells which names of the first one
// remain, and that the link of an upper layer leads to a file below it.
//
// What cannot be read twice, a pipe or a registry, is first copied to a temporary file without a name, compressed as it
// came.
//
// mutate.Extract of go-containerregistry does without the second time by going from the top layer down. Then a hard
// link may come before its target, or lose it to a whiteout; files below a directory that a lower layer has as a
// symbolic link (bin -> usr/bin) come before the link; and names that repeat within a layer hide their last version.
//
// Unpack trusts no archive. All is made in a new directory beside the destination and renamed at the end: what is there is
// whole. Directories are opened through os.Root, and everything else by a single name below such a directory, never
// following a link. Where names lead through symbolic links we go ourselves, as after a chroot.
//
// Non-goals: writing images, other platforms than linux/amd64, signatures.
package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"docker-usermode-linux/internal/image/runconfig"
)

// Config is what the image says about how it is run; all of it is empty for a plain archive.
type Config = runconfig.Config

// Options are for Open and Pull. The zero value is good.
type Options struct {
	Image    string    // which image of an archive that has several: a name, a tag or a digest
	Stdin    io.Reader // what "-" is; os.Stdin if nil
	TempDir  string    // for temporary copies; os.TempDir() if empty
	Progress Progress
}

// Source is a root file system that is known to be whole.
type Source struct {
	name      string
	config    Config
	fromImage bool // the flattened archive gets a runconfig.File
	created   time.Time
	layers    []*layer
	plan      *plan
	closers   []io.Closer
}

// Name is what the Source was made of: a path, or an image's name and digest.
func (s *Source) Name() string { return s.name }

// Config returns what the image says about how it is run.
func (s *Source) Config() Config { return s.config }

// Entries is the number of entries in the flattened archive.
func (s *Source) Entries() int {
	if s.fromImage {
		return s.plan.entries + 1
	}
	return s.plan.entries
}

// Size is how many bytes the files in it have together: what Unpack counts up to.
func (s *Source) Size() int64 { return s.plan.size }

// Close frees files and temporary space. No archive from Tar may be in use any more.
func (s *Source) Close() error {
	var errs []error
	for _, c := range s.closers {
		errs = append(errs, c.Close())
	}
	s.closers = nil
	return errors.Join(errs...)
}

// image is one that was found in an archive, a directory or a registry.
type image struct {
	name   string
	config *v1.ConfigFile
	layers []*layer
}

// check refuses what we cannot boot, and layers that do not fit the configuration.
func (i *image) check() error {
	c := i.config
	if (c.Architecture != "" && c.Architecture != arch) || (c.OS != "" && c.OS != linux) {
		return fmt.Errorf("the image is for %s, and a machine is %s/%s", c.Platform(), linux, arch)
	}
	if got, want := len(i.layers), len(c.RootFS.DiffIDs); got != want {
		return fmt.Errorf("the image has %d layers, its configuration %d: damaged", got, want)
	}
	for n, l := range i.layers {
		l.name = fmt.Sprintf("layer %d of %d", n+1, len(i.layers))
		l.diffID = c.RootFS.DiffIDs[n]
		l.whiteouts = true
	}
	return nil
}

// source reads all layers, verifies and merges them.
func (i *image) source(ctx context.Context, o Options) (*Source, error) {
	total := int64(0)
	for _, l := range i.layers {
		total += l.data.Size()
	}
	m := newMeter(o.Progress, total, "reading")
	merged := newLayers()
	for n, l := range i.layers {
		merged.current = n
		if err := l.scan(ctx, true, m, merged.addTo(l)); err != nil {
			return nil, err
		}
	}
	m.finish()
	merged.remove(runconfig.File) // ours takes its place
	c := i.config.Config
	config := Config{Env: c.Env, WorkingDir: c.WorkingDir, User: c.User, Entrypoint: c.Entrypoint, Cmd: c.Cmd}.Normal()
	text, err := config.Marshal()
	if err != nil {
		return nil, fmt.Errorf("configuration of the image: %w", err)
	}
	s := &Source{
		name: i.name, config: config, fromImage: true, created: i.config.Created.Time, layers: i.layers, plan: merged.plan(),
	}
	if s.created.IsZero() {
		s.created = time.Unix(0, 0)
	}
	s.plan.size += int64(len(text))
	return s, nil
}
