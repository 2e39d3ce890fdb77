package scmrights

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParse(t *testing.T) {
	rights, credentials := unix.UnixRights(3, 4), unix.UnixCredentials(&unix.Ucred{Pid: 1})
	for _, test := range []struct {
		what string
		oob  []byte
		want []int
	}{
		{"nothing", nil, nil},
		{"two", rights, []int{3, 4}},
		{"credentials", credentials, nil},
		{"credentials before two", slices.Concat(credentials, rights), []int{3, 4}},
		{"twice", slices.Concat(unix.UnixRights(5), rights), []int{5, 3, 4}},
	} {
		if got, err := Parse(test.oob); err != nil || !slices.Equal(got, test.want) {
			t.Errorf("%s: Parse = %v, %v, want %v", test.what, got, err, test.want)
		}
	}
	if _, err := Parse(rights[:len(rights)-5]); err == nil {
		t.Error("Parse of a message that is cut off succeeds")
	}
}
