package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/crypto/ssh"
)

// maxKeyFile bounds what is read of the file that SSH_AUTHORIZED_KEYS names, in bytes: a thousand RSA keys with
// room to spare, and an end for /dev/zero.
const maxKeyFile = 1 << 20

// parseKeys reads SSH_AUTHORIZED_KEYS: keys, one per line, or the absolute path of a file with them. Every error
// continues the name of the setting: the value of keys is long and may be a private key that was pasted by
// mistake, so that only a path is ever shown.
func parseKeys(s string) (keys []string, errs []error) {
	if s == "" {
		return nil, nil
	}
	origin := ""
	if strings.HasPrefix(s, "/") {
		path := strings.TrimSpace(s)
		origin = fmt.Sprintf("=%q", path)
		text, err := readKeyFile(path)
		if err != nil {
			return nil, []error{fmt.Errorf("%s: %w", origin, err)}
		}
		s = text
	}
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

func readKeyFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("%w; mount a file with public keys there", cause(err))
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return "", fmt.Errorf("%w; mount a file with public keys there", cause(err))
	}
	if len(data) > maxKeyFile {
		return "", errors.New("longer than 1M; give a file with public keys")
	}
	return string(data), nil
}

// cause is err without the operation and the path, which the message around it has already.
func cause(err error) error {
	if pathErr, ok := errors.AsType[*os.PathError](err); ok {
		return pathErr.Err
	}
	return err
}
