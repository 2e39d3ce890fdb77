//go:build linux

package main

import (
	"errors"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// blockSize is what a stream reads or writes at once: iperf3's.
const blockSize = 128 << 10

// warmUp is left out of the figures of a stream: passt's window at MTU 1500 takes 1.5 s to open.
const warmUp = 2 * time.Second

// stream moves data over TCP, one way, in one or more connections, for warmUp and then the given time, in which the
// receiver's bytes count. It ends with the receiver closing, or with the sender's patience.
func (j *job) stream() (answer, error) {
	j.deadline = j.deadline.Add(warmUp)
	conns, err := j.connections(j.Streams)
	if err != nil {
		return answer{}, err
	}
	var (
		mu      sync.Mutex
		a       answer
		failure error
		wg      sync.WaitGroup
	)
	warm := time.Now().Add(warmUp)
	for _, fd := range conns {
		wg.Go(func() {
			defer unix.Close(fd)
			var first, rate float64
			var err error
			if j.Send {
				err = j.send(fd)
			} else {
				first, rate, err = j.receive(fd, warm)
			}
			mu.Lock()
			defer mu.Unlock()
			a.FirstRate += first
			a.Rate += rate
			if err != nil {
				failure = err
			}
		})
	}
	wg.Wait()
	return a, failure
}

// connections returns n connected sockets, accepted or dialled.
func (j *job) connections(n int) (conns []int, err error) {
	defer func() {
		if err != nil {
			for _, fd := range conns {
				unix.Close(fd)
			}
		}
	}()
	if !j.Listen {
		for range n {
			fd, err := dial(unix.SOCK_STREAM, j.Address)
			if err != nil {
				return conns, err
			}
			conns = append(conns, fd)
		}
		return conns, nil
	}
	listener, err := listen(unix.SOCK_STREAM, j.Address)
	if err != nil {
		return nil, err
	}
	defer unix.Close(listener)
	j.say(answer{Event: eventListening})
	for range n {
		fd, err := j.accept(listener)
		if err != nil {
			return conns, err
		}
		conns = append(conns, fd)
	}
	return conns, nil
}

// send writes until the other end has had enough.
func (j *job) send(fd int) error {
	block := make([]byte, blockSize)
	for {
		_, err := j.write(fd, block)
		switch {
		case errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE), errors.Is(err, errDeadline):
			return nil
		case err != nil:
			return err
		}
	}
}

// clockEvery is how many blocks are read between two looks at the clock, which is a system call in the guest.
const clockEvery = 8

// receive reads until the time is over. It returns bytes per second, those of the warm-up apart.
func (j *job) receive(fd int, warm time.Time) (first, rate float64, err error) {
	block := make([]byte, blockSize)
	from, until, total := time.Now(), warm, 0
	for i := 0; ; i++ {
		n, errno := transferOnce(unix.SYS_READ, fd, block)
		switch {
		case errno == unix.EAGAIN || errno == unix.EINTR:
			i = 0 // it took long: to the clock
		case errno != 0:
			return first, rate, os.NewSyscallError("read", errno)
		case n == 0:
			return first, rate, errors.New("closed by the other end")
		}
		total += max(0, n)
		if i%clockEvery != 0 {
			continue
		}
		now := time.Now()
		if now.Before(until) {
			continue
		}
		rate = float64(total) / now.Sub(from).Seconds()
		if until != warm {
			return first, rate, nil
		}
		first, from, until, total = rate, now, now.Add(j.duration()), 0
	}
}
