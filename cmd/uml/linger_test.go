package main

import (
	"strings"
	"testing"
	"testing/fstest"
)

func TestLingers(t *testing.T) {
	systemd := &fstest.MapFile{}
	host := fstest.MapFS{bootedBySystemd + "/x": systemd, lingerDir + "/stays": systemd}
	for _, test := range []struct {
		host      fstest.MapFS
		dir, name string
		warned    bool
	}{
		{host, "/run/user/1000/uml", "goes", true},
		{host, "/run/user/1000/uml", "stays", false},
		{host, "/tmp/uml.1000", "goes", false},
		{fstest.MapFS{}, "/run/user/1000/uml", "goes", false},
	} {
		if got := lingers(test.host, test.dir, test.name); (got != "") != test.warned ||
			test.warned && !strings.HasSuffix(got, "loginctl enable-linger goes") {
			t.Errorf("lingers(%s, %s) = %q, want one: %v", test.dir, test.name, got, test.warned)
		}
	}
}
