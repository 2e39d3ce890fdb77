package config

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestLoadSecretFiles has the content of a secret in no message, and what comes from a file count as the user's choice.
func TestLoadSecretFiles(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for name, content := range map[string]string{
		"good": "hunter2 \n", "crlf": "hunter2\r\n", "bare": "hunter2", "two": "hunter2\n\n", "empty": "", "blank": "\n",
		"nul": "hunter2\x00", "latin": "hunter2\xe4", "long": strings.Repeat("hunter2", 100), "keys": keyA + "\n" + keyB + "\n",
		"longest": strings.Repeat("x", maxPassword) + "\r\n", "longer": strings.Repeat("x", maxPassword+1), "default": DefaultRootPassword,
	} {
		if err := os.WriteFile(at(name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(at("pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	const password, keys = "ROOT_PASSWORD", "SSH_AUTHORIZED_KEYS"
	for _, test := range []struct {
		name, file   string
		value        string // of the setting without _FILE
		wantPassword string
		wantKeys     []string
		wantErr      string // after NAME_FILE="PATH": unless it begins with a name
	}{
		{password, at("good"), "", "hunter2 ", nil, ""},
		{password, at("crlf"), "", "hunter2", nil, ""},
		{password, at("bare"), "", "hunter2", nil, ""},
		{password, at("default"), "", DefaultRootPassword, nil, ""},
		{password, at("longest"), "", strings.Repeat("x", maxPassword), nil, ""},
		{password, at("longer"), "", "", nil, "is 512 bytes long; write at most 511"},
		{password, at("two"), "", "", nil, "holds a line break or a NUL byte, which nobody can type at a login; leave it out"},
		{password, at("nul"), "", "", nil, "holds a line break or a NUL byte, which nobody can type at a login; leave it out"},
		{password, at("latin"), "", "", nil, "is not valid UTF-8; write it in UTF-8"},
		{password, at("long"), "", "", nil, "longer than a password of 511 bytes; give a file with the password alone"},
		{password, "/dev/zero", "", "", nil, "longer than a password of 511 bytes; give a file with the password alone"},
		{password, at("empty"), "", "", nil, "the file is empty; write the password into it"},
		{password, at("blank"), "", "", nil, "the file is empty; write the password into it"},
		{password, at("pipe"), "", "", nil, "the file is empty; write the password into it"}, // nobody writes
		{password, dir, "", "", nil, "is a directory; mount a file with the password there"},
		{password, at("none"), "", "", nil, "no such file or directory; mount a file with the password there"},
		{password, "hunter2", "", "", nil, "ROOT_PASSWORD_FILE: not an absolute path; begin it with a /"},
		{password, at("good"), "hunter2", "", nil, "ROOT_PASSWORD and ROOT_PASSWORD_FILE are both set; unset one of the two"},
		{keys, at("keys"), "", "", []string{keyA, keyB}, ""},
		{keys, at("empty"), "", "", nil, "holds no key; write one per line, like ssh-ed25519 AAAA... me@example"},
		{keys, at("good"), "", "", nil, "line 1 is not a public key; write one per line, like ssh-ed25519 AAAA... me@example"},
		{keys, "/dev/zero", "", "", nil, "longer than 1M; give a file with public keys"},
		{keys, at("none"), "", "", nil, "no such file or directory; mount a file with public keys there"},
		{keys, keyA, "", "", nil, "SSH_AUTHORIZED_KEYS_FILE: not an absolute path; begin it with a /"},
		{keys, at("keys"), keyA, "", nil, "SSH_AUTHORIZED_KEYS and SSH_AUTHORIZED_KEYS_FILE are both set; unset one of the two"},
	} {
		c, err := loadWith(t, map[string]string{test.name: test.value, test.name + "_FILE": test.file})
		got, want := "", test.wantErr
		if err != nil {
			got = err.Error()
		}
		if want != "" && !strings.HasPrefix(want, test.name) {
			want = fmt.Sprintf("%s_FILE=%q: %s", test.name, test.file, want)
		}
		if got != want {
			t.Errorf("Load() with %s_FILE=%s = error %q, want %q", test.name, test.file, got, want)
		}
		if c.PasswordDefault || c.RootPassword != test.wantPassword || !reflect.DeepEqual(c.AuthorizedKeys, test.wantKeys) {
			t.Errorf("Load() with %s_FILE=%s = password %q, default %v, keys %q", test.name, test.file, c.RootPassword,
				c.PasswordDefault, c.AuthorizedKeys)
		}
		if strings.Contains(got, "hunter2") {
			t.Errorf("Load() shows the password: %s", got)
		}
	}
}

func TestLoadSecretFileUnreadable(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("root reads everything")
	}
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte("hunter2"), 0); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("ROOT_PASSWORD_FILE=%q: permission denied for user %d; mount a file with the password there", path, os.Getuid())
	if _, err := loadWith(t, map[string]string{"ROOT_PASSWORD_FILE": path}); err == nil || err.Error() != want {
		t.Errorf("Load() = %v, want %s", err, want)
	}
}
