// Package vhostusertest is the other end of package vhostuser for tests: a vhost-user front end as UML's, with memory of
// its own and the driver's side of its rings.
package vhostusertest

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"docker-usermode-linux/internal/vhostuser"
	"docker-usermode-linux/internal/vhostuser/truncate"
)

// Base is where the memory begins in the guest's address space: not at 0, as with UML.
const Base = 1 << 20

// FrontEnd is a front end whose "guest memory" is a memfd. It sends what UML's driver sends, in its order
// (arch/um/drivers/virtio_uml.c); its call descriptors are sockets.
type FrontEnd struct {
	// Conn is the connection to the device. Its end is the end of the device.
	Conn *net.UnixConn
	// Mem is the memory, which is also the guest's from Base on. The rings come first, RingBytes each.
	Mem []byte
	// Rings of the device, by index.
	Rings []*Ring
	// Features that both ends have.
	Features uint64

	file *os.File
}

// Connect connects to the device's socket, accepts those of its features (and VERSION_1, and the protocol's), and shares
// so many bytes of memory with it. The rings can be filled then, before Start.
func Connect(path string, features uint64, rings, bytes int) (*FrontEnd, error) {
	f := &FrontEnd{}
	for range rings {
		f.Rings = append(f.Rings, &Ring{kick: -1})
	}
	if err := f.connect(path, features, bytes); err != nil {
		f.HangUp()
		f.Free()
		return nil, err
	}
	return f, nil
}

func (f *FrontEnd) connect(path string, features uint64, bytes int) (err error) {
	if f.Conn, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"}); err != nil {
		return err
	}
	fd, err := unix.MemfdCreate("fake guest", unix.MFD_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("memfd_create", err)
	}
	f.file = os.NewFile(uintptr(fd), "fake guest's memory")
	if err := f.file.Truncate(int64(bytes)); err != nil {
		return err
	}
	if f.Mem, err = unix.Mmap(fd, 0, bytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return os.NewSyscallError("mmap", err)
	}
	if err := f.Tell(vhostuser.SetOwner, nil); err != nil {
		return err
	}
	offered, err := f.askU64(vhostuser.GetFeatures)
	if err != nil {
		return err
	}
	f.Features = offered & (features | vhostuser.FeatureProtocol | vhostuser.FeatureVersion1)
	protocol, err := f.askU64(vhostuser.GetProtocolFeatures)
	if err != nil {
		return err
	}
	if err := f.Tell(vhostuser.SetProtocolFeatures, Words(protocol&vhostuser.ProtocolConfig)); err != nil {
		return err
	}
	if err := f.Tell(vhostuser.SetFeatures, Words(f.Features)); err != nil {
		return err
	}
	for i, r := range f.Rings {
		r.mem = f.Mem[i*RingBytes:]
		r.eventIdx = f.Features&vhostuser.FeatureEventIdx != 0
		if r.kick, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
			return os.NewSyscallError("eventfd", err)
		}
	}
	return f.Share()
}

// Share shares the memory with the device. That can be done again while no queue runs.
func (f *FrontEnd) Share() error {
	return f.Tell(vhostuser.SetMemTable, Words(1, Base, uint64(len(f.Mem)), Base, 0), int(f.file.Fd()))
}

// Start starts the device's queues. When it returns they run.
func (f *FrontEnd) Start() error {
	for i, r := range f.Rings {
		if err := f.setUp(uint32(i), r); err != nil {
			return err
		}
	}
	for i, r := range f.Rings {
		if err := f.Tell(vhostuser.SetVringKick, Words(uint64(i)), r.kick); err != nil {
			return err
		}
		if err := f.Tell(vhostuser.SetVringEnable, state(uint32(i), 1)); err != nil {
			return err
		}
	}
	_, err := f.askU64(vhostuser.GetFeatures) // answered when all before has been done
	return err
}

// setUp tells the device about a queue.
func (f *FrontEnd) setUp(index uint32, r *Ring) error {
	call, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return os.NewSyscallError("socketpair", err)
	}
	defer unix.Close(call[1])
	r.calls = os.NewFile(uintptr(call[0]), fmt.Sprintf("calls of queue %d", index))
	if err := f.Tell(vhostuser.SetVringCall, Words(uint64(index)), call[1]); err != nil {
		return err
	}
	if err := f.Tell(vhostuser.SetVringNum, state(index, Entries)); err != nil {
		return err
	}
	if err := f.Tell(vhostuser.SetVringBase, state(index, 0)); err != nil {
		return err
	}
	at := Base + uint64(index)*RingBytes
	return f.Tell(vhostuser.SetVringAddr, append(state(index, 0), Words(at, at+usedStart, at+availStart, 0)...))
}

// Config reads the device's configuration space from its beginning.
func (f *FrontEnd) Config(bytes int) ([]byte, error) {
	const header = 12
	ask := append(state(0, uint32(bytes)), make([]byte, header-8+bytes)...)
	reply, err := f.ask(vhostuser.GetConfig, ask)
	if err == nil && len(reply) != len(ask) {
		err = fmt.Errorf("%d bytes of configuration, want %d", len(reply), len(ask))
	}
	if err != nil {
		return nil, err
	}
	return reply[header:], nil
}

// Tell sends a message that has no answer.
func (f *FrontEnd) Tell(r vhostuser.Request, payload []byte, fds ...int) error {
	return vhostuser.Send(f.Conn, vhostuser.Message{Request: r, Payload: payload, FDs: fds})
}

func (f *FrontEnd) ask(r vhostuser.Request, payload []byte) ([]byte, error) {
	if err := f.Tell(r, payload); err != nil {
		return nil, err
	}
	m, err := vhostuser.Receive(f.Conn)
	if err != nil {
		return nil, err
	}
	if !m.Reply || m.Request != r {
		return nil, fmt.Errorf("answer to %d is %+v", r, m)
	}
	return m.Payload, nil
}

func (f *FrontEnd) askU64(r vhostuser.Request) (uint64, error) {
	b, err := f.ask(r, nil)
	if err == nil && len(b) != 8 {
		err = fmt.Errorf("answer to %d has %d bytes", r, len(b))
	}
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b), nil
}

// Words is a payload of 64-bit numbers.
func Words(v ...uint64) (b []byte) {
	for _, v := range v {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

// state is a payload of two 32-bit numbers.
func state(index, num uint32) []byte { return Words(uint64(num)<<32 | uint64(index)) }

// Truncate takes the memory away, as a malicious front end could. From then on neither may it be used here, but for
// kicks.
func (f *FrontEnd) Truncate() error { return truncate.File(f.file) }

// HangUp closes the connection, and ends whoever waits for a call.
func (f *FrontEnd) HangUp() {
	if f.Conn != nil {
		_ = f.Conn.Close()
	}
	for _, r := range f.Rings {
		_ = r.calls.Close() // nil is fine
	}
}

// Free gives everything back. Nothing of it may be in use any more.
func (f *FrontEnd) Free() {
	for _, r := range f.Rings {
		if r.kick >= 0 {
			_ = unix.Close(r.kick)
			r.kick = -1
		}
	}
	_ = f.file.Close() // nil is fine
	if f.Mem != nil {
		_ = unix.Munmap(f.Mem)
		f.Mem = nil
	}
}
