package disk

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestEphemeral(t *testing.T) {
	dir := t.TempDir()
	image := filepath.Join(dir, "disk")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	const size = 2<<30 + 512
	if err := os.Truncate(image, size); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(image, time.Time{}, time.Unix(0x61626364, 5)); err != nil {
		t.Fatal(err)
	}
	f, err := Ephemeral(image, "/proc/self/fd/7", dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()

	head := make([]byte, 8192)
	if _, err := f.ReadAt(head, 0); err != nil {
		t.Fatal(err)
	}
	want := "OOOM" + "\x00\x00\x00\x03" + "abcd" + "\x00\x00\x00\x00\x80\x00\x02\x00" + "\x00\x00\x02\x00" + "\x00\x00\x10\x00" +
		"\x00\x00\x00\x00" + "/proc/self/fd/7\x00"
	if !bytes.HasPrefix(head, []byte(want)) || strings.Trim(string(head[len(want):]), "\x00") != "" {
		t.Errorf("header %q, want %q", head[:100], want)
	}
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	// 2 GiB are 4 Mi sectors, of one bit each, and one more byte that takes a block.
	if want := int64(8192 + 512<<10 + 4096 + size); info.Size() != want || statOf(info).Blocks*512 > 64<<10 {
		t.Errorf("size %d, %d blocks, want %d and next to none", info.Size(), statOf(info).Blocks, want)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("the file has a name: %v", entries)
	}
	if got := binary.Size(cowHeader{}); got != 4128 {
		t.Errorf("the header has %d bytes, want 4128", got)
	}
}

func TestEphemeralNot(t *testing.T) {
	dir := t.TempDir()
	image := filepath.Join(dir, "disk")
	if err := os.WriteFile(image, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ image, name, dir, want string }{
		{"none", "name", dir, "no such file"},
		{".", "name", dir, "is no image"},
		{"disk", strings.Repeat("x", 4096), dir, "too long a name"},
		{"disk", "name", filepath.Join(dir, "none"), "no such file"},
	} {
		if _, err := Ephemeral(filepath.Join(dir, test.image), test.name, test.dir); err == nil ||
			!strings.Contains(err.Error(), test.want) {
			t.Errorf("Ephemeral(%s, %.10s, %s) = %v, want %q", test.image, test.name, test.dir, err, test.want)
		}
	}
}
