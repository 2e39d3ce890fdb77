package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// peerMain lets this very test binary be the other host in a test: started in a container as "/peer VERB", it
// serves or acts there, where no shell is. It reports false when args are those of a test run.
//
//	serve          HTTP on 8080 (GET / answers "peer", POST / the body's SHA-256) and a UDP echo on 9000
//	orphans N      starts N grandchildren whose parents are gone at once
//	fork, orphan   what orphans starts
//	kill NAME      sends SIGKILL to the processes called so
func peerMain(args []string) (code int, ok bool) {
	if args[0] != "/peer" || len(args) < 2 {
		return 0, false
	}
	var err error
	switch args[1] {
	case "serve":
		err = serve()
	case "orphans":
		err = orphans(args[2])
	case "fork":
		err = spawn("orphan")
	case "orphan":
		time.Sleep(100 * time.Millisecond)
	case "kill":
		err = killNamed(args[2])
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
			if _, err := udp.WriteTo(buf[:n], from); err != nil {
				return
			}
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

func killNamed(name string) error {
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
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			return err
		}
		killed++
	}
	if killed == 0 {
		return fmt.Errorf("no process is called %s", name)
	}
	return nil
}
