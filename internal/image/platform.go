package image

import (
	"fmt"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// The platform of a machine: the kernel is built for no other.
const (
	linux = "linux"
	arch  = "amd64"
)

// isAttestation tells what BuildKit puts beside an image, in the place of one: for no platform.
func isAttestation(d v1.Descriptor) bool {
	return d.Annotations["vnd.docker.reference.type"] == "attestation-manifest" ||
		d.Platform != nil && d.Platform.OS == "unknown" && d.Platform.Architecture == "unknown"
}

// pickPlatform chooses among the images of an index. A variant (amd64/v3 asks for a newer CPU) is second best. An index with
// one image need not say what for; its configuration does.
func pickPlatform(list []v1.Descriptor) (v1.Descriptor, error) {
	list = slices.DeleteFunc(slices.Clone(list), isAttestation)
	if len(list) == 1 && list[0].Platform == nil {
		return list[0], nil
	}
	var fit []v1.Descriptor
	var platforms []string
	for _, d := range list {
		if d.Platform == nil {
			continue
		}
		platforms = append(platforms, d.Platform.String())
		if d.Platform.OS == linux && d.Platform.Architecture == arch {
			fit = append(fit, d)
		}
	}
	if len(fit) == 0 {
		return v1.Descriptor{}, fmt.Errorf("has no image for %s/%s, but for: %s", linux, arch, strings.Join(platforms, ", "))
	}
	return slices.MinFunc(fit, func(a, b v1.Descriptor) int {
		return strings.Compare(a.Platform.Variant, b.Platform.Variant)
	}), nil
}
