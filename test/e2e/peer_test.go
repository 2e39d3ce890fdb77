package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// peerMain lets this very test binary be the other host in a test: started in a container as "/peer VERB", it
// serves or acts there, where no shell is. It reports false when args are those of a test run.
//
//	serve          HTTP on 8080 (GET / answers "peer", POST / the body's SHA-256), a UDP echo on 9000, DNS on 53, and
//	               what talk wants on 7000 (talk_test.go)
//	listen NETWORK ADDRESS [proxy] [late]
//	               what talk wants there; proxy: after a header of the PROXY protocol; late: a second from now
//	talk NETWORK ADDRESS WORD...
//	               asks such a server, and prints what came of it
//	early NETWORK ADDRESS
//	               asks who, as soon as it is connected
//	neighbour      a container beside the guest's: listens where a guest must not come by itself
//	get URL        prints what is there
//	orphans N      starts N grandchildren whose parents are gone at once
//	fork, orphan   what orphans starts
//	kill NAME N    sends signal N to the processes called so
//	pageout        swaps out what "write" writes to, which says whether it lost something (threads_test.go)
//	threads        checks that threads run at once, on what they share (threads_test.go)
//	restores ARG...
//	               runs a command, and says whether the terminal is afterwards as it was before
func peerMain(args []string) (code int, ok bool) {
	if args[0] != "/peer" || len(args) < 2 {
		return 0, false
	}
	var err error
	switch args[1] {
	case "serve":
		err = serve()
	case "listen":
		if slices.Contains(args[4:], "late") {
			time.Sleep(time.Second)
		}
		err = listen(args[2], args[3], slices.Contains(args[4:], "proxy"))
	case "talk":
		fmt.Println(talk(args[2], args[3], strings.Join(args[4:], " ")))
	case "early":
		fmt.Println(talkEarly(args[2], args[3]))
	case "pageout":
		err = pageOut()
	case "write":
		err = write()
	case "threads":
		err = threads()
	case "neighbour":
		err = neighbour()
	case "get":
		err = get(args[2])
	case "orphans":
		err = orphans(args[2])
	case "fork":
		err = spawn("orphan")
	case "orphan":
		time.Sleep(100 * time.Millisecond)
	case "kill":
		err = killNamed(args[2], args[3])
	case "restores":
		return restores(args[2:]), true
	default:
		err = fmt.Errorf("unknown verb %q", args[1])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "peer:", err)
		return 1, true
	}
	return 0, true
}

func serve() error {
	for _, network := range []string{"tcp", "udp"} {
		go logErr(func() error { return listen(network, ":7000", false) })
	}
	go logErr(serveDNS)
	udp, err := net.ListenPacket("udp", ":9000")
	if err != nil {
		return err
	}
	go func() {
		buf := make([]byte, 65536)
		for {
			n, from, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = udp.WriteTo(buf[:n], from) // an ICMP error for one client is not the end for all
		}
	}()
	http.HandleFunc("POST /", func(w http.ResponseWriter, r *http.Request) {
		hash := sha256.New()
		if _, err := io.Copy(hash, r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(w, hex.EncodeToString(hash.Sum(nil)))
	})
	http.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "peer") })
	return http.ListenAndServe(":8080", nil)
}

// anyAddr is what serveDNS has for every name with a dot.
const anyAddr = "192.0.2.53"

// serveDNS answers queries for addresses; names without a dot do not exist.
func serveDNS() error {
	udp, err := net.ListenPacket("udp", ":53")
	if err != nil {
		return err
	}
	buf := make([]byte, 512)
	for {
		n, from, err := udp.ReadFrom(buf)
		if err != nil {
			return err
		}
		var m dnsmessage.Message
		if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
			continue
		}
		q := m.Questions[0]
		m = dnsmessage.Message{Header: dnsmessage.Header{ID: m.ID, Response: true}, Questions: m.Questions}
		if strings.Count(q.Name.String(), ".") < 2 {
			m.RCode = dnsmessage.RCodeNameError
		} else if q.Type == dnsmessage.TypeA {
			m.Answers = []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1},
				Body:   &dnsmessage.AResource{A: netip.MustParseAddr(anyAddr).As4()},
			}}
		}
		answer, err := m.Pack()
		if err != nil {
			return err
		}
		if _, err := udp.WriteTo(answer, from); err != nil {
			return err
		}
	}
}

// metadata is where clouds have the service that hands out credentials.
const metadata = "169.254.169.254"

// neighbour has the cloud's address itself, and listens there and on the loopback. It needs the right to do so.
func neighbour() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(lo, &netlink.Addr{IPNet: netlink.NewIPNet(net.ParseIP(metadata))}); err != nil {
		return err
	}
	for _, port := range []string{"7100", "7101"} {
		go logErr(func() error { return listen("tcp", "127.0.0.1:"+port, false) })
		go logErr(func() error { return listen("tcp", "[::1]:"+port, false) })
	}
	return listen("tcp", metadata+":80", false)
}

func logErr(serve func() error) {
	if err := serve(); err != nil {
		fmt.Fprintln(os.Stderr, "peer:", err)
	}
}

func get(url string) error {
	resp, err := http.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(os.Stdout, resp.Body)
	return err
}

func orphans(count string) error {
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	for range n {
		// The child starts a grandchild and is gone, and waited for, before that one ends.
		cmd := &exec.Cmd{Path: "/proc/self/exe", Args: []string{"/peer", "fork"}}
		if err := cmd.Run(); err != nil {
			return err
		}
	}
	return nil
}

func spawn(verb string) error {
	cmd := &exec.Cmd{Path: "/proc/self/exe", Args: []string{"/peer", verb}}
	return cmd.Start()
}

// restores returns the command's exit code.
func restores(command []string) int {
	fd := int(os.Stdin.Fd())
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		fmt.Fprintln(os.Stderr, "peer: terminal:", err)
		return 1
	}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	_ = cmd.Run() // its exit code tells
	after, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	switch {
	case err != nil:
		fmt.Fprintln(os.Stderr, "peer: terminal:", err)
	case *after != *before:
		fmt.Printf("the terminal is left as %+v, was %+v\n", *after, *before)
	default:
		fmt.Println("the terminal is as before")
	}
	return cmd.ProcessState.ExitCode()
}

func killNamed(name, number string) error {
	n, err := strconv.Atoi(number)
	if err != nil {
		return err
	}
	comms, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	killed := 0
	for _, entry := range comms {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		comm, err := os.ReadFile("/proc/" + entry.Name() + "/comm")
		if err != nil || strings.TrimSpace(string(comm)) != name {
			continue
		}
		if err := syscall.Kill(pid, syscall.Signal(n)); err != nil {
			return err
		}
		killed++
	}
	if killed == 0 {
		return fmt.Errorf("no process is called %s", name)
	}
	return nil
}
