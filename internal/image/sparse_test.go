package image

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCopySparse(t *testing.T) {
	zero := func(n int) string { return strings.Repeat("\x00", n) }
	tests := map[string]string{
		"empty":             "",
		"short":             "abc",
		"short zeros":       zero(100),
		"one hole":          zero(blockSize),
		"hole at the end":   "x" + zero(10*blockSize),
		"hole at the start": zero(10*blockSize) + "x",
		"holes across buffers": strings.Repeat("x", blockSize) + zero(copySize) + "y" + zero(2*copySize+5) + "z" +
			zero(3*blockSize),
		"only holes": zero(3*copySize + 17),
		"no hole":    strings.Repeat("x"+zero(blockSize-1), 100),
	}
	for name, text := range tests {
		file, err := os.Create(filepath.Join(t.TempDir(), "x"))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		seen := 0
		n, err := copySparse(file, strings.NewReader(text), make([]byte, copySize), func(n int) { seen += n })
		if err != nil || n != int64(len(text)) || seen != len(text) {
			t.Errorf("%s: copySparse = %d, %v, seen %d, want %d", name, n, err, seen, len(text))
		}
		if got, err := os.ReadFile(file.Name()); err != nil || !bytes.Equal(got, []byte(text)) {
			t.Errorf("%s: another content of %d bytes, %v", name, len(got), err)
		}
	}
}

func TestUnpackSparse(t *testing.T) {
	const size = 8 << 20
	dir, _ := unpack(t, pack(t, reg("disk", "x"+strings.Repeat("\x00", size-1))), UnpackOptions{})
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "disk"), &st); err != nil {
		t.Fatal(err)
	}
	if st.Size != size || st.Blocks*512 > size/8 {
		t.Errorf("size, blocks = %d, %d, want %d and few", st.Size, st.Blocks, size)
	}
}

// GNU tar's own kind of sparse file: one MiB of nothing, then 512 bytes.
func TestOpenSparse(t *testing.T) {
	header := pack(t, reg("s", strings.Repeat("x", 512)))
	header[156] = 'S'
	copy(header[257:], "ustar  \x00")
	copy(header[345:], strings.Repeat("\x00", 155))
	copy(header[386:], "00004000000\x0000000001000\x00")
	copy(header[483:], "00004001000\x00")
	fixChecksum(header)
	s := open(t, write(t, header), Options{})
	want := "s: " + strings.Repeat("\x00", 1<<20) + strings.Repeat("x", 512)
	if got := flat(t, s); len(got) != 1 || got[0] != want {
		t.Errorf("another content, of %d bytes, want %d", len(got[0]), len(want))
	}
}
