package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// maxRegions is VHOST_MEMORY_BASELINE_NREGIONS: what any back end takes. UML has one.
const maxRegions = 8

// region is a part of the guest's memory, mapped here.
type region struct {
	guest, size uint64 // physical address in the guest, in bytes
	user        uint64 // the front end's own address of it, which the messages about rings use
	mem         []byte // from guest on
	mapping     []byte // with what had to be mapped before it
}

// Memory is the guest's memory as far as the front end shares it.
//
// The guest may write to it at any time, and a front end could even shrink the file behind it, which shows as a
// SIGBUS. So whoever reads it copies first and looks at the copy, and accesses it within Guard.
type Memory struct{ regions []region }

// slice is length bytes of the guest's memory from a physical address on, or nil where there is no such memory.
func (m *Memory) slice(addr uint64, length uint32) []byte {
	for i := range m.regions {
		r := &m.regions[i]
		if off := addr - r.guest; off < r.size && uint64(length) <= r.size-off {
			return r.mem[off : off+uint64(length) : off+uint64(length)]
		}
	}
	return nil
}

// userSlice is slice for an address of the front end's.
func (m *Memory) userSlice(addr uint64, length uint32) []byte {
	for i := range m.regions {
		r := &m.regions[i]
		if off := addr - r.user; off < r.size && uint64(length) <= r.size-off {
			return r.mem[off : off+uint64(length) : off+uint64(length)]
		}
	}
	return nil
}

const regionBytes = 32

// mapMemory maps what SetMemTable describes. The descriptors stay the caller's.
func mapMemory(payload []byte, fds []int) (*Memory, error) {
	if len(payload) < 8 {
		return nil, errShort
	}
	count := int(binary.LittleEndian.Uint32(payload))
	payload = payload[8:]
	switch {
	case count < 1 || count > maxRegions:
		return nil, fmt.Errorf("%d memory regions, want 1 to %d", count, maxRegions)
	case len(payload) < count*regionBytes:
		return nil, errShort
	case len(fds) != count:
		return nil, fmt.Errorf("%d descriptors for %d memory regions", len(fds), count)
	}
	m := &Memory{}
	for i, fd := range fds {
		r, err := mapRegion(payload[i*regionBytes:], fd)
		if err != nil {
			return nil, errors.Join(err, m.close())
		}
		m.regions = append(m.regions, r)
	}
	return m, nil
}

func mapRegion(b []byte, fd int) (region, error) {
	r := region{
		guest: binary.LittleEndian.Uint64(b[0:]),
		size:  binary.LittleEndian.Uint64(b[8:]),
		user:  binary.LittleEndian.Uint64(b[16:]),
	}
	offset := binary.LittleEndian.Uint64(b[24:])
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return region{}, os.NewSyscallError("fstat", err)
	}
	end := offset + r.size
	if r.size == 0 || end < offset || end > uint64(st.Size) || r.guest+r.size < r.guest || r.user+r.size < r.user {
		return region{}, fmt.Errorf("memory region of %d bytes at %#x does not fit its file of %d bytes", r.size, offset, st.Size)
	}
	// mmap wants a multiple of the page size; the bytes before the region are mapped along.
	before := offset % uint64(os.Getpagesize())
	var err error
	r.mapping, err = unix.Mmap(fd, int64(offset-before), int(r.size+before), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return region{}, fmt.Errorf("map %d bytes of the guest's memory: %w", r.size, os.NewSyscallError("mmap", err))
	}
	r.mem = r.mapping[before:]
	return r, nil
}

// close unmaps everything. No slice of the memory may be in use any more.
func (m *Memory) close() error {
	var errs []error
	for _, r := range m.regions {
		errs = append(errs, os.NewSyscallError("munmap", unix.Munmap(r.mapping)))
	}
	m.regions = nil
	return errors.Join(errs...)
}
