package boot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/cavaliergopher/cpio"
)

func testSettings() Settings {
	return Settings{
		Hostname:       "guest",
		RootPassword:   "secret",
		AuthorizedKeys: []string{"ssh-ed25519 AAAA me"},
		Hosts:          []HostsEntry{{Addr: netip.MustParseAddr("192.0.2.1"), Names: []string{"db", "db-1"}}},
		Network: &Network{
			Device: "eth0",
			Addresses: []Address{
				{Prefix: netip.MustParsePrefix("10.0.2.15/24"), Gateway: netip.MustParseAddr("10.0.2.2")},
				{Prefix: netip.MustParsePrefix("fd00:10:0:2::15/64")},
			},
			Nameservers: []netip.Addr{netip.MustParseAddr("10.0.2.3")},
			Search:      []string{"example.org"},
		},
	}
}

func TestSettingsRoundTrip(t *testing.T) {
	want := testSettings()
	data, err := want.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseSettings(data)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("ParseSettings(Marshal()) = %+v, %v, want %+v", got, err, want)
	}
	if _, err := ParseSettings([]byte("{")); err == nil {
		t.Error("ParseSettings of half an object: no error")
	}
}

// TestInitramfs reads both archives back, with a base whose length is no multiple of four.
func TestInitramfs(t *testing.T) {
	for _, length := range []int{0, 1, 2, 3, 4, 511} {
		base := filepath.Join(t.TempDir(), "base")
		content := bytes.Repeat([]byte{'x'}, length)
		if err := os.WriteFile(base, content, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := Initramfs(base, testSettings(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		start := (length + 3) / 4 * 4
		head := make([]byte, length)
		if _, err := f.ReadAt(head, 0); (err != nil && !errors.Is(err, io.EOF)) || !bytes.Equal(head, content) {
			t.Errorf("the base archive of %d bytes is not at the start: %q, %v", length, head, err)
		}
		archive := cpio.NewReader(io.NewSectionReader(f, int64(start), 1<<20))
		header, err := archive.Next()
		if err != nil || "/"+header.Name != SettingsPath || header.Mode != cpio.TypeReg|0o600 {
			t.Fatalf("base of %d bytes: first file %+v, %v, want %s, for its owner alone", length, header, err, SettingsPath)
		}
		data, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ParseSettings(data); err != nil || !reflect.DeepEqual(got, testSettings()) {
			t.Errorf("settings in the archive = %+v, %v", got, err)
		}
		if _, err := archive.Next(); !errors.Is(err, io.EOF) {
			t.Errorf("after the settings: %v, want the end of the archive", err)
		}
	}
}

// TestInitramfsHooks has each script behind the directories that it lies in.
func TestInitramfsHooks(t *testing.T) {
	base := filepath.Join(t.TempDir(), "base")
	if err := os.WriteFile(base, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Initramfs(base, testSettings(), nil,
		Hook{StageStart, "10-a.sh", []byte("one")}, Hook{StageStart, "20 b", nil}, Hook{StageStop, "10-a.sh", []byte("three")})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, got := contents(t, f)
	want := []string{
		"40700 hooks ", "40700 hooks/start ", "100700 hooks/start/10-a.sh one", "100700 hooks/start/20 b ",
		"40700 hooks/stop ", "100700 hooks/stop/10-a.sh three",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("hooks in the archive: %q, want %q", got, want)
	}
}

// contents returns the settings in the archive of f, and lists what else is there.
func contents(t *testing.T, f *os.File) (s Settings, all []string) {
	t.Helper()
	for archive := cpio.NewReader(io.NewSectionReader(f, 0, 1<<20)); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return s, all
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		if "/"+header.Name != SettingsPath {
			all = append(all, fmt.Sprintf("%o %s %s", header.Mode, header.Name, data))
			continue
		}
		if s, err = ParseSettings(data); err != nil {
			t.Fatal(err)
		}
	}
}

// TestInitramfsModules has the files of modules in the archive, and their order in the settings.
func TestInitramfsModules(t *testing.T) {
	dir := t.TempDir()
	base, b, a := filepath.Join(dir, "base"), filepath.Join(dir, "b.ko"), filepath.Join(dir, "a.ko")
	for _, name := range []string{base, b, a} {
		if err := os.WriteFile(name, []byte(filepath.Base(name)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Truncate(base, 0); err != nil {
		t.Fatal(err)
	}
	f, err := Initramfs(base, testSettings(), []string{b, a})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	settings, got := contents(t, f)
	if want := []string{"40700 modules ", "100600 modules/b.ko b.ko", "100600 modules/a.ko a.ko"}; !reflect.DeepEqual(got, want) {
		t.Errorf("modules in the archive: %q, want %q", got, want)
	}
	if want := []string{"b.ko", "a.ko"}; !reflect.DeepEqual(settings.Modules, want) {
		t.Errorf("settings name the modules %q, want %q", settings.Modules, want)
	}
	if _, err := Initramfs(base, testSettings(), []string{filepath.Join(dir, "none.ko")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Initramfs with a module that is not there: %v", err)
	}
}

func TestInitramfsMissing(t *testing.T) {
	if _, err := Initramfs("/does/not/exist", Settings{}, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Initramfs without a base: %v", err)
	}
}

func TestKeysOnly(t *testing.T) {
	for _, test := range []struct {
		s    Settings
		want bool
	}{
		{Settings{}, false},
		{Settings{RootPassword: "p"}, false},
		{Settings{AuthorizedKeys: []string{"k"}}, true},
		{Settings{RootPassword: "p", AuthorizedKeys: []string{"k"}}, false},
	} {
		if got := test.s.KeysOnly(); got != test.want {
			t.Errorf("%+v.KeysOnly() = %t, want %t", test.s, got, test.want)
		}
	}
}
