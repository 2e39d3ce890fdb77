package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// dockerFile lists the images in an archive of docker save.
const dockerFile = "manifest.json"

// dockerManifest returns the list, if there is one. A root file system may have a file by the name, too.
func dockerManifest(p parts) (tarball.Manifest, bool) {
	text, err := readText(p, dockerFile)
	if err != nil {
		return nil, false
	}
	var list tarball.Manifest
	if json.Unmarshal(text, &list) != nil || len(list) == 0 {
		return nil, false
	}
	for _, d := range list {
		if d.Config == "" {
			return nil, false
		}
	}
	return list, true
}

// dockerImage reads one of the images.
func dockerImage(p parts, list tarball.Manifest, want string) (*image, error) {
	var found []tarball.Descriptor
	var names []string
	for _, d := range list {
		own := dockerNames(d)
		names = append(names, own...)
		if want == "" || slices.ContainsFunc(own, func(n string) bool { return sameImage(n, want) }) {
			found = append(found, d)
		}
	}
	// One image may be there twice, with a tag each.
	found = slices.CompactFunc(found, func(a, b tarball.Descriptor) bool { return a.Config == b.Config })
	if len(found) != 1 {
		return nil, choiceError(names, want)
	}
	d := found[0]
	text, err := readText(p, d.Config)
	if err != nil {
		return nil, fmt.Errorf("configuration of the image: %w", err)
	}
	config, err := v1.ParseConfigFile(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("configuration of the image, %s: %w", d.Config, err)
	}
	i := &image{name: dockerNames(d)[0], config: config}
	for _, part := range d.Layers {
		data, err := p.open(part)
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				err = fmt.Errorf("layer %s is missing: %w", part, err)
			}
			return nil, err
		}
		i.layers = append(i.layers, &layer{data: data})
	}
	return i, nil
}

// dockerNames returns an image's tags, or else the digest of its configuration, which Docker calls its id.
func dockerNames(d tarball.Descriptor) []string {
	if len(d.RepoTags) > 0 {
		return d.RepoTags
	}
	id := d.Config[strings.LastIndex(d.Config, "/")+1:]
	return []string{"sha256:" + strings.TrimSuffix(id, ".json")}
}

// sameImage says whether two names are the same to Docker: alpine is docker.io/library/alpine:latest.
func sameImage(a, b string) bool {
	if a == b {
		return true
	}
	x, errX := name.ParseReference(a)
	y, errY := name.ParseReference(b)
	return errX == nil && errY == nil && x.Name() == y.Name()
}

// choiceError says which images there are, when not exactly one is meant.
func choiceError(names []string, want string) error {
	slices.Sort(names)
	list := strings.Join(slices.Compact(names), ", ")
	if want == "" {
		return fmt.Errorf("has several images, choose one: %s", list)
	}
	return fmt.Errorf("has no image %q, or not only one; it has: %s", want, list)
}
