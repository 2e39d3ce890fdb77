package e2e

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// Theory of operation
//
// listen and talk are the two ends of the connections that the tests of the network are about: either runs in a
// guest, in a container beside it or in the test itself. A connection begins with a line, and the server does what it
// says:
//
//	who      tells the client's address, as it sees it; the only word for UDP
//	run CMD  runs a shell command and sends its output: how tests work in a guest without a log-in
//	sum      counts what comes until the client ends its side, and tells
//	tail     says "head", ends its side, and counts what comes
//	hold     says "held", and counts what comes
//	reset    resets the connection
//	last     how the last connection with tail or hold ended
//
// talk says these words, or plays one of these with them, whose result is "eof" or "reset" and what was counted:
//
//	half-close   ends its side before the server does (sum)
//	half-open    goes on sending when the server has ended its side (tail)
//	abort        resets the connection (hold)
//
// Whatever goes wrong becomes a word of explain, and nothing waits for longer than talkGuard.

const (
	talkGuard = 30 * time.Second
	// talkBytes is more than fits into the sockets on the way, so that data is under way when a connection ends.
	talkBytes = 16 << 20
)

// ends holds how connections ended.
var ends = make(chan string, 16)

func listen(network, address string, proxied bool) error {
	if strings.HasPrefix(network, "udp") {
		return listenUDP(network, address)
	}
	l, err := net.Listen(network, address)
	if err != nil {
		return err
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go serveTalk(conn.(*net.TCPConn), proxied)
	}
}

func listenUDP(network, address string) error {
	conn, err := net.ListenPacket(network, address)
	if err != nil {
		return err
	}
	buf := make([]byte, 1<<16)
	for {
		_, from, err := conn.ReadFrom(buf)
		if err != nil {
			return err
		}
		_, _ = conn.WriteTo([]byte(plainHost(from)), from)
	}
}

func serveTalk(conn *net.TCPConn, proxied bool) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	client := plainHost(conn.RemoteAddr())
	if proxied {
		header, err := readProxyHeader(r)
		if err != nil {
			fmt.Fprintln(conn, err)
			return
		}
		client = header
	}
	line, err := r.ReadString('\n')
	if err != nil {
		return
	}
	word, arg, _ := strings.Cut(strings.TrimSpace(line), " ")
	switch word {
	case "who":
		fmt.Fprintln(conn, client)
	case "run":
		out, err := exec.Command("/bin/sh", "-c", arg).CombinedOutput()
		if err != nil {
			out = fmt.Appendf(out, "\n%v", err)
		}
		_, _ = conn.Write(out)
	case "sum":
		fmt.Fprintln(conn, drain(r))
	case "tail":
		fmt.Fprintln(conn, "head")
		_ = conn.CloseWrite()
		ends <- drain(r)
	case "hold":
		fmt.Fprintln(conn, "held")
		ends <- drain(r)
	case "reset":
		_ = conn.SetLinger(0)
	case "last":
		select {
		case end := <-ends:
			fmt.Fprintln(conn, end)
		case <-time.After(talkGuard / 2):
			fmt.Fprintln(conn, "none has ended")
		}
	default:
		fmt.Fprintln(conn, "what?")
	}
}

// drain reads to the end, and says what that was.
func drain(r io.Reader) string {
	n, err := io.Copy(io.Discard, r)
	if err != nil {
		return explain(err)
	}
	return fmt.Sprintf("eof %d", n)
}

// talk says a line to a server and returns the answer, or what went wrong.
func talk(network, address, line string) string {
	answer, err := tryTalk(network, address, line)
	if err != nil {
		return explain(err)
	}
	return strings.TrimSpace(answer)
}

