package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"

	"docker-usermode-linux/internal/scmrights"
)

// Request is the type of a message from the front end (QEMU, docs/interop/vhost-user.rst, "Front-end message types").
type Request uint32

// The requests that a back end without live migration has to know.
const (
	GetFeatures         Request = 1
	SetFeatures         Request = 2
	SetOwner            Request = 3
	ResetOwner          Request = 4
	SetMemTable         Request = 5
	SetVringNum         Request = 8
	SetVringAddr        Request = 9
	SetVringBase        Request = 10
	GetVringBase        Request = 11
	SetVringKick        Request = 12
	SetVringCall        Request = 13
	SetVringErr         Request = 14
	GetProtocolFeatures Request = 15
	SetProtocolFeatures Request = 16
	SetVringEnable      Request = 18
	SetBackendRequestFD Request = 21
	GetConfig           Request = 24
	SetConfig           Request = 25
)

// Feature bits, of the virtio device and of the protocol.
const (
	// FeatureProtocol says that the protocol has features of its own.
	FeatureProtocol = 1 << 30
	// ProtocolConfig is the protocol feature of GetConfig and SetConfig.
	ProtocolConfig = 1 << 9
	// ProtocolBackendRequest is the protocol feature of SetBackendRequestFD: requests by the back end.
	ProtocolBackendRequest = 1 << 5
)

const (
	headerBytes = 12
	// maxPayload is more than any message here: a memory table of 8 regions has 264 bytes, a configuration space 268.
	maxPayload = 4096

	version     = 1
	versionMask = 3
	flagReply   = 1 << 2

	// vringIndexMask and vringNoFD are the parts of the payload of SetVringKick and SetVringCall.
	vringIndexMask = 0xff
	vringNoFD      = 1 << 8

	configHeaderBytes = 12
	// maxConfig is the size of the largest configuration space (VHOST_USER_MAX_CONFIG_SIZE).
	maxConfig = 256
)

// Message is one message of the protocol, in either direction. The receiver owns FDs.
type Message struct {
	Request Request
	Reply   bool
	Payload []byte
	FDs     []int
}

// closeFDs closes the descriptors that nobody took.
func (m *Message) closeFDs() {
	for _, fd := range m.FDs {
		_ = unix.Close(fd)
	}
	m.FDs = nil
}

// takeFD takes the message's only descriptor.
func (m *Message) takeFD() (int, error) {
	if len(m.FDs) != 1 {
		return -1, fmt.Errorf("%d descriptors, want one", len(m.FDs))
	}
	fd := m.FDs[0]
	m.FDs = nil
	return fd, nil
}

var errShort = errors.New("payload is too short")

// u64 is the payload of most messages.
func (m *Message) u64() (uint64, error) {
	if len(m.Payload) < 8 {
		return 0, errShort
	}
	return binary.LittleEndian.Uint64(m.Payload), nil
}

// vring is the payload of messages about the state of a ring.
func (m *Message) vring() (index, num uint32, err error) {
	if len(m.Payload) < 8 {
		return 0, 0, errShort
	}
	return binary.LittleEndian.Uint32(m.Payload), binary.LittleEndian.Uint32(m.Payload[4:]), nil
}

// Receive reads one message. Descriptors come with its first byte.
func Receive(conn *net.UnixConn) (Message, error) {
	var hdr [headerBytes]byte
	var oob [256]byte // of 8 descriptors: 48 bytes
	n, oobn, _, _, err := conn.ReadMsgUnix(hdr[:], oob[:])
	if err != nil {
		return Message{}, err
	}
	var m Message
	if m.FDs, err = scmrights.Parse(oob[:oobn]); err != nil {
		return Message{}, err
	}
	if err = readFull(conn, hdr[n:]); err == nil {
		err = m.parseHeader(hdr)
	}
	if err == nil {
		err = readFull(conn, m.Payload)
	}
	if err != nil {
		m.closeFDs()
		return Message{}, err
	}
	return m, nil
}

// parseHeader makes room for the payload.
func (m *Message) parseHeader(hdr [headerBytes]byte) error {
	m.Request = Request(binary.LittleEndian.Uint32(hdr[0:]))
	flags := binary.LittleEndian.Uint32(hdr[4:])
	size := binary.LittleEndian.Uint32(hdr[8:])
	if flags&versionMask != version {
		return fmt.Errorf("vhost-user message %d: version %d is unknown", m.Request, flags&versionMask)
	}
	if size > maxPayload {
		return fmt.Errorf("vhost-user message %d: %d bytes are too long", m.Request, size)
	}
	m.Reply = flags&flagReply != 0
	m.Payload = make([]byte, size)
	return nil
}

func readFull(conn *net.UnixConn, b []byte) error {
	for len(b) > 0 {
		n, err := conn.Read(b)
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// Send writes one message. The descriptors stay the caller's.
func Send(conn *net.UnixConn, m Message) error {
	b := make([]byte, headerBytes, headerBytes+len(m.Payload))
	flags := uint32(version)
	if m.Reply {
		flags |= flagReply
	}
	binary.LittleEndian.PutUint32(b[0:], uint32(m.Request))
	binary.LittleEndian.PutUint32(b[4:], flags)
	binary.LittleEndian.PutUint32(b[8:], uint32(len(m.Payload)))
	b = append(b, m.Payload...)
	var oob []byte
	if len(m.FDs) > 0 {
		oob = unix.UnixRights(m.FDs...)
	}
	_, _, err := conn.WriteMsgUnix(b, oob, nil)
	return err
}
