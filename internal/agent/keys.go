package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/crypto/ssh"
)

// maxKeysFile bounds authorized_keys in bytes: some thousand keys.
const maxKeysFile = 1 << 20

// errUnknownKey is the answer to a key that is not in the file.
var errUnknownKey = errors.New("unknown key")

// key returns what a key grants to the user of that name.
func (a *Authenticator) key(name string, key ssh.PublicKey) (grant, error) {
	u, _, err := a.account(name)
	if err != nil {
		return grant{}, err
	}
	var data []byte
	err = u.as(func() (err error) {
		data, err = readKeys(u)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return grant{}, errUnknownKey
	}
	if err != nil {
		return grant{}, err
	}
	g, err := findKey(data, key)
	g.user = u
	return g, err
}

// findKey returns what the first line with the key says. Lines that are not understood are comments, as with sshd(8).
func findKey(data []byte, key ssh.PublicKey) (grant, error) {
	if _, isCertificate := key.(*ssh.Certificate); isCertificate {
		return grant{}, errUnknownKey
	}
	for line := range bytes.Lines(data) {
		known, _, options, _, err := ssh.ParseAuthorizedKey(line)
		if err != nil || !bytes.Equal(known.Marshal(), key.Marshal()) {
			continue
		}
		g, err := parseOptions(options)
		if err != nil {
			return grant{}, fmt.Errorf("key %s: %w", ssh.FingerprintSHA256(key), err)
		}
		return g, nil
	}
	return grant{}, errUnknownKey
}

// parseOptions understands the options of a line of authorized_keys (sshd(8)). One that is not known is an error, for
// it could be a restriction.
func parseOptions(options []string) (g grant, err error) {
	for _, option := range options {
		name, value, hasValue := strings.Cut(option, "=")
		switch name = strings.ToLower(name); {
		case name == "command" && hasValue && g.command == "":
			if g.command, err = unquote(value); err != nil {
				return grant{}, fmt.Errorf("option command: %w", err)
			}
		case hasValue:
			return grant{}, fmt.Errorf("option %q is not supported, so the key is refused", name)
		case name == "restrict":
			g.noPTY, g.noForwarding = true, true
		case name == "no-pty" || name == "pty":
			g.noPTY = name == "no-pty"
		case name == "no-port-forwarding" || name == "port-forwarding":
			g.noForwarding = name == "no-port-forwarding"
		case name == "no-agent-forwarding", name == "agent-forwarding", name == "no-x11-forwarding",
			name == "x11-forwarding", name == "no-user-rc", name == "user-rc":
			// None of these is there for any key.
		default:
			return grant{}, fmt.Errorf("option %q is not supported, so the key is refused", name)
		}
	}
	return g, nil
}

// unquote removes the quotes of an option's value, in which \" is a quote.
func unquote(value string) (string, error) {
	inner, ok := strings.CutPrefix(value, `"`)
	if ok {
		inner, ok = strings.CutSuffix(inner, `"`)
	}
	if !ok || inner == "" || strings.ContainsRune(inner, 0) {
		return "", errors.New("the value must be in quotes, and not empty")
	}
	return strings.ReplaceAll(inner, `\"`, `"`), nil
}

// readKeys returns the user's authorized_keys, if nobody else can have written to it: the file and every directory
// above it, up to the home, must belong to the user or root, and be writable for the owner alone (sshd_config(5),
// StrictModes).
func readKeys(u *user) ([]byte, error) {
	home, err := filepath.EvalSymlinks(u.home)
	if err != nil {
		return nil, err
	}
	name, err := filepath.EvalSymlinks(filepath.Join(u.home, ".ssh", "authorized_keys"))
	if err != nil {
		return nil, err
	}
	// Without waiting for somebody to write to it, if it is a named pipe.
	file, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	if err := checkOwner(name, info, u); err != nil {
		return nil, err
	}
	for dir := filepath.Dir(name); ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return nil, err
		}
		if err := checkOwner(dir, info, u); err != nil {
			return nil, err
		}
		if dir == home || dir == "/" {
			break
		}
	}
	data, err := io.ReadAll(io.LimitReader(file, maxKeysFile+1))
	if err == nil && len(data) > maxKeysFile {
		err = fmt.Errorf("%s is longer than %d bytes", name, maxKeysFile)
	}
	return data, err
}

func checkOwner(name string, info fs.FileInfo, u *user) error {
	owner := info.Sys().(*syscall.Stat_t).Uid
	if owner != 0 && owner != u.uid {
		return fmt.Errorf("%s belongs to user %d, keys in it are not trusted", name, owner)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s can be written to by others (%v), keys in it are not trusted", name, info.Mode().Perm())
	}
	return nil
}