func tryTalk(network, address, line string) (string, error) {
	if strings.HasPrefix(network, "udp") {
		return talkUDP(network, address, line)
	}
	dialled, err := net.DialTimeout(network, address, talkGuard)
	if err != nil {
		return "", err
	}
	defer dialled.Close()
	conn := dialled.(*net.TCPConn)
	if err := conn.SetDeadline(time.Now().Add(talkGuard)); err != nil {
		return "", err
	}
	last := func() (string, error) { return tryTalk(network, address, "last") }
	switch line {
	case "half-close":
		if _, err := io.WriteString(conn, "sum\n"); err != nil {
			return "", err
		}
		if _, err := conn.Write(make([]byte, talkBytes)); err != nil {
			return "", err
		}
		if err := conn.CloseWrite(); err != nil {
			return "", err
		}
		return readAll(conn)
	case "half-open":
		if _, err := io.WriteString(conn, "tail\n"); err != nil {
			return "", err
		}
		if head, err := readAll(conn); err != nil || head != "head\n" {
			return head, err
		}
		if _, err := conn.Write(make([]byte, talkBytes)); err != nil {
			return "", err
		}
		if err := conn.Close(); err != nil {
			return "", err
		}
		return last()
	case "abort":
		if _, err := io.WriteString(conn, "hold\n"); err != nil {
			return "", err
		}
		if _, err := conn.Read(make([]byte, len("held\n"))); err != nil {
			return "", err
		}
		if err := errors.Join(conn.SetLinger(0), conn.Close()); err != nil {
			return "", err
		}
		return last()
	}
	if _, err := io.WriteString(conn, line+"\n"); err != nil {
		return "", err
	}
	return readAll(conn)
}

// talkEarly does not take no for an answer before there is a connection, and has only one.
func talkEarly(network, address string) string {
	for {
		if answer := talk(network, address, "who"); answer != "refused" {
			return answer
		}
		time.Sleep(5 * time.Millisecond) // the guest that is to come up needs the CPU
	}
}

func readAll(r io.Reader) (string, error) {
	data, err := io.ReadAll(r)
	return string(data), err
}

// talkUDP repeats itself: a datagram may get lost before the server listens.
func talkUDP(network, address, line string) (string, error) {
	conn, err := net.DialTimeout(network, address, talkGuard)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	buf := make([]byte, 1<<16)
	for range 10 {
		if _, err := conn.Write([]byte(line)); err != nil {
			return "", err
		}
		if err := conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			return "", err
		}
		n, err := conn.Read(buf)
		if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
			continue
		}
		return string(buf[:n]), err
	}
	return "", errors.New("timeout")
}

// explain is one word for what a program learns of its network.
func explain(err error) string {
	for _, c := range []struct {
		word   string
		errnos []syscall.Errno
	}{
		{"refused", []syscall.Errno{syscall.ECONNREFUSED}},
		{"reset", []syscall.Errno{syscall.ECONNRESET, syscall.EPIPE}},
		// The last one is how IPv6 says "administratively prohibited".
		{"unreachable", []syscall.Errno{syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EACCES}},
	} {
		for _, errno := range c.errnos {
			if errors.Is(err, errno) {
				return c.word
			}
		}
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok && dns.IsNotFound {
		return "no such name"
	}
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		return "timeout"
	}
	return err.Error()
}

// plainHost is an address without its port; one of IPv4 looks so on a socket of both families too.
func plainHost(a net.Addr) string {
	return netip.MustParseAddrPort(a.String()).Addr().Unmap().WithZone("").String()
}

// readProxyHeader reads a header of version 2 of the PROXY protocol, as its specification says it, and returns the
// client's address.
func readProxyHeader(r io.Reader) (string, error) {
	head := make([]byte, 16)
	if _, err := io.ReadFull(r, head); err != nil {
		return "", err
	}
	if !bytes.HasPrefix(head, []byte("\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a\x21")) {
		return "", fmt.Errorf("not a PROXY header: %q", head)
	}
	addrs := make([]byte, binary.BigEndian.Uint16(head[14:]))
	if _, err := io.ReadFull(r, addrs); err != nil {
		return "", err
	}
	switch {
	case head[13] == 0x11 && len(addrs) >= 12:
		return netip.AddrFrom4([4]byte(addrs)).String(), nil
	case head[13] == 0x21 && len(addrs) >= 36:
		return netip.AddrFrom16([16]byte(addrs)).String(), nil
	}
	return "", fmt.Errorf("not a PROXY header of TCP: %q", head)
}
