package rootfs

import (
	"strings"
	"testing"

	"docker-usermode-linux/internal/boot"
)

func TestSSHDDropIn(t *testing.T) {
	const (
		password = "PermitRootLogin yes\nPasswordAuthentication yes\n"
		keysOnly = "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n"
		nothing  = "PermitRootLogin prohibit-password\n"
	)
	keys := []string{"key1"}
	tests := []struct {
		name     string
		settings boot.Settings
		state    PasswordState
		want     string
	}{
		{"default password", byDefault, PasswordSet, password},
		{"chosen password", forced, PasswordSet, password},
		{"password and keys", boot.Settings{RootPassword: "x", AuthorizedKeys: keys}, PasswordSet, password},
		{"own password", byDefault, PasswordOwn, ""},
		{"own password and keys", boot.Settings{RootPassword: "x", AuthorizedKeys: keys}, PasswordOwn, ""},
		{"password not set", forced, PasswordUnknown, ""},
		{"keys only", boot.Settings{AuthorizedKeys: keys}, PasswordOff, keysOnly},
		{"keys only, own password", boot.Settings{AuthorizedKeys: keys}, PasswordOwn, keysOnly},
		{"off", off, PasswordOff, nothing},
	}
	for _, tt := range tests {
		got := sshdDropIn(tt.settings, tt.state)
		if strings.TrimPrefix(got, sshdHeader) != tt.want {
			t.Errorf("%s: sshdDropIn() = %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestSetSSHServer(t *testing.T) {
	for _, files := range []map[string]string{nil, {"etc/ssh/sshd_config": ""}, {sshdDir: "no directory"}} {
		root := newTree(t, files)
		if err := SetSSHServer(root, forced, PasswordSet); err != nil {
			t.Errorf("with %v: %v", files, err)
		}
		if _, err := root.Stat(sshdFile); err == nil {
			t.Errorf("with %v: drop-in was written", files)
		}
	}
	root := newTree(t, map[string]string{sshdDir + "/50-own.conf": ""})
	for _, settings := range []boot.Settings{forced, off} {
		if err := SetSSHServer(root, settings, PasswordSet); err != nil {
			t.Fatal(err)
		}
		if got, want := read(t, root, sshdFile), sshdDropIn(settings, PasswordSet); got != want {
			t.Errorf("drop-in = %q, want %q", got, want)
		}
		checkPerm(t, root, sshdFile, 0o644)
	}
	if err := SetSSHServer(root, unasked, PasswordOff); err != nil {
		t.Fatal(err)
	}
	if got, want := read(t, root, sshdFile), sshdDropIn(off, PasswordSet); got != want {
		t.Errorf("drop-in when nobody asked = %q, want %q, the last", got, want)
	}
	checkClean(t, root)
}
