package rootfs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/go-crypt/crypt/algorithm/shacrypt"

	"docker-usermode-linux/internal/boot"
)

const (
	passwdFile = "etc/passwd"
	shadowFile = "etc/shadow"
	superuser  = "root"

	// shadowed in passwd's field says that the hash is in the shadow file.
	shadowed = "x"
	// locked matches no password. Unlike a leading "!", OpenSSH without PAM does not take it for a locked account,
	// so that keys go on working.
	locked = "*"

	// hashRounds is the default of SHA-crypt, which glibc, musl and busybox share: about 3 ms here (2026-11).
	hashRounds = 5000
	// maxRounds bounds the time that looking at a hash may take, about 50 ms; one with more rounds counts as
	// different from every password.
	maxRounds = 100_000
)

var errNoAccount = fmt.Errorf("no such account in /%s and /%s", passwdFile, shadowFile)

// PasswordState is what SetPassword leaves behind.
type PasswordState int

// The states of root's password.
const (
	PasswordUnknown PasswordState = iota // an error kept SetPassword from finding out
	PasswordOwn                          // the root file system's own, or locked by its owner
	PasswordSet                          // it is Settings.RootPassword
	PasswordOff                          // locked by us
)

// SetPassword sets or locks the password of root:
//
//   - RootPassword chosen by the user: it replaces any other.
//   - RootPassword by default: set where root has no password; an account whose password was locked on purpose
//     ("!" before a hash) keeps that.
//   - no RootPassword: locked where root has none or the publicly known one, else left alone. With LoginUnasked only
//     the publicly known one is locked; SSH servers let nobody in by an empty password.
//
// The hash is in /etc/shadow when the field in /etc/passwd is "x" or there is no such field, else in /etc/passwd
// itself. An account without a line in /etc/shadow gets one. Hashes are made and recognised as SHA-512-crypt (also
// SHA-256-crypt); others, such as yescrypt, count as a password that is different from every known one.
func SetPassword(root *os.Root, s boot.Settings, now time.Time) (PasswordState, error) {
	file, hash, err := readHash(root)
	if errors.Is(err, errNoAccount) && !s.PasswordForced {
		return PasswordUnknown, nil // a tree of one program, say: nobody asked for a password
	}
	if err != nil {
		return PasswordUnknown, fmt.Errorf("set password of %s: %w", superuser, err)
	}
	want, state, err := wantedHash(hash, s)
	if err != nil {
		return PasswordUnknown, fmt.Errorf("set password of %s: %w", superuser, err)
	}
	if want == hash {
		return state, nil
	}
	if err := writeHash(root, file, want, now); err != nil {
		return PasswordUnknown, fmt.Errorf("set password of %s: %w", superuser, err)
	}
	return state, nil
}

// wantedHash returns what root's hash is to be, given the present one.
func wantedHash(hash string, s boot.Settings) (string, PasswordState, error) {
	if s.RootPassword == "" {
		if (hash == "" && !s.LoginUnasked) || (s.DefaultPassword != "" && verifies(hash, s.DefaultPassword)) {
			return locked, PasswordOff, nil
		}
		return hash, PasswordOwn, nil
	}
	if verifies(hash, s.RootPassword) {
		return hash, PasswordSet, nil
	}
	if !s.PasswordForced && !unset(hash) {
		return hash, PasswordOwn, nil
	}
	hasher, err := shacrypt.New(shacrypt.WithSHA512(), shacrypt.WithIterations(hashRounds))
	if err != nil {
		return "", PasswordUnknown, err
	}
	digest, err := hasher.Hash(s.RootPassword)
	if err != nil {
		return "", PasswordUnknown, err
	}
	return digest.Encode(), PasswordSet, nil
}

// unset says that nobody ever gave the account a password. Images mark that as "", "*", "!", "!!", "!*", "!locked",
// "!unprovisioned"; "!$6$…" in contrast is a password that passwd -l has locked.
func unset(hash string) bool {
	rest := strings.TrimLeft(hash, "*!")
	return hash == "" || hash == shadowed || (rest != hash && !strings.HasPrefix(rest, "$"))
}

// verifies says whether hash is a SHA-crypt of password.
func verifies(hash, password string) bool {
	params, ok := strings.CutPrefix(hash, "$6$")
	if !ok {
		params, ok = strings.CutPrefix(hash, "$5$")
	}
	if !ok {
		return false
	}
	if rounds, ok := strings.CutPrefix(params, "rounds="); ok {
		digits, _, _ := strings.Cut(rounds, "$")
		if n, err := strconv.ParseUint(digits, 10, 32); err != nil || n > maxRounds {
			return false
		}
	}
	digest, err := shacrypt.Decode(hash)
	return err == nil && digest.Match(password)
}

// readHash returns root's hash and the file that it is, or belongs, in.
func readHash(root *os.Root) (file, hash string, err error) {
	passwd, err := root.ReadFile(passwdFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", "", err
	}
	inPasswd, hasPasswd := accounts(passwd).field(superuser, fieldHash)
	if hasPasswd && inPasswd != shadowed {
		return passwdFile, inPasswd, nil
	}
	shadow, err := root.ReadFile(shadowFile)
	switch {
	case err == nil:
		hash, ok := accounts(shadow).field(superuser, fieldHash)
		if !ok && !hasPasswd {
			return "", "", errNoAccount
		}
		if !ok {
			hash = locked // as login programs see it: no password matches
		}
		return shadowFile, hash, nil
	case !errors.Is(err, fs.ErrNotExist):
		return "", "", err
	case hasPasswd:
		return passwdFile, inPasswd, nil
	default:
		return "", "", errNoAccount
	}
}

// writeHash puts root's hash into a file that readHash named.
func writeHash(root *os.Root, file, hash string, now time.Time) error {
	data, err := root.ReadFile(file)
	if err != nil {
		return err
	}
	day := strconv.FormatInt(now.Unix()/(24*60*60), 10)
	text := accounts(data)
	if _, ok := text.field(superuser, fieldHash); !ok {
		text = text.withLine(superuser + ":" + hash + ":" + day + ":0:99999:7:::")
	} else {
		text = text.withField(superuser, fieldHash, hash)
		if file == shadowFile && hash != locked {
			// As passwd(1) does: an old day could make login demand another password.
			text = text.withField(superuser, fieldLastChange, day)
		}
	}
	if bytes.Equal(text, data) {
		return nil
	}
	attr, err := attrOf(root, file)
	if err != nil {
		return err
	}
	return replace(root, file, text, attr)
}
