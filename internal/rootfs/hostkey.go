package rootfs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"golang.org/x/crypto/ssh"

	"docker-usermode-linux/internal/boot"
)

// Where OpenSSH has its configuration and its keys. Ours is its key, too, so that a server that is installed later is the
// same one to clients.
const (
	sshdConfig   = "etc/ssh/sshd_config"
	hostKeyFile  = "etc/ssh/ssh_host_ed25519_key"
	hostKeyECDSA = "etc/ssh/ssh_host_ecdsa_key"
	hostKeyRSA   = "etc/ssh/ssh_host_rsa_key"
)

// MakeHostKeys makes the host keys of an OpenSSH server that has none at all, of the types that clients take today, so that
// the guest's first boot need not wait for ssh-keygen. When nobody asked for a login it makes none.
func MakeHostKeys(root *os.Root, s boot.Settings) error {
	if s.LoginUnasked || s.NoInit {
		return nil
	}
	if _, err := root.Stat(sshdConfig); err != nil {
		return nil // no server, or one whose configuration cannot be read: not ours to mend
	}
	for _, name := range []string{hostKeyFile, hostKeyECDSA, hostKeyRSA} {
		// A link may lead anywhere in the guest, where we do not look: it is the user's, and stays.
		if info, err := root.Lstat(name); err == nil && (info.Size() > 0 || !info.Mode().IsRegular()) {
			return nil
		}
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return fmt.Errorf("make a host key: %w", err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make a host key: %w", err)
	}
	for name, key := range map[string]crypto.Signer{hostKeyFile: ed, hostKeyECDSA: ec} {
		signer, err := ssh.NewSignerFromSigner(key)
		if err == nil {
			err = storeHostKey(root, name, key, signer)
		}
		if err != nil {
			return fmt.Errorf("make the host key /%s: %w", name, err)
		}
	}
	return nil
}

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
	if err := storeHostKey(root, hostKeyFile, private, signer); err != nil {
		log(fmt.Errorf("store host key, which will be another one at the next start: %w", err))
	}
	return signer, nil
}

// storeHostKey writes a key to name and its public part beside it.
func storeHostKey(root *os.Root, name string, private crypto.PrivateKey, signer ssh.Signer) error {
	const comment = "docker-usermode-linux"
	block, err := ssh.MarshalPrivateKey(private, comment)
	if err != nil {
		return err
	}
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	// At once or not at all: a half-written key would be in the way for ever.
	if err := replace(root, name, pem.EncodeToMemory(block), ours(0o600)); err != nil {
		return err
	}
	public := ssh.MarshalAuthorizedKey(signer.PublicKey())
	public = append(public[:len(public)-1], " "+comment+"\n"...)
	return replace(root, name+".pub", public, ours(0o644))
}
