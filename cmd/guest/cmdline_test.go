//go:build linux

package main

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestParseCmdline(t *testing.T) {
	tests := []struct {
		text string
		want cmdline
	}{
		{"", cmdline{}},
		{"con0=fd:0,fd:1 root=98:0 console=tty0\n", cmdline{}},
		{"init=/bin/sh quiet", cmdline{init: "/bin/sh"}},
		{"init=/a init=/b", cmdline{init: "/b"}},
		{"init=", cmdline{}},
		{"root=/dev/ubda ro", cmdline{root: "/dev/ubda", readOnly: true}},
		{"ro rw", cmdline{}},
		{
			"root=/dev/root rootfstype=hostfs rootflags=/sub",
			cmdline{root: "/dev/root", rootTypes: []string{"hostfs"}, rootFlags: "/sub"},
		},
		{"rootfstype=ext4,,xfs", cmdline{rootTypes: []string{"ext4", "xfs"}}},
		{"rootflags=a=b,c", cmdline{rootFlags: "a=b,c"}},
		{`rootflags="/a b" ro`, cmdline{rootFlags: "/a b", readOnly: true}},
		{`"rootflags=/a b" ro`, cmdline{rootFlags: "/a b", readOnly: true}},
		{"root=PARTUUID=12-01", cmdline{root: "PARTUUID=12-01"}},
		{"ro -- rw init=/bin/sh", cmdline{readOnly: true}},
		{"rootwait=7", cmdline{rootWait: 7 * time.Second}},
		{"rootwait", cmdline{unreadable: []string{"rootwait"}}},
		{"rootwait=soon", cmdline{unreadable: []string{"rootwait=soon"}}},
	}
	for _, tt := range tests {
		want := tt.want
		if want.rootWait == 0 {
			want.rootWait = defaultRootWait
		}
		if got := parseCmdline(tt.text); !reflect.DeepEqual(got, want) {
			t.Errorf("parseCmdline(%q) = %+v, want %+v", tt.text, got, want)
		}
	}
}

func TestSplitParams(t *testing.T) {
	tests := []struct {
		text string
		want []string
	}{
		{"", nil},
		{"  \t\n", nil},
		{"a  b\tc\n", []string{"a", "b", "c"}},
		{`a="b c" d`, []string{"a=b c", "d"}},
		{`"a=b c" d`, []string{"a=b c", "d"}},
		{`a="" b`, []string{"a=", "b"}},
		{`a="b c`, []string{"a=b c"}},
	}
	for _, tt := range tests {
		if got := splitParams(tt.text); !slices.Equal(got, tt.want) {
			t.Errorf("splitParams(%q) = %q, want %q", tt.text, got, tt.want)
		}
	}
}

func FuzzSplitParams(f *testing.F) {
	f.Add(`a="b c" d -- "e`)
	f.Fuzz(func(t *testing.T, text string) {
		params := splitParams(text)
		joined := strings.Join(params, "")
		if strings.Contains(joined, `"`) {
			t.Errorf("splitParams(%q) = %q kept a quote", text, params)
		}
		if !strings.Contains(text, `"`) && utf8.ValidString(text) && joined != strings.Map(dropSpace, text) {
			t.Errorf("splitParams(%q) = %q lost something", text, params)
		}
	})
}

func dropSpace(r rune) rune {
	if strings.ContainsRune(" \t\n\v\f\r", r) {
		return -1
	}
	return r
}
