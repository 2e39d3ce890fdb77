package image

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const (
	// The files of an OCI layout, from the OCI image specification, image-layout.md.
	layoutFile = "oci-layout"
	indexFile  = "index.json"

	// maxIndexes is how deep indexes may lie in each other. Two is what is found: the layout's, and that of the platforms.
	maxIndexes = 4

	annotationRef        = "org.opencontainers.image.ref.name" // a tag, or a whole name
	annotationContainerd = "io.containerd.image.name"          // a whole name; Docker writes it, too
)

// layoutIndex returns the index of an OCI layout, if that is what p is.
func layoutIndex(p parts) (*v1.IndexManifest, bool) {
	text, err := readText(p, layoutFile)
	if err != nil {
		return nil, false
	}
	var marker struct {
		Version string `json:"imageLayoutVersion"`
	}
	if json.Unmarshal(text, &marker) != nil || marker.Version == "" {
		return nil, false
	}
	if text, err = readText(p, indexFile); err != nil {
		return nil, false
	}
	index, err := v1.ParseIndexManifest(bytes.NewReader(text))
	return index, err == nil
}

// ociImage reads one of the images of a layout.
func ociImage(p parts, index *v1.IndexManifest, want string) (*image, error) {
	var names []string
	var found []v1.Descriptor
	for _, d := range index.Manifests {
		if isAttestation(d) {
			continue
		}
		own := descriptorNames(d)
		names = append(names, own[0])
		if want == "" || slices.ContainsFunc(own, func(n string) bool { return sameImage(n, want) }) {
			found = append(found, d)
		}
	}
	if len(found) == 0 && want == "" {
		return nil, errors.New("is an OCI layout without an image")
	}
	found = distinct(found)
	d := v1.Descriptor{}
	switch {
	case len(found) == 1:
		d = found[0]
	case len(found) > 1 && samePlatforms(found):
		var err error
		if d, err = pickPlatform(found); err != nil {
			return nil, err
		}
	default:
		return nil, choiceError(names, want)
	}
	manifest, err := ociManifest(p, d, maxIndexes)
	if err != nil {
		return nil, err
	}
	return ociLayers(p, manifest, descriptorNames(d)[0])
}

// distinct leaves out what is there once more by another name.
func distinct(list []v1.Descriptor) []v1.Descriptor {
	var out []v1.Descriptor
	for _, d := range list {
		if !slices.ContainsFunc(out, func(o v1.Descriptor) bool { return o.Digest == d.Digest }) {
			out = append(out, d)
		}
	}
	return out
}

// samePlatforms says whether the descriptors are one image, for a platform each.
func samePlatforms(list []v1.Descriptor) bool {
	seen := map[string]bool{}
	for _, d := range list {
		if d.Platform == nil || seen[d.Platform.String()] || imageName(d) != imageName(list[0]) {
			return false
		}
		seen[d.Platform.String()] = true
	}
	return true
}

// imageName is what a layout calls an image, or "".
func imageName(d v1.Descriptor) string {
	if n := d.Annotations[annotationContainerd]; n != "" {
		return n
	}
	return d.Annotations[annotationRef]
}

// descriptorNames returns all that an image may be chosen by, the best first.
func descriptorNames(d v1.Descriptor) []string {
	names := []string{d.Annotations[annotationContainerd], d.Annotations[annotationRef], d.Digest.String()}
	return slices.DeleteFunc(names, func(n string) bool { return n == "" })
}

// ociManifest follows a descriptor through indexes to the manifest of the image for our platform.
func ociManifest(p parts, d v1.Descriptor, depth int) (*v1.Manifest, error) {
	text, err := readBlob(p, d)
	if err != nil {
		return nil, err
	}
	switch {
	case d.MediaType.IsIndex():
		if depth == 0 {
			return nil, errors.New("has an index in an index in an index …")
		}
		index, err := v1.ParseIndexManifest(bytes.NewReader(text))
		if err != nil {
			return nil, fmt.Errorf("index %s: %w", d.Digest, err)
		}
		next, err := pickPlatform(index.Manifests)
		if err != nil {
			return nil, err
		}
		return ociManifest(p, next, depth-1)
	case d.MediaType.IsImage():
		manifest, err := v1.ParseManifest(bytes.NewReader(text))
		if err != nil {
			return nil, fmt.Errorf("manifest %s: %w", d.Digest, err)
		}
		return manifest, checkArtifact(manifest)
	}
	return nil, fmt.Errorf("has something of type %q, which is no image", d.MediaType)
}

// checkArtifact refuses what only travels like an image: Helm charts, signatures, models.
func checkArtifact(m *v1.Manifest) error {
	switch m.Config.MediaType {
	case types.OCIConfigJSON, types.DockerConfigJSON, "":
		return nil
	}
	return fmt.Errorf("has no root file system, but an artifact: its configuration is of type %q", m.Config.MediaType)
}

func ociLayers(p parts, m *v1.Manifest, name string) (*image, error) {
	text, err := readBlob(p, m.Config)
	if err != nil {
		return nil, fmt.Errorf("configuration of the image: %w", err)
	}
	config, err := v1.ParseConfigFile(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("configuration of the image: %w", err)
	}
	i := &image{name: name, config: config}
	for _, d := range m.Layers {
		data, err := p.open(blobName(d.Digest))
		if err != nil {
			return nil, fmt.Errorf("layer: %w", err)
		}
		i.layers = append(i.layers, &layer{data: data, digest: d.Digest})
	}
	return i, nil
}

func blobName(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }

// readBlob returns JSON that a descriptor leads to, verified.
func readBlob(p parts, d v1.Descriptor) ([]byte, error) {
	text, err := readText(p, blobName(d.Digest))
	if err != nil {
		return nil, err
	}
	s := sha256.Sum256(text)
	if got := hex.EncodeToString(s[:]); d.Digest.Algorithm != "sha256" || got != d.Digest.Hex {
		return nil, fmt.Errorf("%s has the digest sha256:%s: damaged, fetch it again", blobName(d.Digest), got)
	}
	return text, nil
}
