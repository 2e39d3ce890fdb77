package rootfs

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"docker-usermode-linux/internal/boot"
)

// Hashes of "voidlinux", made by glibc's crypt(3).
const (
	glibcSHA512 = "$6$saltsalt$m.yXEhoabGeaMvbYqjnrBKUFjZ6qWuCPU1.U84EutJxx12gVKLgVdmrtxXa4otWC5HMRp7vLEQVBgqbm1tVRy."
	glibcSHA256 = "$5$saltsalt$FT13ffF.vN9SJCksMVKTtHmT/gh.fetbT28A9udcmE/"
	glibcRounds = "$6$rounds=1000$saltsalt$" +
		"0ZAZko9NP8PMYCAnBgT4YJGfazAe38v9F4Pv9GG.wk.giEjp7/BJKepyzbXA8tA8uSjcgQ8Z/vN0DF9SEmtNM0"
	glibcYescrypt = "$y$j9T$saltsaltsalt$Cpwd31XPU1wVCRqH4XlwTIQ/SJuXbHhiPKhtpPuoFvD"
)

var (
	byDefault = boot.Settings{RootPassword: "voidlinux", DefaultPassword: "voidlinux"}
	forced    = boot.Settings{RootPassword: "s3cret", DefaultPassword: "voidlinux", PasswordForced: true}
	off       = boot.Settings{DefaultPassword: "voidlinux"}
	unasked   = boot.Settings{DefaultPassword: "voidlinux", LoginUnasked: true}
)

func TestVerifies(t *testing.T) {
	tests := []struct {
		hash, password string
		want           bool
	}{
		{glibcSHA512, "voidlinux", true},
		{glibcSHA512, "voidlinu", false},
		{glibcSHA256, "voidlinux", true},
		{glibcRounds, "voidlinux", true},
		{glibcYescrypt, "voidlinux", false},
		{"!" + glibcSHA512, "voidlinux", false},
		{"", "", false},
		{"*", "*", false},
		{"x", "x", false},
		{"$6$", "", false},
		{"$6$salt", "", false},
		{"$6$rounds=4000000000$salt$key", "voidlinux", false},
		{"$6$rounds=$salt$key", "voidlinux", false},
	}
	for _, tt := range tests {
		if got := verifies(tt.hash, tt.password); got != tt.want {
			t.Errorf("verifies(%q, %q) = %v, want %v", tt.hash, tt.password, got, tt.want)
		}
	}
}

func FuzzVerifies(f *testing.F) {
	for _, hash := range []string{glibcSHA512, glibcSHA256, glibcRounds, glibcYescrypt, "$6$$", "$5$rounds=1$$x"} {
		f.Add(hash)
	}
	f.Fuzz(func(t *testing.T, hash string) {
		if verifies(hash, "no such password") {
			t.Errorf("verifies(%q) = true", hash)
		}
	})
}

func TestUnset(t *testing.T) {
	for _, hash := range []string{"", "x", "*", "!", "!!", "!*", "!locked", "!unprovisioned", "*LK*"} {
		if !unset(hash) {
			t.Errorf("unset(%q) = false, want true", hash)
		}
	}
	for _, hash := range []string{glibcSHA512, glibcYescrypt, "!" + glibcSHA512, "!!" + glibcYescrypt, "abJnggxhB/yWI"} {
		if unset(hash) {
			t.Errorf("unset(%q) = true, want false", hash)
		}
	}
}

func TestSetPassword(t *testing.T) {
	// kept says that the hash stays; otherwise it is locked or verifies verified.
	tests := []struct {
		name     string
		hash     string
		settings boot.Settings
		state    PasswordState
		kept     bool
		verified string
	}{
		{"default on locked", "*", byDefault, PasswordSet, false, "voidlinux"},
		{"default on empty", "", byDefault, PasswordSet, false, "voidlinux"},
		{"default again", glibcSHA512, byDefault, PasswordSet, true, ""},
		{"default on own", "$6$salt$other", byDefault, PasswordOwn, true, ""},
		{"default on yescrypt", glibcYescrypt, byDefault, PasswordOwn, true, ""},
		{"default on locked own", "!" + glibcYescrypt, byDefault, PasswordOwn, true, ""},
		{"chosen on empty", "", forced, PasswordSet, false, "s3cret"},
		{"chosen on own", glibcYescrypt, forced, PasswordSet, false, "s3cret"},
		{"chosen on default", glibcSHA512, forced, PasswordSet, false, "s3cret"},
		{"off on empty", "", off, PasswordOff, false, ""},
		{"off on default", glibcSHA512, off, PasswordOff, false, ""},
		{"off on own", glibcYescrypt, off, PasswordOwn, true, ""},
		{"off on locked", "*", off, PasswordOwn, true, ""},
		{"unasked on empty", "", unasked, PasswordOwn, true, ""},
		{"unasked on locked", "*", unasked, PasswordOwn, true, ""},
		{"unasked on own", glibcYescrypt, unasked, PasswordOwn, true, ""},
		{"unasked on default", glibcSHA512, unasked, PasswordOff, false, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			const others = "daemon:*:1:0:99999:7:::\n"
			root := newTree(t, map[string]string{
				passwdFile: passwdText,
				shadowFile: "root:" + tt.hash + ":1:0:99999:7:::\n" + others,
			})
			state, err := SetPassword(root, tt.settings, today)
			if err != nil || state != tt.state {
				t.Fatalf("SetPassword() = %v, %v, want %v", state, err, tt.state)
			}
			text := read(t, root, shadowFile)
			if !strings.HasSuffix(text, "\n"+others) {
				t.Errorf("other lines changed: %q", text)
			}
			hash, _ := accounts(text).field("root", fieldHash)
			day, _ := accounts(text).field("root", fieldLastChange)
			wantDay := "1"
			switch {
			case tt.kept:
				if hash != tt.hash {
					t.Errorf("hash = %q, want %q", hash, tt.hash)
				}
			case tt.verified == "":
				if hash != locked {
					t.Errorf("hash = %q, want %q", hash, locked)
				}
			default:
				wantDay = "20000"
				if !strings.HasPrefix(hash, "$6$") || !verifies(hash, tt.verified) {
					t.Errorf("hash = %q does not verify", hash)
				}
			}
			if day != wantDay {
				t.Errorf("day of last change = %q, want %q", day, wantDay)
			}
			if got := read(t, root, passwdFile); got != passwdText {
				t.Errorf("passwd = %q, want it unchanged", got)
			}
			checkPerm(t, root, shadowFile, 0o640)
			checkClean(t, root)
		})
	}
}

