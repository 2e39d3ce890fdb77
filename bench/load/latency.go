//go:build linux

package main

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// ping sends a byte and waits for it to come back, over and over on one connection. It runs at the host's end, where
// reading the clock costs nothing.
func (j *job) ping() (answer, error) {
	fd, err := j.one()
	if err != nil {
		return answer{}, err
	}
	defer unix.Close(fd)
	// A round trip of 2 us would fill half of it in 2 s.
	trips := make([]time.Duration, 0, 2<<20)
	b := make([]byte, 1)
	began := time.Now()
	for before := began; before.Sub(began) < j.duration() && len(trips) < cap(trips); {
		if _, err := j.write(fd, b); err != nil {
			return answer{}, err
		}
		n, err := j.read(fd, b)
		if err == nil && n == 0 {
			err = errors.New("closed by the other end")
		}
		if err != nil {
			return answer{}, err
		}
		now := time.Now()
		trips = append(trips, now.Sub(before))
		before = now
	}
	slices.Sort(trips)
	return answer{
		Count:   int64(len(trips)),
		Seconds: time.Since(began).Seconds(),
		Median:  quantile(trips, 0.5).Seconds(),
		P99:     quantile(trips, 0.99).Seconds(),
	}, nil
}

// echo is the other end of ping.
func (j *job) echo() (answer, error) {
	fd, err := j.one()
	if err != nil {
		return answer{}, err
	}
	defer unix.Close(fd)
	return answer{}, j.echoOn(fd)
}

// echoOn sends back what it gets until the other end closes.
func (j *job) echoOn(fd int) error {
	b := make([]byte, 1)
	for {
		n, err := j.read(fd, b)
		if err != nil || n == 0 {
			return err
		}
		if _, err := j.write(fd, b); err != nil {
			return err
		}
	}
}

// one returns a connection that sends each byte at once.
func (j *job) one() (int, error) {
	conns, err := j.connections(1)
	if err != nil {
		return -1, err
	}
	return conns[0], unix.SetsockoptInt(conns[0], unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
}

// quantile of what is sorted.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// connect makes connections, one after the other in each of the given number of threads. A connection counts when a
// byte has gone there and come back on it: a bridge may accept it before it knows whether anybody is there. These
// sockets have no timeouts, which would be two more system calls for each: what hangs is for the run to notice.
func (j *job) connect() (answer, error) {
	var (
		count   atomic.Int64
		mu      sync.Mutex
		failure error
		wg      sync.WaitGroup
	)
	began := time.Now()
	end := began.Add(j.duration())
	for range j.Streams {
		wg.Go(func() {
			b := make([]byte, 1)
			for time.Now().Before(end) {
				if err := j.connectOnce(b); err != nil {
					mu.Lock()
					failure = err
					mu.Unlock()
					return
				}
				count.Add(1)
			}
		})
	}
	wg.Wait()
	return answer{Count: count.Load(), Seconds: time.Since(began).Seconds()}, failure
}

func (j *job) connectOnce(b []byte) error {
	fd, err := newSocket(unix.SOCK_STREAM)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := rawConnect(fd, j.Address); err != nil {
		return err
	}
	if _, err := j.write(fd, b); err != nil {
		return err
	}
	n, err := j.read(fd, b)
	if err == nil && n == 0 {
		err = errors.New("closed by the other end")
	}
	return err
}

// acceptAll is the other end of connect, until it is told to stop.
func (j *job) acceptAll() (answer, error) {
	listener, err := listen(unix.SOCK_STREAM, j.Address)
	if err != nil {
		return answer{}, err
	}
	defer unix.Close(listener)
	j.say(answer{Event: eventListening})
	var (
		count atomic.Int64
		wg    sync.WaitGroup
	)
	for range j.Streams {
		wg.Go(func() {
			for {
				fd, err := j.accept(listener)
				if err != nil {
					return
				}
				_ = j.echoOn(fd) // the other end counts
				unix.Close(fd)
				count.Add(1)
			}
		})
	}
	wg.Wait()
	return answer{Count: count.Load()}, nil
}
