package slirp

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Theory of operation
//
// One goroutine, watchPorts, serves the sockets of all forwarded ports, which one epoll instance watches.
//
// That is level-triggered. What is ready gets a bounded number of system calls and then waits for its next
// turn, so that one busy port does not starve the others.
//
// A port whose socket fails, mostly because no descriptor is left for its client, is left alone for 100 ms instead of
// being ready all the time; the kernel keeps the clients waiting.
//
// Sending to a slow guest waits (package link), and all ports with it: there is only one guest.
//
// Descriptors are used bare: by watchPorts, and by the link's reader, which answers clients. They are closed when both
// have ended.

const (
	// acceptBudget and datagramBudget are how many clients and datagrams one port may have before others get their turn.
	acceptBudget   = 16
	datagramBudget = 32
	portPause      = 100 * time.Millisecond
	// portWarning is the least time between two warnings.
	portWarning = time.Minute
)

// portSet is the set of all forwarded ports.
type portSet struct {
	all   []*forward
	epoll epollFile

	// The rest belongs to watchPorts.
	paused []*forward
	warned time.Time
	reader datagramReader
}

// add begins to watch a port, and owns its socket from then on.
func (p *portSet) add(f *forward) error {
	err := p.epoll.open()
	if err == nil {
		f.index = int32(len(p.all))
		err = p.watch(unix.EPOLL_CTL_ADD, f, unix.EPOLLIN)
	}
	if err != nil {
		return errors.Join(err, unix.Close(f.fd))
	}
	p.all = append(p.all, f)
	return nil
}

// watch changes what is watched of a port.
func (p *portSet) watch(op int, f *forward, events uint32) error {
	return p.epoll.control(op, f.fd, f.index, events)
}

// stop ends watchPorts, without waiting.
func (p *portSet) stop() { p.epoll.close() }

// close closes the sockets, when nobody uses them any more.
func (p *portSet) close() {
	for _, f := range p.all {
		_ = unix.Close(f.fd)
	}
}

// wakePortsWhenUp makes watchPorts deliver what waits for the guest.
func (n *Network) wakePortsWhenUp() {
	select {
	case <-n.up:
		_ = n.ports.epoll.file.SetReadDeadline(time.Unix(1, 0)) // in the past
	case <-n.ctx.Done():
	}
}

// watchPorts serves all ports until the network ends.
func (n *Network) watchPorts() {
	p := &n.ports
	var events [64]unix.EpollEvent
	for {
		ready, err := p.epoll.wait(events[:])
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			n.portsWoken()
			continue
		case err != nil:
			return
		}
		for _, e := range events[:ready] {
			switch f := p.all[e.Fd]; f.proto {
			case TCP:
				n.acceptClients(f)
			case UDP:
				n.receiveClients(f)
			}
		}
	}
}

// portsWoken ends the pause of ports and delivers what came before the guest was up.
func (n *Network) portsWoken() {
	p := &n.ports
	_ = p.epoll.file.SetReadDeadline(time.Time{}) // before looking what there is to do: whoever wakes us now does so again
	for _, f := range p.paused {
		_ = p.watch(unix.EPOLL_CTL_MOD, f, unix.EPOLLIN)
	}
	p.paused = p.paused[:0]
	n.deliverEarly()
}

// pausePort leaves a port alone for a moment.
func (n *Network) pausePort(f *forward, err error) {
	p := &n.ports
	if now := time.Now(); now.Sub(p.warned) >= portWarning {
		p.warned = now
		n.log.Warn().Err(err).Stringer("proto", f.proto).Str("port", hostName(f.host)).
			Msg("clients of forwarded ports have to wait; if files are short, raise ulimit -n")
	}
	if p.watch(unix.EPOLL_CTL_MOD, f, 0) == nil {
		p.paused = append(p.paused, f)
		_ = p.epoll.file.SetReadDeadline(time.Now().Add(portPause))
	}
}
