package boot

import (
	"fmt"
	"strings"
	"testing"
)

func TestParseHosts(t *testing.T) {
	const docker = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n" +
		"ff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
	for _, c := range []struct{ name, text, want string }{
		{"empty", "", "[]"},
		{"docker", docker + "172.17.0.2\tbox.example.org box\n", "[]"},
		{
			"add-host and a link", docker + "192.0.2.1\tdb\n172.17.0.1\thost.docker.internal\n2001:db8::1\tsix\n" +
				"172.17.0.3\tweb 0123456789ab web-1\n172.17.0.2\tBOX.Example.org\n",
			"[{192.0.2.1 [db]} {172.17.0.1 [host.docker.internal]} {2001:db8::1 [six]} {172.17.0.3 [web 0123456789ab web-1]}]",
		},
		{"several lines of one name", "192.0.2.1 a\n2001:db8::1 a\n", "[{192.0.2.1 [a]} {2001:db8::1 [a]}]"},
		{"comments", "# 192.0.2.1 a\n192.0.2.2 b # c\r\n192.0.2.3 #d\n  192.0.2.4\te#f", "[{192.0.2.2 [b]} {192.0.2.4 [e]}]"},
		{"mapped", "::ffff:192.0.2.1 a\n::ffff:127.0.0.1 b\n", "[{192.0.2.1 [a]}]"},
		{"blocked", "0.0.0.0 ads.example\n:: ads.example\n", "[{0.0.0.0 [ads.example]} {:: [ads.example]}]"},
		{"of a link", "fe80::1%eth0 router\n", "[]"},
		{"nonsense", "x y\n192.0.2.1\n\n1.2.3.4.5 z\n192.0.2.1 b\x00d ok \xff\xfe\n192.0.2.1 localhost\n", "[{192.0.2.1 [ok]}]"},
	} {
		if got := fmt.Sprint(ParseHosts([]byte(c.text), "box.example.org")); got != c.want {
			t.Errorf("%s: ParseHosts() = %s, want %s", c.name, got, c.want)
		}
	}
}

// TestParseHostsLong has a file beyond what the guest has room for: whole lines of it are read.
func TestParseHostsLong(t *testing.T) {
	const line = "192.0.2.1\tname.example\n"
	for _, text := range []string{strings.Repeat(line, 100_000), strings.Repeat("x", 2*maxHostsBytes)} {
		for i, e := range ParseHosts([]byte(text), "box") {
			if len(e.Names) != 1 || e.Names[0] != "name.example" || (i+1)*len(line) > maxHostsBytes {
				t.Fatalf("entry %d is %v", i, e)
			}
		}
	}
}

func FuzzParseHosts(f *testing.F) {
	f.Add([]byte("127.0.0.1\tlocalhost\n192.0.2.1 a b # c\nfe80::1%eth0 d\n"), "box")
	f.Fuzz(func(t *testing.T, data []byte, hostname string) {
		for _, e := range ParseHosts(data, hostname) {
			if !e.Addr.IsValid() || e.Addr.IsLoopback() || len(e.Names) == 0 {
				t.Errorf("entry %v", e)
			}
			for _, n := range e.Names {
				if n == hostname || strings.ContainsAny(n, " \t\r\n#") {
					t.Errorf("name %q", n)
				}
			}
		}
	})
}
