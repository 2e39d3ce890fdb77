// Package umltest has a kernel for tests, which does what a real one does as far as a supervisor can see.
package umltest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cavaliergopher/cpio"

	"docker-usermode-linux/internal/agent"
	"docker-usermode-linux/internal/vport/vporttest"
)

// Layout and constants of arch/um/drivers/mconsole.h.
const (
	mconsoleMagic   = 0xcafebabe
	mconsoleVersion = 2
	notifySocket    = 0
	notifyPanic     = 1
)

// fakeAgent is the guest's agent, whose commands run here. It closes off when the guest is to power off.
func fakeAgent(path string, off chan<- struct{}) {
	driver, err := vporttest.Connect(path)
	if err != nil {
		panic(err)
	}
	port, err := driver.Open()
	if err != nil {
		panic(err)
	}
	server := agent.NewServer(agent.ServerOptions{Handle: func(name string, _ []byte) ([]byte, error) {
		switch name {
		case agent.RequestStatus:
			return json.Marshal(agent.Status{Kernel: "7.2-fake", Init: agent.InitStatus{Name: "fake", Up: true}})
		case agent.RequestPowerOff:
			close(off)
			return json.Marshal(agent.PowerOff{By: "fake"})
		}
		return nil, errors.New(name)
	}})
	_ = server.Serve(context.Background(), port) // ends with this process
}

// allOptions are those of a kernel of ours that anybody asks for.
const allOptions = "CONFIG_BLK_DEV_INITRD=y\nCONFIG_HOSTFS=y\nCONFIG_MCONSOLE=y\nCONFIG_VIRTIO_UML=y\nCONFIG_VIRTIO_NET=y\n" +
	"CONFIG_VIRTIO_CONSOLE=y\nCONFIG_VIRTIO_BALLOON=y\nCONFIG_OVERLAY_FS=y\nCONFIG_TMPFS=y\nCONFIG_IPV6=y\n"

// FakeKernel behaves like the kernel as far as the supervisor can see. What else it does is told by arguments
// that start with "fake.": exit=N (as soon as it is up), panic=TEXT, early=TEXT (gives up before it is up),
// agentless (has no agent), deaf (never acts on a command), cad=N (exit code at Ctrl-Alt-Del; default 0; deaf: none), console=TEXT, ready=FILE (made when
// it is up), files (prints the initramfs: each file's mode and name, then its content). Its configuration is the variable
// FAKE_KERNEL_CONFIG, or has all that is asked for.
func FakeKernel(args []string) int {
	value := func(prefix string) (string, bool) {
		i := slices.IndexFunc(args, func(arg string) bool { return strings.HasPrefix(arg, prefix) })
		if i < 0 {
			return "", false
		}
		return args[i][len(prefix):], true
	}
	code := func(s string) int {
		n, err := strconv.Atoi(s)
		if err != nil {
			panic(err)
		}
		return n
	}
	switch {
	case slices.Contains(args, "--version"):
		fmt.Println("7.2-fake")
		return 0
	case slices.Contains(args, "--showconfig"):
		fmt.Print(cmp.Or(os.Getenv("FAKE_KERNEL_CONFIG"), allOptions)) // of the program that asks
		return 0
	}
	if text, ok := value("fake.early="); ok {
		fmt.Fprintln(os.Stderr, text)
		return 1
	}
	// As UML does; a supervisor that sends SIGTERM to the kernel loses the guest's data.
	terms := make(chan os.Signal, 1)
	signal.Notify(terms, syscall.SIGTERM, syscall.SIGINT)

	dir, _ := value("uml_dir=")
	id, _ := value("umid=")
	socket := filepath.Join(dir, id, "mconsole")
	if err := os.MkdirAll(filepath.Dir(socket), 0o700); err != nil {
		panic(err)
	}
	console, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		panic(err)
	}
	notify, _ := value("mconsole=notify:")
	send := func(kind uint32, text string) {
		conn, err := net.Dial("unixgram", notify)
		if err != nil {
			panic(err)
		}
		defer conn.Close()
		msg := binary.NativeEndian.AppendUint32(nil, mconsoleMagic)
		msg = binary.NativeEndian.AppendUint32(msg, mconsoleVersion)
		msg = binary.NativeEndian.AppendUint32(msg, kind)
		msg = binary.NativeEndian.AppendUint32(msg, uint32(len(text)))
		data := make([]byte, 512)
		copy(data, text)
		if _, err := conn.Write(append(msg, data...)); err != nil {
			panic(err)
		}
	}
	// Before it is up: the supervisor then empties the initramfs.
	if _, ok := value("fake.files"); ok {
		if err := printFiles(); err != nil {
			panic(err)
		}
	}
	send(notifySocket, socket)
	fmt.Printf("fake kernel is up: %s\r\n", strings.Join(args, " "))
	if text, ok := value("fake.console="); ok {
		fmt.Printf("%s\r\n", text)
	}
	if file, ok := value("fake.ready="); ok {
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			panic(err)
		}
	}
	if text, ok := value("fake.panic="); ok {
		send(notifyPanic, text)
		time.Sleep(time.Hour)
	}
	if n, ok := value("fake.exit="); ok {
		return code(n)
	}

	off := make(chan struct{})
	if i := slices.IndexFunc(args, func(arg string) bool { return strings.HasSuffix(arg, ":3") }); i >= 0 {
		if _, ok := value("fake.agentless"); !ok {
			path := strings.TrimSuffix(strings.TrimPrefix(args[i], "virtio_uml.device="), ":3")
			go fakeAgent(path, off)
		}
	}

	commands := make(chan string)
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := console.ReadFrom(buf)
			if err != nil {
				return
			}
			reply := make([]byte, 12+512)
			if _, err := console.WriteTo(reply, from); err != nil {
				return
			}
			length := binary.NativeEndian.Uint32(buf[8:])
			commands <- string(bytes.TrimRight(buf[12:min(n, 12+int(length))], "\x00"))
		}
	}()
	_, deaf := value("fake.deaf")
	for {
		select {
		case <-off:
			return 0
		case <-terms:
			fmt.Print("the kernel was sent SIGTERM: data is lost\r\n")
			return 1
		case command := <-commands:
			fmt.Printf("command: %s\r\n", command)
			switch {
			case deaf:
			case command == "cad":
				switch n, ok := value("fake.cad="); {
				case !ok:
					return 0
				case n != "deaf":
					return code(n)
				}
			case command == "halt":
				return 0
			}
		}
	}
}

// printFiles prints the initramfs, which in the scripts holds nothing but what the supervisor puts there.
func printFiles() error {
	file, err := os.Open("/proc/self/fd/3") // of its own: a read moves the offset
	if err != nil {
		return err
	}
	defer file.Close()
	for archive := cpio.NewReader(file); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		fmt.Printf("file: %o %s\r\n", header.Mode, header.Name)
		if _, err := io.Copy(os.Stdout, archive); err != nil {
			return err
		}
		fmt.Print("\r\n")
	}
}
