package image

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

func compressed(t testing.TB, data []byte, make func(io.Writer) (io.WriteCloser, error)) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := make(&buf)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func gz(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil }

var compressors = map[string]func(io.Writer) (io.WriteCloser, error){
	"gzip": gz,
	"zstd": func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) },
	"xz":   func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) },
	"none": func(w io.Writer) (io.WriteCloser, error) { return nopWriteCloser{w}, nil },
}

type nopWriteCloser struct{ io.Writer }

func (nopWriteCloser) Close() error { return nil }

// ways are those in which a test gives an archive to Open.
var ways = map[string]func(t testing.TB, data []byte) (string, Options){
	"file": func(t testing.TB, data []byte) (string, Options) { return write(t, data), Options{} },
	"pipe": func(t testing.TB, data []byte) (string, Options) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = w.Write(data) // fails if the test ends early
			_ = w.Close()
		}()
		t.Cleanup(func() { _ = r.Close(); <-done })
		return "-", Options{Stdin: r, TempDir: t.TempDir()}
	},
	"redirected": func(t testing.TB, data []byte) (string, Options) {
		f, err := os.Open(write(t, append([]byte("before"), data...)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		if _, err := f.Seek(6, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		return "-", Options{Stdin: f}
	},
}

var imageConfig = v1.Config{
	Env: []string{"PATH=/bin"}, WorkingDir: "srv", User: "1:2", Entrypoint: []string{"/init"}, Cmd: []string{"x"},
}

// layoutDir makes an OCI layout.
func layoutDir(t testing.TB, add func(layout.Path)) string {
	t.Helper()
	dir := t.TempDir()
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	add(p)
	return dir
}

func appendImage(t testing.TB, i mutate.Appendable, o ...layout.Option) func(layout.Path) {
	return func(p layout.Path) {
		var err error
		switch i := i.(type) {
		case v1.Image:
			err = p.AppendImage(i, o...)
		case v1.ImageIndex:
			err = p.AppendIndex(i, o...)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// packDir makes an archive of what is in a directory.
func packDir(t testing.TB, dir string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// Each kind of archive, in each compression, by each way.
func TestOpenKinds(t *testing.T) {
	upper, lower := pack(t, reg(".wh.b", ""), reg("c", "3")), pack(t, reg("a", "1"), reg("b", "2"))
	img := newImage(t, imageConfig, lower, upper)
	wantConfig := Config{
		Env: []string{"PATH=/bin"}, WorkingDir: "/srv", User: "1:2", Entrypoint: []string{"/init"}, Cmd: []string{"x"},
	}
	kinds := map[string][]byte{
		"plain":       pack(t, reg("a", "1"), reg("c", "3"), reg("manifest.json", "[]"), reg("index.json", "{}")),
		"docker save": saved(t, map[string]v1.Image{"x": img}),
		"OCI layout":  packDir(t, layoutDir(t, appendImage(t, img))),
		"both":        bothLayouts(t, img),
	}
	for kind, data := range kinds {
		for how, compressor := range compressors {
			for way, give := range ways {
				t.Run(kind+" "+how+" "+way, func(t *testing.T) {
					path, o := give(t, compressed(t, data, compressor))
					s := open(t, path, o)
					want := []string{"a: 1", "c: 3"}
					if kind == "plain" {
						want = append(want, "manifest.json: []", "index.json: {}")
						if !s.Config().IsZero() {
							t.Errorf("Config() = %+v, want nothing", s.Config())
						}
					} else if !reflect.DeepEqual(s.Config(), wantConfig) {
						t.Errorf("Config() = %+v, want %+v", s.Config(), wantConfig)
					}
					for range 2 { // a Source can be read more than once
						if got := withoutConfig(flat(t, s)); !slices.Equal(got, want) {
							t.Errorf("got %q, want %q", got, want)
						}
					}
				})
			}
		}
	}
}

// bothLayouts returns what docker save writes since version 25: an OCI layout, with the manifest.json of before.
func bothLayouts(t testing.TB, img v1.Image) []byte {
	t.Helper()
	named := layout.WithAnnotations(map[string]string{annotationContainerd: "docker.io/library/x:latest"})
	dir := layoutDir(t, appendImage(t, img, named))
	id, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	text := `[{"Config":"blobs/sha256/` + id.Hex + `","RepoTags":["x:latest"],"Layers":[]}]`
	if err := os.WriteFile(filepath.Join(dir, dockerFile), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return packDir(t, dir)
}

func TestOpenLayoutDir(t *testing.T) {
	dir := layoutDir(t, appendImage(t, newImage(t, imageConfig, pack(t, reg("a", "1")))))
	if got := withoutConfig(flat(t, open(t, dir, Options{}))); !slices.Equal(got, []string{"a: 1"}) {
		t.Errorf("got %q", got)
	}
}

// Docker has put a symbolic link in the place of a layer that is in the archive already.
func TestOpenSharedLayers(t *testing.T) {
	data := saved(t, map[string]v1.Image{"x": newImage(t, v1.Config{}, pack(t, reg("a", "1")))})
	var entries []entry
	for archive := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := archive.Next()
		if err != nil {
			break
		}
		text, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(h.Name, ".tar.gz") {
			entries = append(entries, sym(h.Name, "./other/layer.tar"))
			h.Name = "other/layer.tar"
		}
		entries = append(entries, reg(h.Name, string(text)))
	}
	s := open(t, write(t, pack(t, entries...)), Options{})
	if got := withoutConfig(flat(t, s)); !slices.Equal(got, []string{"a: 1"}) {
		t.Errorf("got %q", got)
	}
}

func TestOpenChoice(t *testing.T) {
	one, two := newImage(t, v1.Config{}, pack(t, reg("one", ""))), newImage(t, v1.Config{}, pack(t, reg("two", "")))
	named := func(n string) layout.Option { return layout.WithAnnotations(map[string]string{annotationRef: n}) }
	archives := map[string]string{
		"docker save": write(t, saved(t, map[string]v1.Image{"one:1": one, "docker.io/library/two": two})),
		"OCI layout": layoutDir(t, func(p layout.Path) {
			appendImage(t, one, named("one:1"))(p)
			appendImage(t, two, named("docker.io/library/two:latest"))(p)
			appendImage(t, two, named("again"))(p)
		}),
	}
	for kind, path := range archives {
		for want, choice := range map[string]string{"one": "one:1", "two": "two"} {
			s := open(t, path, Options{Image: choice})
			if got := withoutConfig(flat(t, s)); !slices.Equal(got, []string{want + ": "}) {
				t.Errorf("%s: Image %q has %q, want %s", kind, choice, got, want)
			}
		}
		_, err := Open(t.Context(), path, Options{})
		checkError(t, err, "several images", "one:1", "two")
		_, err = Open(t.Context(), path, Options{Image: "three"})
		checkError(t, err, `no image "three"`, "one:1", "two")
	}
	digest, err := two.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if s := open(t, archives["OCI layout"], Options{Image: digest.String()}); s.Name() != "docker.io/library/two:latest" {
		t.Errorf("Name() = %s", s.Name())
	}
	_, err = Open(t.Context(), write(t, pack(t, reg("a", ""))), Options{Image: "x"})
	checkError(t, err, "no image")
}

// platforms returns an index with an image for each platform, whose only file has the platform's name.
func platforms(t testing.TB, names ...string) v1.ImageIndex {
	t.Helper()
	index := v1.ImageIndex(empty.Index)
	for _, n := range names {
		p, err := v1.ParsePlatform(n)
		if err != nil {
			t.Fatal(err)
		}
		img, err := mutate.ConfigFile(newImage(t, v1.Config{}, pack(t, reg(strings.ReplaceAll(n, "/", "-"), ""))),
			&v1.ConfigFile{OS: p.OS, Architecture: p.Architecture, RootFS: v1.RootFS{DiffIDs: []v1.Hash{}}})
		if err != nil {
			t.Fatal(err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: p}})
	}
	return index
}

func TestOpenPlatforms(t *testing.T) {
	tests := []struct {
		names []string
		want  string
		err   []string
	}{
		{names: []string{"linux/amd64"}, want: "linux/amd64"},
		{names: []string{"linux/arm64", "linux/amd64/v3", "linux/amd64", "unknown/unknown"}, want: "linux/amd64"},
		{names: []string{"linux/arm64", "linux/amd64/v2"}, want: "linux/amd64/v2"},
		{
			names: []string{"linux/arm64", "windows/amd64", "unknown/unknown"},
			err:   []string{"linux/amd64", "linux/arm64, windows/amd64"},
		},
		{names: []string{"linux/arm64"}, err: []string{"linux/amd64", "linux/arm64"}},
	}
	for _, tt := range tests {
		all := platforms(t, tt.names...)
		for kind, dir := range map[string]string{
			"nested": layoutDir(t, appendImage(t, all)),
			"flat": layoutDir(t, func(p layout.Path) {
				if err := p.WriteIndex(all); err != nil {
					t.Fatal(err)
				}
				raw, err := all.RawManifest()
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(string(p), indexFile), raw, 0o644); err != nil {
					t.Fatal(err)
				}
			}),
		} {
			parts := &folder{root: openRoot(t, dir), own: new(closers)}
			defer parts.own.Close()
			index, ok := layoutIndex(parts)
			if !ok {
				t.Fatalf("%v: no OCI layout", tt.names)
			}
			img, err := ociImage(parts, index, "")
			if tt.err != nil {
				if err == nil {
					err = img.check()
				}
				checkError(t, err, tt.err...)
				continue
			}
			if err != nil {
				t.Errorf("%s %v: %v", kind, tt.names, err)
				continue
			}
			lines := []string{}
			for _, l := range img.layers {
				plain, err := decompress(l.data)
				if err != nil {
					t.Fatal(err)
				}
				lines = append(lines, list(t, plain)...)
			}
			if want := []string{strings.ReplaceAll(tt.want, "/", "-") + ": "}; !slices.Equal(lines, want) {
				t.Errorf("%s %v: got %q, want %q", kind, tt.names, lines, want)
			}
		}
	}
}

func openRoot(t testing.TB, dir string) *os.Root {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	return root
}

func TestOpenArtifact(t *testing.T) {
	const helm = types.MediaType("application/vnd.cncf.helm.config.v1+json")
	chart := mutate.ConfigMediaType(newImage(t, v1.Config{}, pack(t, reg("a", ""))), helm)
	_, err := Open(t.Context(), layoutDir(t, appendImage(t, chart)), Options{})
	checkError(t, err, "artifact", "helm")
}

func TestOpenOtherPlatform(t *testing.T) {
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: "arm64"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.Context(), write(t, saved(t, map[string]v1.Image{"x": img})), Options{})
	checkError(t, err, "linux/arm64", "linux/amd64")
}

// What is damaged is found before anything is made of it.
func TestOpenDamaged(t *testing.T) {
	img := newImage(t, v1.Config{}, pack(t, reg("a", "1")))
	parts := map[string]func() (v1.Hash, error){
		"manifest": img.Digest, "configuration": img.ConfigName,
		"layer": func() (v1.Hash, error) {
			layers, err := img.Layers()
			if err != nil {
				return v1.Hash{}, err
			}
			return layers[0].Digest()
		},
	}
	for part, digestOf := range parts {
		digest, err := digestOf()
		if err != nil {
			t.Fatal(err)
		}
		for _, do := range []func([]byte) []byte{
			func(b []byte) []byte { // other content
				if part == "layer" {
					return compressed(t, pack(t, reg("a", "2")), gz)
				}
				return append(b, ' ')
			},
			func(b []byte) []byte { return append(b, compressed(t, nil, gz)...) }, // the same and more
			nil, // gone
		} {
			dir := layoutDir(t, appendImage(t, img))
			file := filepath.Join(dir, blobName(digest))
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if do == nil {
				err = os.Remove(file)
			} else {
				err = os.WriteFile(file, do(data), 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
			_, err = Open(t.Context(), dir, Options{})
			if do == nil {
				checkError(t, err, "no such file")
			} else {
				checkError(t, err, "digest sha256:", "damaged")
			}
		}
	}
}

// A docker save has no digests but those of the plain layers.
func TestOpenDamagedDocker(t *testing.T) {
	img := newImage(t, v1.Config{}, pack(t, reg("a", "1")))
	other := compressed(t, pack(t, reg("a", "2")), gz)
	var entries []entry
	archive := tar.NewReader(bytes.NewReader(saved(t, map[string]v1.Image{"x": img})))
	for h, err := archive.Next(); err == nil; h, err = archive.Next() {
		text, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(h.Name, ".tar.gz") {
			text = other
		}
		entries = append(entries, reg(h.Name, string(text)))
	}
	_, err := Open(t.Context(), write(t, pack(t, entries...)), Options{})
	checkError(t, err, "layer 1 of 1", "the tar in it has the digest", "damaged")
}

func TestOpenTruncated(t *testing.T) {
	data := pack(t, reg("a", strings.Repeat("some text ", 1000)), reg("b", "2"))
	for how, compressor := range compressors {
		for way, give := range ways {
			whole := compressed(t, data, compressor)
			path, o := give(t, whole[:len(whole)*2/3])
			_, err := Open(t.Context(), path, o)
			checkError(t, err, "not complete")
			if err != nil && strings.Count(err.Error(), "not complete") != 1 {
				t.Errorf("%s %s: %v", how, way, err)
			}
		}
	}
}

func TestOpenStrangers(t *testing.T) {
	ext4 := make([]byte, 4096)
	copy(ext4[0x438:], "\x53\xef")
	tests := map[string][]byte{
		"is empty":                nil,
		"without entries":         make([]byte, 1024),
		"neither a tar":           []byte("just text that goes on for a while"),
		"squashfs":                []byte("hsqs" + strings.Repeat("x", 600)),
		"ext4 disk":               ext4,
		"compressed by lz4":       []byte("\x04\x22\x4d\x18xxxxxxxx"),
		"zip":                     []byte("PK\x03\x04xxxxxxxx"),
		"JSON":                    []byte(`{"errors":[]}`),
		"web page":                []byte("<!doctype html>"),
		"neither a tar archive ":  compressed(t, []byte("just text"), gz),
		"decompress: unexpected ": []byte("\x1f\x8b\x08"),
	}
	for want, data := range tests {
		_, err := Open(t.Context(), write(t, data), Options{})
		if want == "decompress: unexpected " {
			want = "not complete"
		}
		checkError(t, err, want)
	}
	_, err := Open(t.Context(), "/nonexistent/x.tar", Options{})
	checkError(t, err, "read /nonexistent/x.tar: no such file")
	_, err = Open(t.Context(), "/dev/null", Options{})
	checkError(t, err, "neither a file nor a directory")
	_, err = Open(t.Context(), t.TempDir(), Options{})
	checkError(t, err, "no OCI layout")
}

// A root file system that was made of an image once says so.
func TestOpenKeepsConfig(t *testing.T) {
	s := open(t, write(t, pack(t, reg(".uml-image.json", `{"User":"u"}`), reg("a", ""))), Options{})
	if s.Config().User != "u" {
		t.Errorf("Config() = %+v", s.Config())
	}
	if got, want := flat(t, s), []string{`.uml-image.json: {"User":"u"}`, "a: "}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	_, err := Open(t.Context(), write(t, pack(t, reg("./.uml-image.json", `x`))), Options{})
	checkError(t, err, ".uml-image.json")
}

func TestOpenCancelled(t *testing.T) {
	r, w, err := os.Pipe() // nothing is ever written
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = Open(ctx, "-", Options{Stdin: r})
	checkError(t, err, "standard input", context.Canceled.Error())
}

func TestOpenNamedPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	data := pack(t, reg("a", "1"))
	go func() { done <- os.WriteFile(path, data, 0) }()
	if got := flat(t, open(t, path, Options{})); !slices.Equal(got, []string{"a: 1"}) {
		t.Errorf("got %q", got)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestOpenWithoutSpace(t *testing.T) {
	_, err := Open(t.Context(), "-", Options{Stdin: strings.NewReader("x"), TempDir: "/nonexistent"})
	checkError(t, err, "/nonexistent", "TMPDIR")
}

func TestProgress(t *testing.T) {
	data := compressed(t, pack(t, reg("a", strings.Repeat("x", 1<<20))), gz)
	type call struct {
		done, total int64
		what        string
	}
	var calls []call
	hook := func(done, total int64, what string) { calls = append(calls, call{done, total, what}) }
	s := open(t, write(t, data), Options{Progress: hook})
	if n := len(calls); n < 2 || calls[0] != (call{0, int64(len(data)), "reading"}) || calls[n-1].done != int64(len(data)) {
		t.Errorf("calls = %v, want from 0 to %d", calls, len(data))
	}
	calls = nil
	r, err := s.Tar(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(t, r)
	o := UnpackOptions{Total: s.Size(), Progress: hook}
	if _, err := Unpack(t.Context(), r, filepath.Join(t.TempDir(), "x"), o); err != nil {
		t.Fatal(err)
	}
	if last := calls[len(calls)-1]; last != (call{1 << 20, 1 << 20, "unpacking"}) {
		t.Errorf("the last call is %v", last)
	}
}
