package dns

import (
	"bufio"
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Port is DNS's, for UDP and TCP.
const Port = 53

const (
	// maxServers is what every C library reads (MAXNS).
	maxServers = 3
	// maxConfigBytes bounds what is read of a resolv.conf.
	maxConfigBytes = 64 << 10
)

// Config is what a resolv.conf(5) says.
type Config struct {
	// Servers in the order to ask them.
	Servers []netip.AddrPort
	// Search domains.
	Search []string
	// Options as they stand in the file, such as "ndots:2".
	Options []string
}

// ReadConfig reads a resolv.conf. Without the file, or with one that cannot be read, it returns the error and a
// Config without servers.
func ReadConfig(path string) (Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return Config{}, fmt.Errorf("read the resolver's configuration: %w", err)
	}
	defer f.Close()
	data := make([]byte, maxConfigBytes)
	n := 0
	for n < len(data) {
		got, err := f.Read(data[n:])
		n += got
		if err != nil {
			break
		}
	}
	return ParseConfig(data[:n]), nil
}

// ParseConfig reads the text of a resolv.conf as the C library does: what it does not know it skips, of several
// search or domain lines the last one counts.
func ParseConfig(data []byte) Config {
	var c Config
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, maxConfigBytes+1)
	for lines.Scan() {
		line := lines.Text()
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch args := fields[1:]; fields[0] {
		case "nameserver":
			addr, err := netip.ParseAddr(args[0])
			if err == nil && len(c.Servers) < maxServers {
				c.Servers = append(c.Servers, netip.AddrPortFrom(addr.Unmap(), Port))
			}
		case "domain":
			c.Search = domains(args[:1])
		case "search":
			c.Search = domains(args)
		case "options":
			c.Options = append(c.Options, args...)
		}
	}
	return c
}

// domains drops what cannot be a domain, so that nothing odd ends up in a file or a message of ours. "." is the root:
// no search.
func domains(names []string) []string {
	var ok []string
	for _, name := range names {
		name = strings.TrimSuffix(name, ".")
		if isDomain(name) {
			ok = append(ok, name)
		}
	}
	return ok
}

func isDomain(name string) bool {
	if name == "" || len(name) > 253 {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 {
			return false
		}
		for _, r := range []byte(label) {
			switch {
			case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '-', r == '_':
			default:
				return false
			}
		}
	}
	return true
}

// The defaults and bounds of the C library.
const (
	defaultTimeout  = 5 * time.Second
	maxTimeout      = 30
	defaultAttempts = 2
	maxAttempts     = 5
)

// timeout is how long to wait for a server before the next one is asked: the option "timeout:n", in seconds.
func (c Config) timeout() time.Duration {
	if n := c.number("timeout:"); n > 0 {
		return time.Duration(min(n, maxTimeout)) * time.Second
	}
	return defaultTimeout
}

// attempts is how often a server is asked: the option "attempts:n".
func (c Config) attempts() int {
	if n := c.number("attempts:"); n > 0 {
		return min(n, maxAttempts)
	}
	return defaultAttempts
}

// number is the value of an option that is given with a prefix. The last one counts. 0 stands for none.
func (c Config) number(prefix string) int {
	value := 0
	for _, o := range c.Options {
		if v, ok := strings.CutPrefix(o, prefix); ok {
			value, _ = strconv.Atoi(v)
		}
	}
	return value
}

// has says whether an option without a value is given.
func (c Config) has(option string) bool { return slices.Contains(c.Options, option) }
