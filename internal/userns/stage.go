package userns

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// stage describes the program that runs between ours and ours (stage_amd64.s): it joins a user namespace and executes a
// program, with its own arguments and environment. Without a namespace it waits for a signal.
type stage struct {
	join, program *os.File // inherited; closed by the execution
	path          string   // of the program
}

// The layout of the stage's only segment, which starts with the file's headers. stage_amd64.s has the addresses, too.
const (
	stageAddress  = 0x400000 // where programs are linked to, above any vm.mmap_min_addr
	codeOffset    = 0x100    // behind the headers, 0xb0 bytes
	failureOffset = 0x3c0
	paramsOffset  = 0x400
	// codeSize is more than the code has; what follows it is never executed.
	codeSize = failureOffset - codeOffset
)

// failure is what the stage says on standard error, by which time there is no one left to return an error to. It then
// exits with 125. It has not happened: the namespace is the user's own, and the program was executed before.
const failure = "cannot join user namespace, or execute in it\n\x00"

// stageParams is what the code reads, at paramsOffset; the path follows, with a 0.
type stageParams struct {
	Join, Program int32 // descriptors; Join is -1 for none
}

// newStage returns the program in an anonymous file.
func newStage(s stage) (*os.File, error) {
	code := stageCode()
	if code == nil {
		return nil, fmt.Errorf("%w on this kind of processor", errors.ErrUnsupported)
	}
	params := stageParams{Join: -1, Program: -1}
	if s.join != nil {
		params = stageParams{Join: int32(s.join.Fd()), Program: int32(s.program.Fd())}
	}
	// MFD_EXEC says that it is meant, where sysctl vm.memfd_noexec wants to know; Linux before 6.3 knows it not.
	fd, err := unix.MemfdCreate("userns", unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate("userns", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, fmt.Errorf("create executable anonymous file: %w", explainExec(err))
	}
	f := os.NewFile(uintptr(fd), "userns")
	if _, err := f.Write(stageFile(unsafe.Slice((*byte)(code), codeSize), params, s.path)); err != nil {
		f.Close()
		return nil, fmt.Errorf("write program that joins user namespace: %w", err)
	}
	return f, nil
}

// stageFile lays out an ELF file of one segment (elf(5)).
func stageFile(code []byte, params stageParams, path string) []byte {
	size := uint64(paramsOffset+binary.Size(params)+len(path)) + 1
	header := elf.Header64{
		Ident: [elf.EI_NIDENT]byte{
			0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT),
		},
		Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Entry: stageAddress + codeOffset, Phoff: uint64(binary.Size(elf.Header64{})),
		Ehsize: uint16(binary.Size(elf.Header64{})), Phentsize: uint16(binary.Size(elf.Prog64{})), Phnum: 2,
	}
	segments := []elf.Prog64{
		{
			Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Vaddr: stageAddress, Paddr: stageAddress,
			Filesz: size, Memsz: size, Align: 0x1000,
		},
		{Type: uint32(elf.PT_GNU_STACK), Flags: uint32(elf.PF_R | elf.PF_W)}, // else it could be executed
	}
	var out bytes.Buffer
	put := func(offset int, v any) {
		out.Write(make([]byte, offset-out.Len()))
		_ = binary.Write(&out, binary.LittleEndian, v) // a Buffer takes all, and v has a fixed size
	}
	put(0, header)
	put(out.Len(), segments)
	put(codeOffset, code)
	put(failureOffset, []byte(failure))
	put(paramsOffset, params)
	put(out.Len(), append([]byte(path), 0))
	return out.Bytes()
}
