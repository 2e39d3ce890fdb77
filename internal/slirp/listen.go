package slirp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Theory of operation
//
// A forwarded port is one socket of the host and a few words of memory: no goroutine, no buffer, no entry in Go's
// poller. Ten thousand of them are bound in a fraction of a second, and cost a process some 2 MiB
// (BenchmarkBind10000). All are bound or none is, and what fails is said at once for all of them, one line per run of
// ports with the same reason.
//
// Package net is not used here because each of its listeners is a handful of objects and an accepting goroutine.

// forward is one forwarded port.
type forward struct {
	proto   Proto
	guest   uint16
	index   int32 // in portSet.all
	fd      int
	host    netip.AddrPort // as in Forward
	clients atomic.Uint64  // so far
	served  atomic.Bool    // the guest has accepted a client
	live    atomic.Int64   // clients that are connected, wait for the guest or have a UDP flow
	// crossed says until when (ns since 1970) clients of IPv4 and those of IPv6 are led to the guest's other family. It is 0
	// when the last one was accepted by its own, and crossedOnce after one that was not.
	crossed [2]atomic.Int64
}

// maxBacklog is how many clients a port may have that were not accepted yet. The kernel lowers it to
// net.core.somaxconn.
const maxBacklog = 1<<16 - 1

// spareFiles is what the bridge needs besides the ports, in descriptors: clients and servers, the guest's disks.
const spareFiles = 1024

// bindForwards opens all sockets. The error has one line for each run of ports that failed.
func (n *Network) bindForwards(forwards []Forward) error {
	var failures []bindFailure
	total := 0
	for _, f := range forwards {
		total += max(f.Count, 1)
		failures = append(failures, n.bindRun(f)...)
	}
	if len(failures) == 0 {
		return nil
	}
	n.ports.stop()
	n.ports.close() // all of them, before descriptors are needed to look for reasons
	return bindErrors(failures, n.ports.all, total)
}

// bindRun binds the ports of a run and returns those that failed and should not have.
func (n *Network) bindRun(run Forward) []bindFailure {
	count := max(run.Count, 1)
	if last := count - 1; int(run.Host.Port())+last > 0xffff || int(run.Guest)+last > 0xffff {
		return []bindFailure{{run: run, err: errPortRange}}
	}
	var failures []bindFailure
	for i := range count {
		f := &forward{
			proto: run.Proto,
			guest: run.Guest + uint16(i),
			host:  netip.AddrPortFrom(run.Host.Addr(), run.Host.Port()+uint16(i)),
		}
		err := f.listen()
		if err == nil {
			err = n.ports.add(f)
		}
		if err != nil {
			failures = append(failures, bindFailure{run: run, offset: i, err: err})
		}
	}
	if run.BestEffort && len(failures) < count {
		n.log.Debug().Stringer("proto", run.Proto).Int("ports", count-len(failures)).Int("left_out", len(failures)).
			Msg("forwarded what is free")
		failures = slices.DeleteFunc(failures, func(b bindFailure) bool {
			return errors.Is(b.err, unix.EADDRINUSE) || errors.Is(b.err, unix.EACCES)
		})
	}
	return failures
}

// listen opens the socket.
func (f *forward) listen() error {
	addr := f.host.Addr().Unmap()
	if addr.IsValid() {
		// 0.0.0.0 and [::] are one family each, as for docker run -p.
		return f.listenOn(addr, 1)
	}
	// No address is the IPv6 wildcard that takes IPv4 as well, or the IPv4 one where there is no IPv6.
	err := f.listenOn(netip.IPv6Unspecified(), 0)
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL) {
		err = f.listenOn(netip.IPv4Unspecified(), 0)
	}
	return err
}

func (f *forward) listenOn(addr netip.Addr, v6only int) error {
	family, kind := unix.AF_INET, 0
	if addr.Is6() {
		family = unix.AF_INET6
	}
	switch f.proto {
	case TCP:
		kind = unix.SOCK_STREAM
	case UDP:
		kind = unix.SOCK_DGRAM
	default:
		return errors.New("only tcp and udp ports can be forwarded")
	}
	name, err := sockaddr(netip.AddrPortFrom(addr, f.host.Port()))
	if err != nil {
		return err
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if family == unix.AF_INET6 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, v6only)
	}
	if err == nil && f.proto == TCP {
		// Connections of the last run that are in TIME-WAIT must not block the port.
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	if err == nil && f.proto == TCP {
		err = setHostOptions(fd) // for its clients, who inherit them
	}
	if err == nil && f.proto == UDP {
		err = askPktInfo(fd, family)
	}
	if err == nil {
		err = unix.Bind(fd, name)
	}
	if err == nil && f.proto == TCP {
		err = unix.Listen(fd, maxBacklog)
	}
	if err != nil {
		_ = unix.Close(fd)
		return err
	}
	f.fd = fd
	return nil
}

