// Package mconsole talks to the management console of a User-Mode Linux kernel.
//
// The console is a pair of Unix datagram sockets. The kernel listens on one, <uml_dir>/<umid>/mconsole: a Client
// sends it a command and collects the replies. The other one, which the command line names as
// mconsole=notify:<path>, belongs to us: the kernel sends Notifications there, of its boot, of a panic, and of
// what the guest's root writes to /proc/mconsole. The protocol is that of arch/um/drivers/mconsole.h, version 2;
// numbers are in the byte order of the machine, since both ends run on it.
//
// Everything that arrives comes from the guest and is not to be trusted: text may hold any byte.
package mconsole

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// Constants of arch/um/drivers/mconsole.h.
const (
	magic   = 0xcafebabe
	version = 2
	maxData = 512 // bytes of data in a datagram
)

// Sizes in bytes of the headers before the data.
const (
	requestHeader      = 12 // magic, version, len
	replyHeader        = 12 // err, more, len
	notificationHeader = 16 // magic, version, type, len

	// maxDatagram is the longest datagram of the protocol in bytes.
	maxDatagram = notificationHeader + maxData
)

// MaxCommand is the longest command in bytes: the kernel wants room for a NUL.
const MaxCommand = maxData - 1

// errMalformed is what all decoders return: who sends such things gets no better explanation.
var errMalformed = errors.New("malformed mconsole datagram")

var order = binary.NativeEndian

// Request is the datagram that carries a command to the kernel.
type Request struct {
	Command string
}

// MarshalBinary fails when the command is longer than MaxCommand, empty or holds a NUL.
func (r Request) MarshalBinary() ([]byte, error) {
	switch {
	case r.Command == "":
		return nil, errors.New("empty mconsole command")
	case len(r.Command) > MaxCommand:
		return nil, fmt.Errorf("mconsole command of %d bytes is longer than %d", len(r.Command), MaxCommand)
	case bytes.IndexByte([]byte(r.Command), 0) >= 0:
		return nil, errors.New("mconsole command holds a NUL byte")
	}
	b := order.AppendUint32(nil, magic)
	b = order.AppendUint32(b, version)
	b = order.AppendUint32(b, uint32(len(r.Command)))
	return append(b, r.Command...), nil
}

// UnmarshalBinary is the kernel's side, for tests with a fake kernel.
func (r *Request) UnmarshalBinary(b []byte) error {
	if len(b) < requestHeader || order.Uint32(b) != magic || order.Uint32(b[4:]) != version {
		return errMalformed
	}
	data, err := payload(b[requestHeader:], order.Uint32(b[8:]))
	if err != nil {
		return err
	}
	if len(data) == 0 || len(data) > MaxCommand || bytes.IndexByte(data, 0) >= 0 {
		return errMalformed
	}
	r.Command = string(data)
	return nil
}

// Reply is one datagram of the kernel's answer.
type Reply struct {
	// Code is 0 for success. Otherwise it is 1 or a negative errno, and only the answer's first datagram has it.
	Code int32
	// More says that the answer goes on in another datagram.
	More bool
	Text string
}

// MarshalBinary is the kernel's side, for tests with a fake kernel. It fails when the text is too long for one
// datagram.
func (r Reply) MarshalBinary() ([]byte, error) {
	if len(r.Text) > maxData-1 {
		return nil, fmt.Errorf("mconsole reply of %d bytes is longer than %d", len(r.Text), maxData-1)
	}
	more := uint32(0)
	if r.More {
		more = 1
	}
	b := order.AppendUint32(nil, uint32(r.Code))
	b = order.AppendUint32(b, more)
	b = order.AppendUint32(b, uint32(len(r.Text)+1))
	return append(append(b, r.Text...), 0), nil
}

// UnmarshalBinary drops the NUL that the kernel counts in.
func (r *Reply) UnmarshalBinary(b []byte) error {
	if len(b) < replyHeader {
		return errMalformed
	}
	data, err := payload(b[replyHeader:], order.Uint32(b[8:]))
	if err != nil {
		return err
	}
	*r = Reply{Code: int32(order.Uint32(b)), More: order.Uint32(b[4:]) != 0, Text: text(data)}
	return nil
}

// Kind is what a Notification is about.
type Kind uint32

const (
	// Socket is sent once, when the console can be used; Data is the path of its socket.
	Socket Kind = iota
	// Panic is sent when the kernel panics, before anything else happens; Data is the reason.
	Panic
	// Hang is sent by the hardware watchdog.
	Hang
	// UserNotify is what the guest's root wrote to /proc/mconsole, the first 512 bytes of it.
	UserNotify
)

// String is a word for a log.
func (k Kind) String() string {
	switch k {
	case Socket:
		return "socket"
	case Panic:
		return "panic"
	case Hang:
		return "hang"
	case UserNotify:
		return "user"
	}
	return fmt.Sprintf("kind %d", uint32(k))
}

// Notification is what the kernel says unasked.
type Notification struct {
	Kind Kind
	Data string
}

// MarshalBinary is the kernel's side, for tests with a fake kernel. Data that is too long is cut, as there.
func (n Notification) MarshalBinary() ([]byte, error) {
	data := n.Data
	if n.Kind != UserNotify {
		data += "\x00"
	}
	data = data[:min(len(data), maxData)]
	b := order.AppendUint32(nil, magic)
	b = order.AppendUint32(b, version)
	b = order.AppendUint32(b, uint32(n.Kind))
	b = order.AppendUint32(b, uint32(len(data)))
	return append(b, data...), nil
}

// UnmarshalBinary takes kinds that it does not know as well.
func (n *Notification) UnmarshalBinary(b []byte) error {
	if len(b) < notificationHeader || order.Uint32(b) != magic || order.Uint32(b[4:]) != version {
		return errMalformed
	}
	data, err := payload(b[notificationHeader:], order.Uint32(b[12:]))
	if err != nil {
		return err
	}
	*n = Notification{Kind: Kind(order.Uint32(b[8:])), Data: text(data)}
	return nil
}

// payload takes length bytes off data; senders may pad the datagram to its full size.
func payload(data []byte, length uint32) ([]byte, error) {
	if length > maxData || int(length) > len(data) {
		return nil, errMalformed
	}
	return data[:length], nil
}

// text is data without the NUL bytes at its end.
func text(data []byte) string {
	return string(bytes.TrimRight(data, "\x00"))
}
