package image

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"go.uber.org/goleak"
)

// What a header says reaches the flattened archive, whatever the old format could hold.
func TestTarMetadata(t *testing.T) {
	when := time.Unix(1_234_567_890, 987654321)
	long := strings.Repeat("long/", 60) + "name"
	in := []entry{
		dirEntry("d/").owner(1, 2).mode(0o1777).time(when).xattr("user.d", "x"),
		reg("a", "1").owner(3_000_000, 4_000_000_000).mode(0o6755).time(when).xattr("security.capability", "\x00\x01=\xff"),
		sym("s", long).owner(5, 6).time(when),
		newEntry(tar.TypeBlock, "b", 0o660).device(259, 1000).owner(0, 6).time(when),
		reg("Ünï\xff", "").time(time.Unix(-5, 0)),
	}
	s := open(t, write(t, saved(t, map[string]v1.Image{"x": newImage(t, v1.Config{}, pack(t, in...))})), Options{})
	r, err := s.Tar(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(t, r)
	archive := tar.NewReader(r)
	for _, want := range in {
		h, err := archive.Next()
		if err != nil {
			t.Fatal(err)
		}
		type metadata struct {
			typ          byte
			name, link   string
			mode         int64
			uid, gid     int
			major, minor int64
			time         int64
			capability   string
		}
		of := func(h *tar.Header) metadata {
			return metadata{
				h.Typeflag, h.Name, h.Linkname, h.Mode, h.Uid, h.Gid, h.Devmajor, h.Devminor, h.ModTime.UnixNano(),
				h.PAXRecords[xattrPrefix+"security.capability"] + h.PAXRecords[xattrPrefix+"user.d"],
			}
		}
		if got, want := of(h), of(&want.Header); !reflect.DeepEqual(got, want) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	}
	h, err := archive.Next()
	if err != nil || h.Name != ".uml-image.json" || h.Mode != 0o644 || h.Uid != 0 {
		t.Errorf("the last entry is %+v, %v", h, err)
	}
}

// Whoever stops in the middle leaves no goroutine.
func TestTarClose(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	s := open(t, write(t, pack(t, reg("a", strings.Repeat("x", 1<<20)), reg("b", ""))), Options{})
	r, err := s.Tar(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	closeAll(t, r)
}

func TestTarCancelled(t *testing.T) {
	s := open(t, write(t, pack(t, reg("a", strings.Repeat("x", 1<<20)), reg("b", ""))), Options{})
	ctx, cancel := context.WithCancel(t.Context())
	r, err := s.Tar(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(t, r)
	cancel()
	if _, err := io.Copy(io.Discard, r); !errors.Is(err, context.Canceled) {
		t.Errorf("Copy() = %v, want %v", err, context.Canceled)
	}
}

// A file that is changed between the two times that it is read is no image any more.
func TestTarChanged(t *testing.T) {
	path := write(t, pack(t, reg("a", "1"), reg("b", "2")))
	s := open(t, path, Options{})
	if err := os.WriteFile(path, pack(t, sym("a", "1"), reg("b", "2")), 0o644); err != nil {
		t.Fatal(err)
	}
	r, err := s.Tar(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(t, r)
	_, err = io.Copy(io.Discard, r)
	checkError(t, err, path, "changed")
}
