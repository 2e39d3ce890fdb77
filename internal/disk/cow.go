package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	"docker-usermode-linux/internal/tempfile"
)

// cowHeader is the start of a file in which UML's ubd driver keeps what was written, while what was not stays in a
// backing file: struct cow_header_v3 in arch/um/drivers/cow_user.c, packed and big-endian. A bitmap of all sectors follows,
// and then the sectors, in the same place as in the backing file; both start at a multiple of Alignment.
type cowHeader struct {
	Magic, Version    uint32
	Mtime             uint32 // of the backing file, which must not have changed since
	Size              uint64
	Sector, Alignment uint32
	Format            uint32
	Backing           [4096]byte
}

const (
	cowMagic     = 0x4f4f4f4d
	cowVersion   = 3
	cowSector    = 512
	cowAlignment = 4096
)

// Ephemeral returns a file that takes the writes of a guest whose disk is to stay as it is: the kernel gets it by its
// descriptor, as ubd0=/proc/self/fd/N,name. The image is opened read-only then, and may be the disk of several such guests;
// hold it with LockShared, as the kernel refuses an image that was written to meanwhile. The kernel takes a comma or a
// colon in name for a separator: pass the image by a descriptor, too, /proc/self/fd/M, if its path may have one.
//
// The file has no name, so that nothing is left of it whatever happens. It is sparse, and lies in dir, which should not be
// in RAM (/var/tmp rather than /tmp).
//
// The driver would make such a file itself where there is none, but only one with a name. A copy of the image would take
// as long as it is large, unless the host's file system shares blocks (FICLONE), which ext4 does not. In the guest, an
// overlay or a dm-snapshot would be seen by it, and would have to be set up before its root is mounted.
func Ephemeral(image, name, dir string) (*os.File, error) {
	mtime, size, err := look(image)
	if err != nil {
		return nil, fmt.Errorf("ephemeral disk: %w", err)
	}
	header := cowHeader{
		Magic: cowMagic, Version: cowVersion, Mtime: mtime, Size: uint64(size), Sector: cowSector, Alignment: cowAlignment,
	}
	// The driver has an int for the bitmap's end.
	end, total := cowSizes(size)
	if size == 0 || end > math.MaxInt32 {
		return nil, fmt.Errorf("ephemeral disk: %s is no image", image)
	}
	if copy(header.Backing[:len(header.Backing)-1], name) < len(name) || name == "" {
		return nil, fmt.Errorf("ephemeral disk: %q is too long a name", name)
	}
	f, err := tempfile.New(dir)
	if err != nil {
		return nil, fmt.Errorf("ephemeral disk: %w", err)
	}
	err = errors.Join(binary.Write(f, binary.BigEndian, header), f.Truncate(total))
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("ephemeral disk: %w", err)
	}
	return f, nil
}

// look returns what the driver compares: the time when an image or a block device was written to, and its size.
func look(image string) (mtime uint32, size int64, err error) {
	f, err := os.Open(image)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	if info.Mode().IsDir() {
		return 0, 0, nil
	}
	size, err = f.Seek(0, io.SeekEnd)
	return uint32(info.ModTime().Unix()), size, err
}

// cowSizes tells where the sectors start and what the whole file's size is (cow_sizes in the same file).
func cowSizes(size int64) (data, total int64) {
	bitmap := (size + 8*cowSector - 1) / (8 * cowSector)
	data = roundUp(roundUp(int64(binary.Size(cowHeader{})), cowAlignment)+bitmap, cowAlignment)
	return data, data + size
}
