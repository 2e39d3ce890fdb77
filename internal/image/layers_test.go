package image

import (
	"archive/tar"
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// saved returns an archive as docker save writes it.
func saved(t testing.TB, images map[string]v1.Image) []byte {
	t.Helper()
	byTag := map[name.Tag]v1.Image{}
	for n, i := range images {
		tag, err := name.NewTag(n)
		if err != nil {
			t.Fatal(err)
		}
		byTag[tag] = i
	}
	var buf bytes.Buffer
	if err := tarball.MultiWrite(byTag, &buf); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestLayers(t *testing.T) {
	device := newEntry(tar.TypeChar, "dev/null", 0o666).device(1, 3)
	tests := []struct {
		name   string
		layers [][]entry
		want   []string
	}{
		{"all types", [][]entry{{
			dirEntry("./"), dirEntry("./dev/"), device, reg("/a", "1"), hard("b", "a"), sym("c", "/a"),
			newEntry(tar.TypeFifo, "p", 0o644), newEntry(tar.TypeBlock, "dev/loop0", 0o600).device(7, 0),
		}}, []string{"./", "dev/", "dev/null 3 1:3", "a: 1", "b = a", "c -> /a", "p|", "dev/loop0 4 7:0"}},
		{"directories first", [][]entry{{reg("a/b/c", "1"), dirEntry("a")}}, []string{"a/", "a/b/", "a/b/c: 1"}},
		{"the upper file", [][]entry{{reg("a", "1"), reg("b", "2")}, {reg("a", "3")}}, []string{"b: 2", "a: 3"}},
		{"names that repeat in a layer", [][]entry{{reg("a", "1"), reg("./a", "2")}}, []string{"a: 2"}},

		{"whiteout", [][]entry{{reg("a", "1"), reg("b", "2")}, {reg(".wh.a", "")}}, []string{"b: 2"}},
		{"whiteout of a directory", [][]entry{{reg("d/a", "1"), reg("d/e/b", "2")}, {reg(".wh.d", "")}}, nil},
		{
			"whiteout, then the same again",
			[][]entry{{reg("d/a", "1")}, {reg(".wh.d", ""), dirEntry("d"), reg("d/b", "2")}},
			[]string{"d/", "d/b: 2"},
		},
		{
			"the same again, then whiteout",
			[][]entry{{reg("d/a", "1")}, {dirEntry("d"), reg("d/b", "2"), reg(".wh.d", "")}},
			[]string{"d/", "d/b: 2"},
		},
		{
			"whiteout of what is not there",
			[][]entry{{reg("a", "1")}, {reg(".wh.b", ""), reg("x/.wh.y", "")}},
			[]string{"a: 1"},
		},
		{"a later layer brings it back", [][]entry{{reg("a", "1")}, {reg(".wh.a", "")}, {reg("a", "3")}}, []string{"a: 3"}},
		{
			"whiteout through a link",
			[][]entry{{reg("usr/bin/a", "1"), sym("bin", "usr/bin")}, {reg("bin/.wh.a", "")}},
			[]string{"usr/", "usr/bin/", "bin -> usr/bin"},
		},
		{"whiteout of a link", [][]entry{{reg("a", "1"), sym("b", "a")}, {reg(".wh.b", "")}}, []string{"a: 1"}},

		{
			"opaque",
			[][]entry{
				{reg("d/a", "1"), reg("d/e/b", "2"), reg("c", "3")},
				{dirEntry("d"), reg("d/.wh..wh..opq", ""), reg("d/n", "4")},
			},
			[]string{"d/", "c: 3", "d/n: 4"},
		},
		{
			"opaque at the end",
			[][]entry{{reg("d/a", "1")}, {dirEntry("d"), reg("d/n", "4"), reg("d/.wh..wh..opq", "")}},
			[]string{"d/", "d/n: 4"},
		},
		{"opaque root", [][]entry{{reg("a", "1")}, {reg(".wh..wh..opq", ""), reg("b", "2")}}, []string{"b: 2"}},
		{
			"opaque keeps what its layer has deeper",
			[][]entry{{reg("d/e/a", "1")}, {reg("d/e/b", "2"), reg("d/.wh..wh..opq", "")}},
			[]string{"d/", "d/e/", "d/e/b: 2"},
		},
		{
			"what AUFS kept",
			[][]entry{{reg("a", "1"), reg(".wh..wh.plnk/1.2", ""), reg(".wh..wh.aufs", "")}},
			[]string{".wh..wh.plnk/", "a: 1", ".wh..wh.plnk/1.2: "},
		},

		{"hard link into a lower layer", [][]entry{{reg("a", "1")}, {hard("b", "a")}}, []string{"a: 1", "b = a"}},
		{"its target is removed", [][]entry{{reg("a", "1")}, {hard("b", "a")}, {reg(".wh.a", "")}}, []string{"b: 1"}},
		{
			"its target is removed in its layer",
			[][]entry{{reg("a", "1")}, {hard("b", "a"), reg(".wh.a", "")}},
			[]string{"b: 1"},
		},
		{
			"its target is replaced",
			[][]entry{{reg("b", "1"), hard("a", "b"), hard("c", "b")}, {reg("b", "2")}},
			[]string{"a: 1", "c = a", "b: 2"},
		},
		{
			"link of a link",
			[][]entry{{reg("a", "1")}, {hard("b", "a")}, {hard("c", "b"), reg(".wh.b", "")}},
			[]string{"a: 1", "c = a"},
		},
		{
			"link over its target's other name",
			[][]entry{{reg("a", "1"), hard("b", "a"), hard("b", "a"), hard("a", "a")}},
			[]string{"a: 1", "b = a"},
		},
		{
			"link through a link",
			[][]entry{{reg("usr/a", "1"), sym("l", "usr")}, {hard("b", "l/a")}},
			[]string{"usr/", "b: 1", "usr/a = b", "l -> usr"},
		},
		{"link to a link", [][]entry{{sym("a", "x"), hard("b", "a")}}, []string{"a -> x", "b = a"}},

		{
			"below a link",
			[][]entry{{dirEntry("usr/bin"), sym("bin", "usr/bin")}, {reg("bin/a", "1")}},
			[]string{"usr/", "usr/bin/", "bin -> usr/bin", "usr/bin/a: 1"},
		},
		{
			"below an absolute link",
			[][]entry{{dirEntry("usr"), sym("x/l", "/usr")}, {reg("x/l/a", "1")}},
			[]string{"usr/", "x/", "x/l -> /usr", "usr/a: 1"},
		},
		{
			"below a link that leads out",
			[][]entry{{sym("l", "../../../../etc")}, {reg("l/a", "1")}},
			[]string{"etc/", "l -> ../../../../etc", "etc/a: 1"},
		},
		{"below a link to nowhere", [][]entry{{sym("l", "n")}, {reg("l/a", "1")}}, []string{"n/", "l -> n", "n/a: 1"}},
		{
			"a directory in the place of a link",
			[][]entry{{reg("usr/a", "1"), sym("l", "usr")}, {dirEntry("l"), reg("l/b", "2")}},
			[]string{"l/", "usr/", "usr/a: 1", "l/b: 2"},
		},
		{"a file in the place of a directory", [][]entry{{reg("d/a", "1")}, {reg("d", "2")}}, []string{"d: 2"}},
		{"a directory in the place of a file", [][]entry{{reg("d", "1")}, {dirEntry("d")}}, []string{"d/"}},
		{"an image's own file for us", [][]entry{{reg(".uml-image.json", "nonsense")}}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var layers [][]byte
			for _, l := range tt.layers {
				layers = append(layers, pack(t, l...))
			}
			s := open(t, write(t, saved(t, map[string]v1.Image{"x": newImage(t, v1.Config{}, layers...)})), Options{})
			lines := flat(t, s)
			if last := lines[len(lines)-1]; last != ".uml-image.json: {}\n" {
				t.Errorf("the last entry is %q, want the configuration", last)
			}
			if got := withoutConfig(lines); !slices.Equal(got, tt.want) {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
}

func TestLayersRefused(t *testing.T) {
	tests := []struct {
		name    string
		entries []entry
		err     string
	}{
		{"parent", []entry{reg("../x", "1")}, `entry "../x": its name has a ..`},
		{"inner parent", []entry{reg("a/../x", "1")}, "a .."},
		{"hard link to a parent", []entry{hard("a", "../x")}, "a .."},
		{"hard link to nothing", []entry{hard("a", "x")}, `entry "a": it is a hard link to "x": which is not there`},
		{"hard link into nothing", []entry{hard("a", "x/y")}, "not exist"},
		{"hard link to a directory", []entry{dirEntry("d"), hard("a", "d")}, "a directory"},
		{"hard link to the root", []entry{hard("a", "/")}, "a directory"},
		{"below a file", []entry{reg("a", "1"), reg("a/b", "1")}, "not a directory"},
		{"links in a circle", []entry{sym("a", "b"), sym("b", "a"), reg("a/x", "1")}, "too many levels"},
		{"the root as a file", []entry{reg("./.", "1")}, "root"},
		{"an element too long", []entry{reg(strings.Repeat("x", 256), "")}, "256 bytes"},
		{"a name too long", []entry{reg(strings.Repeat("x/", 2048)+"x", "")}, "4095 at most"},
		{"an owner that cannot be", []entry{reg("a", "").owner(1<<32-1, 0)}, "owner"},
		{"a link too long", []entry{sym("a", strings.Repeat("x", 4096))}, "4095 at most"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			data := pack(t, tt.entries...)
			_, err := Open(t.Context(), write(t, data), Options{})
			checkError(t, err, tt.err)
			_, err = Unpack(t.Context(), bytes.NewReader(data), t.TempDir(), UnpackOptions{})
			checkError(t, err, tt.err)
		})
	}
}
