package rootfs

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"golang.org/x/crypto/ssh"
)

// hostKeyFile is where OpenSSH has its key, too, so that a server that is installed later is the same one to clients.
const hostKeyFile = "etc/ssh/ssh_host_ed25519_key"

// HostKey returns the host key of the tree, for an SSH server that is not of it, and makes it, with its .pub, if there is
// none. If it cannot be stored, as on a read-only file system, log gets to know why, and the key is good until the
// process ends. A file that is there and no key is left alone, and an error.
func HostKey(root *os.Root, log func(error)) (ssh.Signer, error) {
	data, err := root.ReadFile(hostKeyFile)
	if err == nil {
		signer, err := ssh.ParsePrivateKey(data)
		if err != nil {
			return nil, fmt.Errorf("host key /%s: %w", hostKeyFile, err)
		}
		return signer, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read host key: %w", err)
	}
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a host key: %w", err)
	}
	signer, err := ssh.NewSignerFromSigner(private)
	if err != nil {
		return nil, fmt.Errorf("make a host key: %w", err)
	}
	if err := storeHostKey(root, private, signer); err != nil {
		log(fmt.Errorf("store host key, which will be another one at the next start: %w", err))
	}
	return signer, nil
}

func storeHostKey(root *os.Root, private ed25519.PrivateKey, signer ssh.Signer) error {
	const comment = "docker-usermode-linux"
	block, err := ssh.MarshalPrivateKey(private, comment)
	if err != nil {
		return err
	}
	if err := root.MkdirAll(path.Dir(hostKeyFile), 0o755); err != nil {
		return err
	}
	// At once or not at all: a half-written key would be in the way for ever.
	if err := replace(root, hostKeyFile, pem.EncodeToMemory(block), ours(0o600)); err != nil {
		return err
	}
	public := ssh.MarshalAuthorizedKey(signer.PublicKey())
	public = append(public[:len(public)-1], " "+comment+"\n"...)
	return replace(root, hostKeyFile+".pub", public, ours(0o644))
}
