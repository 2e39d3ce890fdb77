package userns

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// newHost is one on which user me, 1001, has what is needed, but for the files given.
func newHost(t *testing.T, files map[string]string) host {
	t.Helper()
	root := t.TempDir()
	all := map[string]string{
		"/etc/subuid": "me:100000:65536\n", "/etc/subgid": "1001:200000:65536\n",
		"/proc/sys/user/max_user_namespaces": "1000\n",
	}
	for name, text := range files {
		all[name] = text
	}
	for name, text := range all {
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return host{
		root: root, uid: 1001, gid: 100, euid: 1001, name: "me",
		lookPath: func(name string) (string, error) { return "/usr/bin/" + name, nil },
		subIDs:   func(string, string) []span { return nil },
	}
}

func TestFind(t *testing.T) {
	want := Mapping{
		UIDs:      []Range{{0, 1001, 1}, {1, 100000, 65536}},
		GIDs:      []Range{{0, 100, 1}, {1, 200000, 65536}},
		newuidmap: "/usr/bin/newuidmap", newgidmap: "/usr/bin/newgidmap",
	}
	if got, err := newHost(t, nil).find(); err != nil || !reflect.DeepEqual(got, want) || !got.Needed() {
		t.Errorf("find() = %v, %v, want %v", got, err, want)
	}
}

// Ids may come from elsewhere than the files.
func TestFindByGetsubids(t *testing.T) {
	h := newHost(t, map[string]string{"/etc/subuid": "", "/etc/subgid": ""})
	h.subIDs = func(option, name string) []span {
		return map[string][]span{"-u me": {{300000, 70000}}, "-g me": {{400000, 70000}}}[option+" "+name]
	}
	got, err := h.find()
	if err != nil || got.UIDs[1] != (Range{1, 300000, 70000}) || got.GIDs[1] != (Range{1, 400000, 70000}) {
		t.Errorf("find() = %v, %v", got, err)
	}
}

func TestFindNot(t *testing.T) {
	for _, test := range []struct {
		name   string
		files  map[string]string
		change func(*host)
		want   error
		text   string
	}{
		{
			name: "no range", files: map[string]string{"/etc/subuid": "you:100000:65536\n"},
			want: ErrNoRange, text: "user me has 0 in /etc/subuid, needs 65535: add a range that nobody else has, as root: " +
				"usermod --add-subuids 100000-165535 me",
		},
		{
			name: "small range", files: map[string]string{"/etc/subgid": "me:100000:65534\n"},
			want: ErrNoRange, text: "user me has 65534 in /etc/subgid, needs 65535: add a range that nobody else has, as root: " +
				"usermod --add-subgids",
		},
		{
			name: "no file", change: func(h *host) { _ = os.Remove(filepath.Join(h.root, "/etc/subuid")) },
			want: ErrNoRange, text: "user me has 0 in /etc/subuid",
		},
		{
			name: "no helper", change: func(h *host) {
				h.lookPath = func(name string) (string, error) {
					if name == "newgidmap" {
						return "", os.ErrNotExist
					}
					return name, nil
				}
			},
			want: ErrNoHelper, text: "newgidmap is not installed: install package uidmap",
		},
		{
			name: "no new privileges", change: func(h *host) { h.noNewPrivs = 1 },
			want: ErrNoHelper, text: "/usr/bin/newuidmap would get no privilege, as this process has no_new_privs set",
		},
		{
			name: "no namespaces", files: map[string]string{"/proc/sys/user/max_user_namespaces": "0\n"},
			want: ErrForbidden, text: "sysctl user.max_user_namespaces is 0",
		},
		{
			name: "no namespaces by Debian", files: map[string]string{"/proc/sys/kernel/unprivileged_userns_clone": "0\n"},
			want: ErrForbidden, text: "sysctl kernel.unprivileged_userns_clone is 0",
		},
		{
			name:   "root of one id",
			files:  map[string]string{"/proc/self/uid_map": "0 0 4294967295\n", "/proc/self/gid_map": "0 1000 1\n"},
			change: func(h *host) { h.euid = 0 },
			want:   ErrNoRange, text: "/proc/self/gid_map has ids up to 0, but 65535 is needed",
		},
	} {
		h := newHost(t, test.files)
		if test.change != nil {
			test.change(&h)
		}
		got, err := h.find()
		if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) || got.Needed() {
			t.Errorf("%s: find() = %v, %v, want %v with %q", test.name, got, err, test.want, test.text)
		}
	}
}

func TestFindRoot(t *testing.T) {
	h := newHost(t, map[string]string{"/proc/self/uid_map": "0 0 4294967295\n", "/proc/self/gid_map": "0 1 1\n1 5 65535\n"})
	h.euid = 0
	if got, err := h.find(); err != nil || got.Needed() {
		t.Errorf("find() = %v, %v, want nothing to be needed", got, err)
	}
}

func TestCheckProfile(t *testing.T) {
	for label, restricted := range map[string]bool{
		"unconfined": false, "": false, "uml (unconfined)": false, "docker-default (enforce)": false,
		"unprivileged_userns (enforce)": true, "uml//&unprivileged_userns (enforce)": true,
	} {
		if err := checkProfile(label); errors.Is(err, ErrForbidden) != restricted {
			t.Errorf("checkProfile(%q) = %v, want an error: %t", label, err, restricted)
		}
	}
}
