package agent

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/go-crypt/crypt"
	"github.com/go-crypt/crypt/algorithm/bcrypt"
	"github.com/go-crypt/crypt/algorithm/md5crypt"
	"github.com/go-crypt/crypt/algorithm/shacrypt"
	"github.com/go-crypt/x/yescrypt"
	"golang.org/x/sys/unix"
)

// What a hash may cost at most. Administrators who have chosen more are told in the log; a typing mistake of theirs
// must not stop the guest.
const (
	maxSHARounds  = 1_000_000 // 0.5 s
	maxBcryptCost = 15        // 2 s
	maxYescrypt   = 256 << 20 // bytes of memory
)

// defaultYescrypt is the memory of a hash with the default settings, "j9T", in bytes.
const defaultYescrypt = 16 << 20

// maxHashMemory is how many bytes a hash may take of a machine with that many: a quarter, for others run there, too. One
// with the default settings is always possible, so that a small guest has a login.
func maxHashMemory(total uint64) uint64 {
	return min(maxYescrypt, max(defaultYescrypt, total/4))
}

// totalMemory is the machine's, in bytes, or what no hash exceeds if that is not known.
func totalMemory() uint64 {
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) != nil {
		return 4 * maxYescrypt
	}
	return uint64(info.Totalram) * uint64(info.Unit)
}

var errWrongPassword = errors.New("wrong password")

// verify returns nil if hash, as of crypt(5), is one of password. Kinds: yescrypt, SHA-512, SHA-256, bcrypt and MD5.
func verify(hash, password string) error {
	switch kind := kindOf(hash); kind {
	case "", "x":
		return errors.New("the account has an empty password, which opens nothing here")
	case "*":
		return errors.New("the account has no password")
	case "y":
		return verifyYescrypt(hash, password, maxHashMemory(totalMemory()))
	case "1", "5", "6", "2a", "2b", "2y":
		if err := checkCost(kind, hash); err != nil {
			return err
		}
		decoder := crypt.NewDecoder()
		if err := errors.Join(shacrypt.RegisterDecoder(decoder), bcrypt.RegisterDecoderStandard(decoder),
			md5crypt.RegisterDecoderCommon(decoder)); err != nil {
			return err
		}
		digest, err := decoder.Decode(hash)
		if err != nil {
			return errors.New("the hash of the password is malformed") // err would hold parts of it
		}
		if !digest.Match(password) {
			return errWrongPassword
		}
		return nil
	default:
		return errors.New("the hash of the password is of an unknown kind, use yescrypt or SHA-512")
	}
}

// kindOf returns the identifier of a hash, "*" for one that matches nothing, and "?" for what is unknown.
func kindOf(hash string) string {
	switch {
	case hash == "" || hash == "x":
		return hash
	case hash[0] == '*' || hash[0] == '!':
		return "*"
	case hash[0] != '$':
		return "?"
	}
	kind, _, _ := strings.Cut(hash[1:], "$")
	if kind == "" {
		return "?"
	}
	return kind
}

// checkCost reports a hash that takes too long.
func checkCost(kind, hash string) error {
	fields := strings.Split(hash, "$")
	if len(fields) < 3 {
		return nil // the decoder's to report
	}
	limit, cost := uint64(maxBcryptCost), fields[2]
	if kind == "5" || kind == "6" {
		rounds, ok := strings.CutPrefix(fields[2], "rounds=")
		if !ok {
			return nil
		}
		limit, cost = maxSHARounds, rounds
	} else if kind == "1" {
		return nil
	}
	if n, err := strconv.ParseUint(cost, 10, 32); err != nil || n > limit {
		return fmt.Errorf("the hash of the password takes %.12q rounds, at most %d are possible", cost, limit)
	}
	return nil
}

// verifyYescrypt is verify for "$y$", of which package crypt has no decoder. limit is in bytes of memory.
func verifyYescrypt(hash, password string, limit uint64) error {
	fields := strings.Split(hash, "$")
	if len(fields) != 5 {
		return errors.New("the hash of the password is malformed")
	}
	_, logN, r, err := yescrypt.DecodeSetting([]byte(fields[2]))
	if err != nil {
		return errors.New("the hash of the password is malformed, or of a kind of yescrypt that is not known")
	}
	// 128 r N bytes, as in RFC 7914.
	if logN < 0 || logN > 30 || r <= 0 || uint64(128*r)<<logN > limit {
		return fmt.Errorf("the hash of the password takes more than %d MiB, which is all that it may here", limit>>20)
	}
	again, err := yescrypt.Hash([]byte(password), []byte(hash))
	if err != nil {
		return errors.New("the hash of the password is malformed")
	}
	if subtle.ConstantTimeCompare(again, []byte(hash)) != 1 {
		return errWrongPassword
	}
	return nil
}
