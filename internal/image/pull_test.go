package image

import (
	"context"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// registryWith serves images, through what a test puts before it. It returns the host and port.
func registryWith(t *testing.T, wrap func(http.Handler) http.Handler, images map[string]remote.Taggable) string {
	t.Helper()
	t.Setenv("DOCKER_CONFIG", t.TempDir()) // nobody's own credentials
	plain := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	direct := httptest.NewServer(plain)
	defer direct.Close()
	for n, what := range images {
		ref, err := name.ParseReference(strings.TrimPrefix(direct.URL, "http://") + "/" + n)
		if err != nil {
			t.Fatal(err)
		}
		switch what := what.(type) {
		case v1.Image:
			err = remote.Write(ref, what)
		case v1.ImageIndex:
			err = remote.WriteIndex(ref, what)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	server := httptest.NewServer(wrap(plain))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

func through(h http.Handler) http.Handler { return h }

func threeLayers(t *testing.T) v1.Image {
	return newImage(t, imageConfig, pack(t, reg("a", "1"), reg("b", strings.Repeat("long ", 1<<16))),
		pack(t, reg(".wh.b", "")), pack(t, hard("c", "a")), pack(t, reg("d", "4")))
}

var threeLayersFlat = []string{"a: 1", "c = a", "d: 4"}

func pull(t *testing.T, ref string) *Source {
	t.Helper()
	s, err := Pull(t.Context(), ref, Options{TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeAll(t, s) })
	return s
}

func TestPull(t *testing.T) {
	img := threeLayers(t)
	host := registryWith(t, through, map[string]remote.Taggable{
		"x:1": img, "many:latest": platforms(t, "linux/arm64", "linux/amd64", "unknown/unknown"),
		"arm:latest": platforms(t, "linux/arm64", "linux/s390x"),
	})
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"/x:1", "/x@" + digest.String()} {
		s := pull(t, host+ref)
		if got := withoutConfig(flat(t, s)); !slices.Equal(got, threeLayersFlat) {
			t.Errorf("%s: got %q, want %q", ref, got, threeLayersFlat)
		}
		if s.Config().User != "1:2" || s.Name() != host+"/x@"+digest.String() {
			t.Errorf("%s: Config, Name = %+v, %s", ref, s.Config(), s.Name())
		}
	}
	_, err = Pull(t.Context(), host+"/arm", Options{})
	checkError(t, err, "pull "+host+"/arm", "linux/amd64", "linux/arm64, linux/s390x")
	_, err = Pull(t.Context(), host+"/nothing", Options{})
	checkError(t, err, "no such image", "NAME_UNKNOWN")
	_, err = Pull(t.Context(), "Not A Name", Options{})
	checkError(t, err, `"Not A Name"`)
}

// The images of platforms have no layers in their configuration; what counts is which is chosen.
func TestPullPlatform(t *testing.T) {
	host := registryWith(t, through, map[string]remote.Taggable{
		"many": platforms(t, "linux/arm64", "linux/amd64/v3", "linux/amd64", "unknown/unknown"),
	})
	ref, err := name.ParseReference(host + "/many")
	if err != nil {
		t.Fatal(err)
	}
	img, err := remoteImage(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	c, err := img.ConfigFile()
	if err != nil || c.Platform().String() != "linux/amd64" {
		t.Errorf("chose %s, %v", c.Platform(), err)
	}
}

func TestPullLogin(t *testing.T) {
	basic := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if user, password, _ := r.BasicAuth(); user != "me" || password != "secret" {
				w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
	host := registryWith(t, basic, map[string]remote.Taggable{"x": threeLayers(t)})
	_, err := Pull(t.Context(), host+"/x", Options{})
	checkError(t, err, "docker login "+host)

	auth := authn.AuthConfig{Username: "me", Password: "secret"}
	text := `{"auths":{"` + host + `":{"username":"` + auth.Username + `","password":"` + auth.Password + `"}}}`
	if err := os.WriteFile(filepath.Join(os.Getenv("DOCKER_CONFIG"), "config.json"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := withoutConfig(flat(t, pull(t, host+"/x"))); !slices.Equal(got, threeLayersFlat) {
		t.Errorf("got %q, want %q", got, threeLayersFlat)
	}
}

// server answers a request for a layer; try counts them from 1.
type server func(try int32, w http.ResponseWriter, r *http.Request, next http.Handler)

// blobs changes how the lowest layer is served.
func blobs(img v1.Image, broken server) func(http.Handler) http.Handler {
	layers, err := img.Layers()
	if err != nil {
		panic(err)
	}
	digest, err := layers[0].Digest()
	if err != nil {
		panic(err)
	}
	var tries atomic.Int32
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, digest.String()) {
				next.ServeHTTP(w, r)
				return
			}
			broken(tries.Add(1), w, r, next)
		})
	}
}

// cut serves the first half of what it should.
func cut(w http.ResponseWriter, r *http.Request, next http.Handler) {
	whole := httptest.NewRecorder()
	next.ServeHTTP(whole, r)
	w.Header().Set("Content-Length", whole.Header().Get("Content-Length"))
	_, _ = w.Write(whole.Body.Bytes()[:whole.Body.Len()/2]) // the test sees what the client got
	w.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

func TestPullBrokenBlob(t *testing.T) {
	img := threeLayers(t)
	tests := []struct {
		name   string
		broken server
		err    string
	}{
		{"cut twice", func(try int32, w http.ResponseWriter, r *http.Request, next http.Handler) {
			if try < pullTries {
				cut(w, r, next)
			}
			next.ServeHTTP(w, r)
		}, ""},
		{"cut always", func(_ int32, w http.ResponseWriter, r *http.Request, next http.Handler) {
			cut(w, r, next)
		}, "layer 1 of 4"},
		{"other content", func(_ int32, w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			_, _ = w.Write([]byte("x")) // the test sees what the client got
		}, "layer 1 of 4"},
		{"gone", func(_ int32, w http.ResponseWriter, r *http.Request, _ http.Handler) {
			http.NotFound(w, r)
		}, "no such image"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			host := registryWith(t, blobs(img, tt.broken), map[string]remote.Taggable{"x": img})
			dir := t.TempDir()
			s, err := Pull(t.Context(), host+"/x", Options{TempDir: dir})
			if left, _ := os.ReadDir(dir); len(left) != 0 {
				t.Errorf("temporary files are left: %v", left)
			}
			if tt.err != "" {
				checkError(t, err, tt.err)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer closeAll(t, s)
			if got := withoutConfig(flat(t, s)); !slices.Equal(got, threeLayersFlat) {
				t.Errorf("got %q, want %q", got, threeLayersFlat)
			}
		})
	}
}

// A layer that does not come is not waited for.
func TestPullCancelled(t *testing.T) {
	img := threeLayers(t)
	ctx, cancel := context.WithCancel(t.Context())
	release := make(chan struct{})
	free := sync.OnceFunc(func() { close(release) })
	defer free()
	stall := blobs(img, func(_ int32, w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.(http.Flusher).Flush()
		cancel()
		<-release
	})
	host := registryWith(t, stall, map[string]remote.Taggable{"x": img})
	_, err := Pull(ctx, host+"/x", Options{})
	checkError(t, err, context.Canceled.Error())
	free()
}
