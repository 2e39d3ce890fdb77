package boot

import (
	"fmt"
	"io"
	"os"

	"github.com/cavaliergopher/cpio"
	"golang.org/x/sys/unix"
)

// Initramfs returns an anonymous file with what the kernel unpacks at boot: base, the archive that holds the
// guest binary, followed by one with the settings. Archives in the cpio "newc" format may simply follow one
// another (Linux Documentation/driver-api/early-userspace/buffer-format.rst).
func Initramfs(base string, s Settings) (*os.File, error) {
	in, err := os.Open(base)
	if err != nil {
		return nil, fmt.Errorf("read initramfs: %w", err)
	}
	defer in.Close()
	fd, err := unix.MemfdCreate("initramfs", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create initramfs: %w", err)
	}
	out := os.NewFile(uintptr(fd), "initramfs")
	if err := writeInitramfs(out, in, s); err != nil {
		out.Close()
		return nil, fmt.Errorf("write initramfs: %w", err)
	}
	return out, nil
}

func writeInitramfs(out io.Writer, base io.Reader, s Settings) error {
	n, err := io.Copy(out, base)
	if err != nil {
		return err
	}
	// An archive starts at a multiple of four bytes.
	if _, err := out.Write(make([]byte, -n&3)); err != nil {
		return err
	}
	data, err := s.Marshal()
	if err != nil {
		return err
	}
	archive := cpio.NewWriter(out)
	if err := archive.WriteHeader(&cpio.Header{
		Name: SettingsPath[1:],
		Mode: cpio.TypeReg | 0o600,
		Size: int64(len(data)),
	}); err != nil {
		return err
	}
	if _, err := archive.Write(data); err != nil {
		return err
	}
	return archive.Close()
}
