package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"golang.org/x/sync/errgroup"
)

const (
	pullJobs  = 3 // layers at the same time, as Docker has it
	pullTries = 3 // for each layer: connections that break in the middle are not tried again by the library
)

// Pull reads the image that ref names from its registry, with the credentials of Docker's configuration (docker login). The
// caller closes the Source.
func Pull(ctx context.Context, ref string, o Options) (_ *Source, err error) {
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return nil, fmt.Errorf("image %q: %w", ref, err)
	}
	var own closers
	defer func() {
		if err != nil {
			_ = own.Close() // the first error tells more
			err = fmt.Errorf("pull %s: %w", ref, err)
		}
	}()
	// Ends the requests of all layers once one is given up.
	requests, cancel := context.WithCancel(ctx)
	defer cancel()
	found, err := remoteImage(requests, parsed)
	if err != nil {
		return nil, explain(err, parsed)
	}
	i, err := pullImage(ctx, cancel, found, o, &own)
	if err != nil {
		return nil, explain(err, parsed)
	}
	digest, err := found.Digest()
	if err != nil {
		return nil, err
	}
	i.name = parsed.Context().Name() + "@" + digest.String()
	s, err := i.source(ctx, o)
	if err != nil {
		return nil, err
	}
	s.closers = own
	return s, nil
}

// remoteImage returns the image for our platform. Its manifest is fetched, and nothing else.
func remoteImage(ctx context.Context, ref name.Reference) (v1.Image, error) {
	options := []remote.Option{remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain)}
	d, err := remote.Get(ref, options...)
	if err != nil {
		return nil, err
	}
	for range maxIndexes {
		if d.MediaType.IsImage() {
			return d.Image()
		}
		if !d.MediaType.IsIndex() {
			return nil, fmt.Errorf("is of type %q, which is no image that we read", d.MediaType)
		}
		index, err := d.ImageIndex()
		if err != nil {
			return nil, err
		}
		manifest, err := index.IndexManifest()
		if err != nil {
			return nil, err
		}
		next, err := pickPlatform(manifest.Manifests)
		if err != nil {
			return nil, err
		}
		if d, err = remote.Get(ref.Context().Digest(next.Digest.String()), options...); err != nil {
			return nil, err
		}
	}
	return nil, errors.New("has an index in an index in an index …")
}

// pullImage copies configuration and layers. cancel ends what remoteImage was given.
func pullImage(ctx context.Context, cancel func(), from v1.Image, o Options, own *closers) (*image, error) {
	manifest, err := from.Manifest()
	if err != nil {
		return nil, err
	}
	if err := checkArtifact(manifest); err != nil {
		return nil, err
	}
	i := &image{}
	if i.config, err = from.ConfigFile(); err != nil {
		return nil, fmt.Errorf("configuration of the image: %w", err)
	}
	total := int64(0)
	for _, d := range manifest.Layers {
		total += d.Size
		i.layers = append(i.layers, &layer{digest: d.Digest})
	}
	if err := i.check(); err != nil {
		return nil, err // before anything large is fetched
	}
	remotes, err := from.Layers()
	if err != nil {
		return nil, err
	}
	m := newMeter(o.Progress, total, "pulling")
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(pullJobs)
	defer context.AfterFunc(ctx, cancel)() // not by the layer that fails: its error has to be the first
	copies := make([]closers, len(remotes))
	for n, r := range remotes {
		group.Go(func() error {
			data, err := pullLayer(ctx, r, m, o, &copies[n])
			if err != nil {
				return fmt.Errorf("%s: %w", i.layers[n].name, err)
			}
			i.layers[n].data = data
			return nil
		})
	}
	err = group.Wait()
	for _, c := range copies {
		*own = append(*own, c...)
	}
	if err != nil {
		return nil, err
	}
	m.finish()
	return i, nil
}

// pullLayer copies a layer, from its start again if the connection breaks in the middle.
func pullLayer(ctx context.Context, from v1.Layer, m *meter, o Options, own *closers) (*io.SectionReader, error) {
	for try := 1; ; try++ {
		content, err := from.Compressed() // verifies size and digest, and ends with the context that the image was got with
		if err != nil {
			return nil, err // the library has tried again where that helps
		}
		d := &download{r: content, meter: m}
		data, err := keep(ctx, d, newMeter(nil, 0, ""), o, own)
		_ = content.Close() // only read
		if err == nil || d.err == nil || try == pullTries || ctx.Err() != nil {
			return data, err
		}
		m.add(-d.n)
	}
}

// download remembers how far it came, and why no further.
type download struct {
	r     io.Reader
	meter *meter
	n     int64
	err   error // but for io.EOF
}

func (d *download) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	d.n += int64(n)
	d.meter.add(int64(n))
	if err != nil && !errors.Is(err, io.EOF) {
		d.err = err
	}
	return n, err
}

// explain adds to a registry's refusal what can be done about it.
func explain(err error, ref name.Reference) error {
	var refused *transport.Error
	if !errors.As(err, &refused) {
		return err
	}
	registry := ref.Context().RegistryStr()
	switch refused.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		return fmt.Errorf("%s gives no access: no such image, or it wants a login (docker login %[1]s): %w", registry, err)
	case http.StatusNotFound:
		return fmt.Errorf("%s has no such image: %w", registry, err)
	case http.StatusTooManyRequests:
		return fmt.Errorf("%s wants fewer requests: wait, or log in (docker login %[1]s): %w", registry, err)
	}
	return err
}
