package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

const (
	// failureDelay is when the answer to a wrong password comes, as that of pam_faildelay(8): a guess costs 2 s, and the
	// time says nothing about the account or its hash.
	failureDelay = 2 * time.Second
	// maxPassword is the longest password in bytes, as in sshd(8): hashing takes the longer the longer it is.
	maxPassword = 1024
)

// Authenticator decides who may log in: the accounts of the guest, by password (shadow(5)) or key
// (~/.ssh/authorized_keys, sshd(8)). An account must have a shell to log in with, and must not be locked or expired.
// The zero value is ready.
//
// A password is refused if the account has none, if it has to be changed, or if its hash is of a kind that is not
// known. The hash "*" is an account without password, and takes keys. One with "!" before a hash is locked for keys,
// too, as sshd(8) without PAM has it; "!" without a hash is what an account has that never had a password, and takes
// keys.
type Authenticator struct {
	// KeysOnly has no password accepted, whosever it is.
	KeysOnly bool

	root  string        // of the files of accounts; empty: /
	delay time.Duration // instead of failureDelay; for tests

	// hashing is held while a password is checked: anybody can have that done, and a hash takes maxHashMemory. Accounts
	// that have none wait for it as well, so that the time does not tell them apart.
	hashing sync.Mutex
}

// grant is what a login may do.
type grant struct {
	user                *user
	command             string // runs instead of any other
	noPTY, noForwarding bool
}

// grantKey is where ssh.Permissions hold the grant.
type grantKey struct{}

func (g grant) permissions() *ssh.Permissions {
	return &ssh.Permissions{ExtraData: map[any]any{grantKey{}: g}}
}

// grantOf returns what permissions grant: without any, everything.
func grantOf(p *ssh.Permissions) grant {
	if p == nil {
		return grant{}
	}
	g, _ := p.ExtraData[grantKey{}].(grant)
	return g
}

// errRefused is all that a client learns.
var errRefused = errors.New("permission denied")

// configure sets how the clients of a connection log in. ctx is that of the connection.
func (a *Authenticator) configure(ctx context.Context, config *ssh.ServerConfig, log func(error)) {
	refuse := func(meta ssh.ConnMetadata, err error) (*ssh.Permissions, error) {
		log(fmt.Errorf("ssh login of %q from %s: %w", meta.User(), meta.RemoteAddr(), err))
		return nil, errRefused
	}
	config.PublicKeyCallback = func(meta ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		g, err := a.key(meta.User(), key)
		if errors.Is(err, errUnknownKey) {
			return nil, errRefused // clients try all that they have
		}
		if err != nil {
			return refuse(meta, err)
		}
		return g.permissions(), nil
	}
	if a.KeysOnly {
		return
	}
	config.PasswordCallback = func(meta ssh.ConnMetadata, password []byte) (*ssh.Permissions, error) {
		delay := a.delay
		if delay == 0 {
			delay = failureDelay
		}
		answer := time.Now().Add(delay)
		u, err := a.password(meta.User(), string(password))
		if err != nil {
			pause(ctx, time.Until(answer))
			return refuse(meta, err)
		}
		return grant{user: u}.permissions(), nil
	}
}

// account returns the user of that name, with the hash of the password, if it may log in at all.
func (a *Authenticator) account(name string) (u *user, secret shadowEntry, err error) {
	accounts := accounts{a.root}
	if accounts.root == "" {
		accounts.root = "/"
	}
	if u, err = accounts.byName(name); err != nil {
		return nil, secret, err
	}
	if secret, err = accounts.secret(name); err != nil {
		return nil, secret, err
	}
	today := time.Now().Unix() / (24 * 60 * 60)
	switch base := path.Base(u.shell); {
	case base == "nologin" || base == "false":
		return nil, secret, fmt.Errorf("the shell of the account is %s", u.shell)
	case !isExecutable(u.shell):
		return nil, secret, fmt.Errorf("the shell of the account cannot be executed: %s", u.shell)
	case strings.HasPrefix(strings.TrimLeft(secret.hash, "!"), "$") && secret.hash[0] == '!':
		return nil, secret, errors.New("the account is locked")
	case secret.expires != unsetDay && secret.expires <= today:
		return nil, secret, errors.New("the account has expired")
	}
	// nologin(5), and what systemd(1) makes while the system comes up.
	for _, file := range []string{"/etc/nologin", "/run/nologin"} {
		if _, err := os.Stat(path.Join(accounts.root, file)); err == nil && u.uid != 0 {
			return nil, secret, fmt.Errorf("%s exists, only root may log in", file)
		}
	}
	return u, secret, nil
}

// password returns the user that has that password.
func (a *Authenticator) password(name, password string) (*user, error) {
	if password == "" {
		return nil, errors.New("empty password")
	}
	if len(password) > maxPassword {
		return nil, fmt.Errorf("password is longer than %d bytes", maxPassword)
	}
	a.hashing.Lock()
	defer a.hashing.Unlock()
	u, secret, err := a.account(name)
	if err != nil {
		return nil, err
	}
	if err := verify(secret.hash, password); err != nil {
		return nil, err
	}
	today := time.Now().Unix() / (24 * 60 * 60)
	if secret.changed == 0 || secret.changed != unsetDay && secret.maxAge != unsetDay && secret.changed+secret.maxAge < today {
		return nil, errors.New("the password has to be changed, which is not possible here")
	}
	return u, nil
}

// unsetDay is an empty field of shadow(5).
const unsetDay = -1

// shadowEntry is a line of shadow(5). Times are in days since 1970-01-01, or unsetDay.
type shadowEntry struct {
	hash                     string
	changed, maxAge, expires int64
}

// secret returns the account's line in /etc/shadow, or the hash in /etc/passwd if it is there. Without either there is
// no password.
func (a accounts) secret(name string) (shadowEntry, error) {
	none := shadowEntry{"*", unsetDay, unsetDay, unsetDay}
	passwd, err := a.read("etc/passwd")
	if err != nil {
		return none, err
	}
	entry, ok := findPasswd(passwd, func(e passwdEntry) bool { return e.name == name })
	if ok && entry.password != "x" {
		none.hash = entry.password
		return none, nil
	}
	shadow, err := a.read("etc/shadow")
	if err != nil {
		return none, err
	}
	if secret, ok := findShadow(shadow, name); ok {
		return secret, nil
	}
	return none, nil
}

// findShadow returns the first line of an account.
func findShadow(data []byte, name string) (entry shadowEntry, ok bool) {
	for line := range strings.Lines(string(data)) {
		fields := strings.Split(strings.TrimRight(line, "\r\n"), ":")
		if fields[0] != name || len(fields) < 2 || !isName(name) {
			continue
		}
		day := func(i int) int64 {
			if i >= len(fields) {
				return unsetDay
			}
			n, err := strconv.ParseInt(fields[i], 10, 32)
			if err != nil || n < 0 {
				return unsetDay
			}
			return n
		}
		return shadowEntry{fields[1], day(2), day(4), day(7)}, true
	}
	return entry, false
}
