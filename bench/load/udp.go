//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// UDP without loss: a flood would measure what the bridge drops, and a search for the highest rate without loss takes
// long and ends at the first hiccup. So the receiver acknowledges, and the sender never has more datagrams under way
// than a window: it is as fast as the slowest part of the path, and datagrams are lost only where that part's buffer
// is smaller than the window. Then the run tries a smaller one (run.go).
//
// The first byte of a datagram is its number modulo 256; there are no others in the smallest. Control messages are told
// from data by their lengths, which no payload has: hello opens the guest's way through the bridge, ack names the
// number of the last datagram seen, fin says how many were sent and is sent until it is answered by the same.
const (
	helloSize = 2
	ackSize   = 3
	finSize   = 9

	// maxWindow is such that numbers modulo 256 are not ambiguous, and that it fits into the kernel's default socket
	// buffer, which is 212,992 bytes and charged 2,304 for a datagram of 1,400.
	maxWindow = 64
	// lostAfter is how long a sender waits for an acknowledgement before it takes its whole window for lost. It is
	// 100 times a round trip.
	lostAfter = 50 * time.Millisecond
)

// udp is one end of a flow of datagrams. The listening end waits for the other's hello.
func (j *job) udp() (answer, error) {
	fd, err := j.udpSocket()
	if err != nil {
		return answer{}, err
	}
	defer unix.Close(fd)
	if err := setTimeout(fd, lostAfter); err != nil {
		return answer{}, err
	}
	if j.Send {
		return answer{}, j.udpSend(fd)
	}
	return j.udpReceive(fd)
}

// udpSocket returns a socket that is connected to the other end, which is there.
func (j *job) udpSocket() (int, error) {
	if j.Listen {
		return j.awaitHello()
	}
	fd, err := dial(unix.SOCK_DGRAM, j.Address)
	if err != nil {
		return -1, err
	}
	// Sent anew after each tick without an answer, which is a hello too, or the first data.
	b := make([]byte, 2048)
	for {
		if _, err = j.write(fd, b[:helloSize]); err != nil {
			break
		}
		_, errno := transferOnce(unix.SYS_READ, fd, b)
		if errno == 0 {
			return fd, nil
		}
		if err = j.again(errno); err != nil {
			break
		}
	}
	unix.Close(fd)
	return -1, fmt.Errorf("hello: %w", err)
}

// awaitHello connects a socket to where the first datagram came from.
func (j *job) awaitHello() (int, error) {
	fd, err := listen(unix.SOCK_DGRAM, j.Address)
	if err != nil {
		return -1, err
	}
	j.say(answer{Event: eventListening})
	b := make([]byte, helloSize)
	for err == nil {
		_, from, errRead := unix.Recvfrom(fd, b, 0)
		if errno, ok := errors.AsType[unix.Errno](errRead); ok {
			err = j.again(errno)
			continue
		}
		if err = unix.Connect(fd, from); err != nil {
			break
		}
		if _, err = j.write(fd, b); err == nil {
			return fd, nil
		}
	}
	unix.Close(fd)
	return -1, fmt.Errorf("wait for a hello: %w", err)
}

func (j *job) udpSend(fd int) error {
	data, in := make([]byte, j.Size), make([]byte, 2048)
	var sent, acked uint64 // datagrams; acked are those of which the fate is known
	for end := time.Now().Add(j.duration()); time.Now().Before(end); {
		for sent-acked < uint64(j.Window) {
			data[0] = byte(sent)
			if _, err := j.write(fd, data); err != nil {
				return err
			}
			sent++
		}
		n, errno := transferOnce(unix.SYS_READ, fd, in)
		switch {
		case errno == unix.EAGAIN:
			acked = sent
		case errno != 0 && errno != unix.EINTR:
			return os.NewSyscallError("read", errno)
		case errno == 0 && n == ackSize:
			// The number of datagrams after the acknowledged one, modulo 256.
			if later := uint64(byte(sent) - 1 - in[0]); later <= sent-acked {
				acked = sent - later
			}
		}
	}
	fin := make([]byte, finSize)
	binary.BigEndian.PutUint64(fin[1:], sent)
	for range 20 {
		if _, err := j.write(fd, fin); err != nil {
			return err
		}
		for {
			n, errno := transferOnce(unix.SYS_READ, fd, in)
			if errno != 0 {
				break
			}
			if n == finSize {
				return nil
			}
		}
	}
	return fmt.Errorf("no answer to the last message: %w", errDeadline)
}

func (j *job) udpReceive(fd int) (answer, error) {
	in, ack := make([]byte, 2048), make([]byte, ackSize)
	var (
		received int64
		unacked  int
		began    time.Time
	)
	for {
		n, err := j.read(fd, in)
		switch {
		case err != nil:
			return answer{Count: received}, fmt.Errorf("after %d datagrams: %w", received, err)
		case n == j.Size:
			if received == 0 {
				began = time.Now()
			}
			received++
			unacked++
			// Four acknowledgements for a window: the sender need not wait for the last.
			if unacked >= max(1, j.Window/4) {
				unacked = 0
				ack[0] = in[0]
				if _, err := j.write(fd, ack); err != nil {
					return answer{}, err
				}
			}
		case n == finSize:
			// Twice, for the answer may be lost; a third loss is a failure of the sender's.
			for range 2 {
				if _, err := j.write(fd, in[:finSize]); err != nil {
					return answer{}, err
				}
			}
			return answer{
				Count:   received,
				Sent:    int64(binary.BigEndian.Uint64(in[1:])),
				Seconds: time.Since(began).Seconds(),
			}, nil
		}
	}
}
