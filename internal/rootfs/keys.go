package rootfs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
)

const (
	keysBegin = "# docker-usermode-linux: keys from here on are replaced at every start"
	keysEnd   = "# docker-usermode-linux: end"
)

// SetAuthorizedKeys makes keys, and only them, our block in root's authorized_keys; without keys the block goes.
// Lines outside the block stay. The directories and the file get the modes and the owner that the SSH server
// demands, as soon as there are keys.
func SetAuthorizedKeys(root *os.Root, keys []string) error {
	if err := setAuthorizedKeys(root, keys); err != nil {
		return fmt.Errorf("set SSH keys of %s: %w", superuser, err)
	}
	return nil
}

func setAuthorizedKeys(root *os.Root, keys []string) error {
	home, err := homeOf(root)
	if err != nil {
		return err
	}
	dir := path.Join(home, ".ssh")
	file := path.Join(dir, "authorized_keys")

	old, err := root.ReadFile(file)
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return err
	}
	text := withKeys(old, keys)
	if len(keys) == 0 {
		if bytes.Equal(text, old) {
			return nil
		}
		attr, err := attrOf(root, file)
		if err != nil {
			return err
		}
		return replace(root, file, text, attr)
	}
	if missing {
		if err := root.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	// Reported, but the keys are written all the same: the SSH server may be told not to look at owners.
	ownerErr := private(root, dir, 0o700)
	if missing || !bytes.Equal(text, old) {
		err = replace(root, file, text, ours(0o600))
	} else {
		err = private(root, file, 0o600)
	}
	if err != nil {
		return err
	}
	return ownerErr
}

// homeOf returns root's home directory as a path inside the tree.
func homeOf(root *os.Root) (string, error) {
	data, err := root.ReadFile(passwdFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	home, _ := accounts(data).field(superuser, fieldHome)
	if home == "" {
		home = "/root"
	}
	return path.Join(".", path.Join("/", home)[1:]), nil
}

// withKeys returns text, without our block, followed by a block of keys if there are any. A marker that lost its
// partner is dropped alone, because nothing says which lines around it are ours.
func withKeys(text []byte, keys []string) []byte {
	var out, block []byte
	open := false
	for line := range bytes.Lines(text) {
		switch strings.TrimSpace(string(line)) {
		case keysBegin:
			out = append(out, block...)
			block, open = nil, true
		case keysEnd:
			block, open = nil, false
		default:
			if open {
				block = append(block, line...)
			} else {
				out = append(out, line...)
			}
		}
	}
	out = append(out, block...)
	if len(keys) == 0 {
		return out
	}
	if len(out) > 0 && out[len(out)-1] != '\n' {
		out = append(out, '\n')
	}
	return append(out, keysBegin+"\n"+strings.Join(keys, "\n")+"\n"+keysEnd+"\n"...)
}