// sockaddr is an address for the kernel.
func sockaddr(a netip.AddrPort) (unix.Sockaddr, error) {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}, nil
	}
	sa := &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	if zone := a.Addr().Zone(); zone != "" {
		i, err := net.InterfaceByName(zone)
		if err != nil {
			return nil, fmt.Errorf("the address's zone %q is no network interface: %w", zone, err)
		}
		sa.ZoneId = uint32(i.Index)
	}
	return sa, nil
}

const crossedOnce = 1

// crossedNow says whether clients of a family are led to the guest's other one at the moment.
func (f *forward) crossedNow(family int, now time.Time) bool {
	return now.UnixNano() < f.crossed[family].Load()
}

var errPortRange = errors.New("the run goes beyond port 65535")

// ListenError says why a run of ports could not be bound. New's error joins one for each run.
type ListenError struct {
	Proto Proto
	Host  netip.AddrPort // as in Forward, with the first port that failed
	Last  uint16         // the last one
	Taken bool           // another program, or another forward, has them
	why   string
}

// Error names the ports and the reason.
func (e *ListenError) Error() string {
	ports := hostName(e.Host)
	if e.Last != e.Host.Port() {
		ports = fmt.Sprintf("%s-%d", ports, e.Last)
	}
	return fmt.Sprintf("listen on %s %s: %s", e.Proto, ports, e.why)
}

// bindFailure is a port that could not be bound.
type bindFailure struct {
	run    Forward
	offset int
	err    error
}

func (b bindFailure) host() netip.AddrPort {
	return netip.AddrPortFrom(b.run.Host.Addr(), b.run.Host.Port()+uint16(b.offset))
}

// bindErrors makes one line for each run of failures with the same reason. bound are our own ports, total is how many
// there should have been.
func bindErrors(failures []bindFailure, bound []*forward, total int) error {
	holders := findHolders("/proc", failures, bound)
	var errs []error
	for i := 0; i < len(failures); {
		first, why := failures[i], failures[i].reason(holders, total)
		last := first
		for i++; i < len(failures); i++ {
			next := failures[i]
			if next.run != first.run || next.offset != last.offset+1 || next.reason(holders, total) != why {
				break
			}
			last = next
		}
		errs = append(errs, &ListenError{
			Proto: first.run.Proto,
			Host:  first.host(),
			Last:  last.host().Port(),
			Taken: errors.Is(first.err, unix.EADDRINUSE),
			why:   why,
		})
	}
	return errors.Join(errs...)
}

// reason says why the port could not be bound, and what mends it.
func (b bindFailure) reason(holders portHolders, total int) string {
	host := b.host()
	errno, _ := errors.AsType[syscall.Errno](b.err)
	switch {
	case errno == unix.EADDRINUSE:
		return "already taken by " + holders.of(b.run.Proto, host)
	case errno == unix.EACCES && host.Port() < 1024:
		return "permission denied: a port below net.ipv4.ip_unprivileged_port_start, mostly 1024, needs the capability " +
			"CAP_NET_BIND_SERVICE or a lower value of that sysctl"
	case errno == unix.EADDRNOTAVAIL:
		return fmt.Sprintf("%s is not one of this host's addresses", host.Addr())
	case errno == unix.EAFNOSUPPORT:
		return "this host has no IPv6"
	case errno == unix.EMFILE:
		var limit unix.Rlimit
		_ = unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
		return fmt.Sprintf("too many open files: the limit is %d, raise it (ulimit -n) to %d at least",
			limit.Cur, total+spareFiles)
	case errno == unix.ENOSPC:
		return "too many ports are watched: raise the sysctl fs.epoll.max_user_watches"
	}
	return b.err.Error()
}

// hostName is the name of a listening address in messages.
func hostName(a netip.AddrPort) string {
	if !a.Addr().IsValid() {
		return fmt.Sprintf("*:%d", a.Port())
	}
	return a.String()
}

// overlap says whether two listening addresses may exclude one another.
func overlap(a, b netip.AddrPort) bool {
	wild := func(a netip.Addr) bool { return !a.IsValid() || a.IsUnspecified() }
	return a.Port() == b.Port() && (wild(a.Addr()) || wild(b.Addr()) || a.Addr().Unmap() == b.Addr().Unmap())
}
