package slirp

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Theory of operation
//
// Who has taken a port? /proc/net/{tcp,tcp6,udp,udp6} lists the sockets of our network name space with their inodes,
// and /proc/PID/fd those of the processes that we may look into. Of the others, such as Docker's own proxy outside of
// the container, only the socket is seen. All this is only done to explain an error.

// portHolders are sockets by port.
type portHolders map[protoPort][]portHolder

type protoPort struct {
	proto Proto
	port  uint16
}

// portHolder is who has taken an address.
type portHolder struct {
	procSocket
	name string // empty where it cannot be seen
}

// procSocket is a line of /proc/net/tcp and the like.
type procSocket struct {
	local netip.AddrPort
	state uint64
	inode uint64
}

// procListen is the state TCP_LISTEN.
const procListen = 10

// findHolders returns who has taken the failed ports: other programs, or bound, which are our own.
func findHolders(proc string, failures []bindFailure, bound []*forward) portHolders {
	holders := make(portHolders)
	for _, f := range failures {
		if errors.Is(f.err, unix.EADDRINUSE) {
			holders[protoPort{f.run.Proto, f.host().Port()}] = nil
		}
	}
	if len(holders) == 0 {
		return nil
	}
	add := func(proto Proto, h portHolder) {
		key := protoPort{proto, h.local.Port()}
		if known, wanted := holders[key]; wanted {
			holders[key] = append(known, h)
		}
	}
	for _, f := range bound {
		add(f.proto, portHolder{
			procSocket: procSocket{local: f.host, state: procListen},
			name:       fmt.Sprintf("the forward of %s to the guest's port %d", hostName(f.host), f.guest),
		})
	}
	for _, table := range []struct {
		name  string
		proto Proto
	}{{"tcp", TCP}, {"tcp6", TCP}, {"udp", UDP}, {"udp6", UDP}} {
		file, err := os.Open(filepath.Join(proc, "net", table.name))
		if err != nil {
			continue // no IPv6, or no /proc
		}
		for lines := bufio.NewScanner(file); lines.Scan(); {
			if s, ok := parseProcSocket(lines.Text()); ok {
				add(table.proto, portHolder{procSocket: s})
			}
		}
		_ = file.Close()
	}
	holders.namePrograms(proc)
	return holders
}

// of names who has taken an address.
func (h portHolders) of(proto Proto, host netip.AddrPort) string {
	best := portHolder{name: "another program of this container"}
	for _, s := range h[protoPort{proto, host.Port()}] {
		if s.name != "" && overlap(s.local, host) && best.state != procListen {
			best = s
		}
	}
	return best.name
}

// parseProcSocket reads a line such as
//
//	0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12345 1 …
//
// (proc_pid_net(5)): local and remote address, state, queues, timer, retransmissions, user, time-out, inode.
func parseProcSocket(line string) (procSocket, bool) {
	fields := strings.Fields(line)
	if len(fields) < 10 {
		return procSocket{}, false
	}
	local, ok := parseProcAddr(fields[1])
	state, err := strconv.ParseUint(fields[3], 16, 8)
	inode, err2 := strconv.ParseUint(fields[9], 10, 64)
	return procSocket{local, state, inode}, ok && err == nil && err2 == nil
}

// parseProcAddr reads an address and port in hexadecimal. The address is printed as words of the host's byte order.
func parseProcAddr(s string) (netip.AddrPort, bool) {
	words, port, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(words)
	p, err2 := strconv.ParseUint(port, 16, 16)
	if err != nil || err2 != nil || len(b) != 4 && len(b) != 16 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	addr, _ := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(addr.Unmap(), uint16(p)), true
}

// namePrograms fills in which program has which of the sockets, as far as we may know.
func (h portHolders) namePrograms(proc string) {
	names := make(map[uint64]string)
	for _, sockets := range h {
		for _, s := range sockets {
			if s.inode != 0 {
				names[s.inode] = ""
			}
		}
	}
	if len(names) == 0 {
		return
	}
	fds, _ := filepath.Glob(filepath.Join(proc, "[0-9]*", "fd", "*"))
	for _, fd := range fds {
		inode, ok := socketInode(fd)
		if name, wanted := names[inode]; !ok || !wanted || name != "" {
			continue
		}
		dir := filepath.Dir(filepath.Dir(fd))
		if comm, err := os.ReadFile(filepath.Join(dir, "comm")); err == nil {
			comm = bytes.TrimSuffix(comm, []byte("\n"))
			names[inode] = fmt.Sprintf("%s (pid %s)", printable(string(comm)), filepath.Base(dir))
		}
	}
	for _, sockets := range h {
		for i, s := range sockets {
			if s.inode != 0 {
				sockets[i].name = names[s.inode]
			}
		}
	}
}

// socketInode is the inode of a socket that a link in /proc/PID/fd stands for.
func socketInode(fd string) (uint64, bool) {
	target, err := os.Readlink(fd)
	if err != nil {
		return 0, false
	}
	number, ok := strings.CutPrefix(target, "socket:[")
	inode, err := strconv.ParseUint(strings.TrimSuffix(number, "]"), 10, 64)
	return inode, ok && err == nil
}

// printable makes a name that anybody may have chosen safe for a message.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\uFFFD' {
			return '?'
		}
		return r
	}, s)
}
