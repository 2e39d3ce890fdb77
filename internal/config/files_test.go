package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCheckFiles(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"root/etc", "empty"} {
		if err := os.MkdirAll(at(name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, mode := range map[string]os.FileMode{"linux": 0o755, "initramfs": 0o644} {
		if err := os.WriteFile(at(name), []byte("x"), mode); err != nil {
			t.Fatal(err)
		}
	}
	good := Config{Rootfs: at("root"), Kernel: at("linux"), Initramfs: at("initramfs")}
	const mount = "; mount a root file system there, like docker run -v /path/to/rootfs:"
	for _, test := range []struct {
		name string
		c    Config
		want []string
	}{
		{"good", good, nil},
		{"paths that Load rejected", Config{}, nil},
		{"nothing there", Config{Rootfs: at("a"), Kernel: at("b"), Initramfs: at("c")}, []string{
			fmt.Sprintf("ROOTFS=%q: no such file or directory%s%s", at("a"), mount, at("a")),
			fmt.Sprintf("KERNEL=%q: no such file or directory; mount one there or correct the path", at("b")),
			fmt.Sprintf("INITRAMFS=%q: no such file or directory; mount one there or correct the path", at("c")),
		}},
		{"of the wrong kind", Config{Rootfs: at("linux"), Kernel: at("initramfs"), Initramfs: at("root")}, []string{
			fmt.Sprintf("ROOTFS=%q: not a directory%s%s", at("linux"), mount, at("linux")),
			fmt.Sprintf("KERNEL=%q: not executable; run chmod +x on it", at("initramfs")),
			fmt.Sprintf("INITRAMFS=%q: not a regular file; mount one there or correct the path", at("root")),
		}},
		{"a packet trace in a new file", Config{NetPcap: at("new.pcap")}, nil},
		{"in a file that is there", Config{NetPcap: at("initramfs")}, nil},
		{"in a device", Config{NetPcap: os.DevNull}, nil},
		{"in a directory", Config{NetPcap: at("empty")}, []string{
			fmt.Sprintf("NET_PCAP=%q: is a directory; name a file in it, like %s", at("empty"), at("empty/guest.pcap")),
		}},
		{"below a file", Config{NetPcap: at("linux/a")}, []string{
			fmt.Sprintf("NET_PCAP=%q: not a directory; correct the path", at("linux/a")),
		}},
		{"in no directory", Config{NetPcap: at("a/b")}, []string{
			fmt.Sprintf("NET_PCAP=%q: %s: no such file or directory; mount a directory there that user %d can write to",
				at("a/b"), at("a"), os.Getuid()),
		}},
		{"where not even root can write", Config{NetPcap: "/proc/self/a.pcap"}, []string{
			fmt.Sprintf("NET_PCAP=\"/proc/self/a.pcap\": /proc/self: operation not permitted; "+
				"mount a directory there that user %d can write to", os.Getuid()),
		}},
		{"empty root", Config{Rootfs: at("empty"), Kernel: at("linux")}, []string{
			fmt.Sprintf("ROOTFS=%q: the directory is empty%s%s", at("empty"), mount, at("empty")),
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := ""
			if err := test.c.CheckFiles(); err != nil {
				got = err.Error()
			}
			if want := strings.Join(test.want, "\n"); got != want {
				t.Errorf("CheckFiles() = %q, want %q", got, want)
			}
		})
	}
}
