package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// inode is what is read of one.
type inode struct {
	number   uint32
	mode     uint16
	uid, gid uint32
	mtime    uint32 // seconds, the lower 32 bits
}

// rootInode is the root directory's (EXT4_ROOT_INO in fs/ext4/ext4.h).
const rootInode = 2

// Where things lie in an ext4 file system: struct ext4_super_block, ext4_group_desc and ext4_inode in fs/ext4/ext4.h;
// Documentation/filesystems/ext4. All numbers are little-endian.
const (
	superOffset = 1024
	superSize   = 1024

	superInodes         = 0x00
	superLogBlockSize   = 0x18
	superInodesPerGroup = 0x28
	superMagic          = 0x38
	superFirstInode     = 0x54
	superInodeSize      = 0x58
	superIncompat       = 0x60
	superDescSize       = 0xfe

	magic         = 0xef53
	incompatMeta  = 0x10 // META_BG: the descriptors are elsewhere
	incompat64Bit = 0x80

	descInodeTable     = 0x08
	descInodeTableHigh = 0x28

	inodeMode    = 0x00
	inodeUID     = 0x02
	inodeMtime   = 0x10
	inodeGID     = 0x18
	inodeLinks   = 0x1a
	inodeUIDHigh = 0x78
	inodeGIDHigh = 0x7a
)

var errNoExt4 = errors.New("is no ext4 file system as mke2fs makes it")

// readInodes calls visit for each inode in use of a file system, but for reserved ones other than the root directory.
func readInodes(image io.ReaderAt, visit func(inode) error) error {
	super := make([]byte, superSize)
	if _, err := image.ReadAt(super, superOffset); err != nil {
		return fmt.Errorf("%w: %w", errNoExt4, err)
	}
	u16 := binary.LittleEndian.Uint16
	u32 := binary.LittleEndian.Uint32
	count, perGroup, first := u32(super[superInodes:]), u32(super[superInodesPerGroup:]), u32(super[superFirstInode:])
	descSize := 32
	incompat, logSize := u32(super[superIncompat:]), u32(super[superLogBlockSize:])
	if incompat&incompat64Bit != 0 {
		descSize = int(u16(super[superDescSize:]))
	}
	if u16(super[superMagic:]) != magic || incompat&incompatMeta != 0 || logSize != 2 || perGroup == 0 ||
		perGroup > 8*blockSize || u16(super[superInodeSize:]) != inodeSize || descSize < 32 || descSize > blockSize {
		return errNoExt4
	}

	desc := make([]byte, descSize)
	table := make([]byte, int(perGroup)*inodeSize)
	for start := uint32(0); start < count; start += min(perGroup, count-start) {
		// The descriptors follow the superblock's block.
		if _, err := image.ReadAt(desc, blockSize+int64(start/perGroup)*int64(descSize)); err != nil {
			return fmt.Errorf("%w: %w", errNoExt4, err)
		}
		block := int64(u32(desc[descInodeTable:]))
		if descSize >= 64 {
			block |= int64(u32(desc[descInodeTableHigh:])&0xffff) << 32
		}
		if n, err := image.ReadAt(table, block*blockSize); n < len(table) {
			return fmt.Errorf("%w: %w", errNoExt4, err)
		}
		for i := range min(perGroup, count-start) {
			raw := table[int(i)*inodeSize:]
			n := inode{
				number: start + i + 1,
				mode:   u16(raw[inodeMode:]),
				uid:    uint32(u16(raw[inodeUID:])) | uint32(u16(raw[inodeUIDHigh:]))<<16,
				gid:    uint32(u16(raw[inodeGID:])) | uint32(u16(raw[inodeGIDHigh:]))<<16,
				mtime:  u32(raw[inodeMtime:]),
			}
			if u16(raw[inodeLinks:]) == 0 || n.number < first && n.number != rootInode {
				continue
			}
			if err := visit(n); err != nil {
				return err
			}
		}
	}
	return nil
}