func TestSetPasswordFiles(t *testing.T) {
	tests := []struct {
		name  string
		files map[string]string
		file  string // that gets the hash; "" for errNoAccount
	}{
		{"no shadow", map[string]string{passwdFile: passwdText}, passwdFile},
		{"hash in passwd", map[string]string{passwdFile: "root::0:0::/:/bin/sh\n", shadowFile: "root:*:::\n"}, passwdFile},
		{"not in shadow", map[string]string{passwdFile: passwdText, shadowFile: "daemon:*::::::"}, shadowFile},
		{"empty shadow", map[string]string{passwdFile: passwdText, shadowFile: ""}, shadowFile},
		{"no passwd", map[string]string{shadowFile: "root:*:::\n"}, shadowFile},
		{"not in passwd", map[string]string{passwdFile: "daemon:x:1:1::/:\n", shadowFile: "root:*:::\n"}, shadowFile},
		{"no root", map[string]string{passwdFile: "daemon:x:1:1::/:/bin/sh\n", shadowFile: "daemon:*:::\n"}, ""},
		{"nothing", nil, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root := newTree(t, tt.files)
			state, err := SetPassword(root, forced, today)
			if tt.file == "" {
				if !errors.Is(err, errNoAccount) {
					t.Fatalf("SetPassword() = %v, %v, want %v", state, err, errNoAccount)
				}
				return
			}
			if err != nil || state != PasswordSet {
				t.Fatalf("SetPassword() = %v, %v, want %v", state, err, PasswordSet)
			}
			text := read(t, root, tt.file)
			if hash, _ := accounts(text).field("root", fieldHash); !verifies(hash, "s3cret") {
				t.Errorf("%s = %q does not verify the password", tt.file, text)
			}
			if old := tt.files[tt.file]; !strings.Contains(old, "root:") && !strings.HasPrefix(text, old) {
				t.Errorf("%s = %q, want a line added to %q", tt.file, text, old)
			}
			for name, old := range tt.files {
				if got := read(t, root, name); name != tt.file && got != old {
					t.Errorf("%s = %q, want %q", name, got, old)
				}
			}
		})
	}
}

func TestSetPasswordFollowsLinkInside(t *testing.T) {
	root := newTree(t, map[string]string{passwdFile: passwdText, "var/shadow": "root:*:1:::::::\n"})
	if err := os.Symlink("../var/shadow", filepath.Join(root.Name(), "etc/shadow")); err != nil {
		t.Fatal(err)
	}
	if _, err := SetPassword(root, forced, today); err != nil {
		t.Fatal(err)
	}
	if hash, _ := accounts(read(t, root, "var/shadow")).field("root", fieldHash); !verifies(hash, "s3cret") {
		t.Errorf("hash = %q does not verify", hash)
	}
	if info, err := root.Lstat(shadowFile); err != nil || info.Mode().Type() != os.ModeSymlink {
		t.Errorf("%s is no symbolic link any more: %v, %v", shadowFile, info, err)
	}
}

func TestSetPasswordRefusesLinkOutside(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "shadow")
	const text = "root:*:1:::::::\n"
	if err := os.WriteFile(outside, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	root := newTree(t, map[string]string{passwdFile: passwdText})
	for _, target := range []string{outside, "../../../../../../../../.." + outside} {
		link := filepath.Join(root.Name(), "etc/shadow")
		if err := os.Symlink(target, link); err != nil {
			t.Fatal(err)
		}
		if state, err := SetPassword(root, forced, today); err == nil {
			t.Errorf("SetPassword() with a link to %s = %v, want an error", target, state)
		}
		if err := os.Remove(link); err != nil {
			t.Fatal(err)
		}
	}
	if data, err := os.ReadFile(outside); err != nil || string(data) != text {
		t.Errorf("file outside = %q, %v, want %q", data, err, text)
	}
}

// A temporary file that a crash left behind is in nobody's way.
func TestSetPasswordAfterCrash(t *testing.T) {
	root := newTree(t, map[string]string{
		passwdFile: passwdText, shadowFile: "root:*:1:::::::\n", "etc/.shadow.docker-usermode-linux": "half",
	})
	if _, err := SetPassword(root, forced, today); err != nil {
		t.Fatal(err)
	}
	checkClean(t, root)
}

func BenchmarkSetPasswordUnchanged(b *testing.B) {
	for b.Loop() {
		if !verifies(glibcSHA512, "voidlinux") {
			b.Fatal("does not verify")
		}
	}
}
