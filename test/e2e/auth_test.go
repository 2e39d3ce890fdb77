package e2e

import (
	"crypto/ed25519"
	"crypto/rand"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

// newKey makes a key pair; line is its entry for authorized_keys.
func newKey(t *testing.T) (signer ssh.Signer, line string) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err = ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return signer, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey())))
}

func publicKey(s ssh.Signer) ssh.AuthMethod { return ssh.PublicKeys(s) }

func passwordAuth(p string) ssh.AuthMethod { return ssh.Password(p) }
