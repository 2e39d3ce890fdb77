package config

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"
)

// maxKeyFile bounds what is read of a file with public keys, in bytes: a thousand RSA keys with room to spare, and an
// end for /dev/zero.
const maxKeyFile = 1 << 20

// parseKeys reads SSH_AUTHORIZED_KEYS: keys, one per line, or the absolute path of a file with them. Every error
// continues the name of the setting: the value of keys is long and may be a private key that was pasted by
// mistake, so that only a path is ever shown.
func parseKeys(s string) (keys []string, errs []error) {
	switch {
	case s == "":
		return nil, nil
	case strings.HasPrefix(s, "/"):
		return parseKeyFile(strings.TrimSpace(s))
	}
	return parseKeyLines("", s)
}

// parseKeyFile reads the file that SSH_AUTHORIZED_KEYS_FILE names; errors are those of parseKeys.
func parseKeyFile(path string) (keys []string, errs []error) {
	if !strings.HasPrefix(path, "/") {
		return nil, []error{errNoPath}
	}
	origin := fmt.Sprintf("=%q", path)
	text, err := readShort(path, maxKeyFile)
	switch {
	case errors.Is(err, errTooLong):
		return nil, []error{fmt.Errorf("%s: longer than 1M; give a file with public keys", origin)}
	case err != nil:
		return nil, []error{fmt.Errorf("%s: %w; mount a file with public keys there", origin, err)}
	}
	return parseKeyLines(origin, string(text))
}

// parseKeyLines reads lines of an authorized_keys file.
func parseKeyLines(origin, s string) (keys []string, errs []error) {
	if strings.Contains(s, "PRIVATE KEY-----") {
		return nil, []error{fmt.Errorf("%s: holds a private key; give the public one, from the file that ends in .pub",
			origin)}
	}
	number := 0
	for line := range strings.Lines(s) {
		number++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if _, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line)); err != nil {
			errs = append(errs, fmt.Errorf("%s: line %d is not a public key; "+
				"write one per line, like ssh-ed25519 AAAA... me@example", origin, number))
			continue
		}
		keys = append(keys, line)
	}
	if len(errs) > 0 {
		return nil, errs
	}
	if len(keys) == 0 {
		return nil, []error{fmt.Errorf("%s: holds no key; write one per line, like ssh-ed25519 AAAA... me@example",
			origin)}
	}
	return keys, nil
}
