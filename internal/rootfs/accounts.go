package rootfs

import (
	"bytes"
	"slices"
)

// Fields of passwd(5) and shadow(5), counted from 0.
const (
	fieldHash       = 1 // both files
	fieldLastChange = 2 // shadow: day of the last change since 1970-01-01; 0 demands a change at the next login
	fieldHome       = 5 // passwd
)

// accounts is the text of a passwd(5) or shadow(5) file. Lines are never reformatted: whatever is not the edited
// field stays byte for byte.
type accounts []byte

// field returns a field of the account's first line, which is the one that the C library uses.
func (a accounts) field(user string, index int) (value string, ok bool) {
	start, end, ok := a.find(user, index)
	return string(a[start:end]), ok
}

// withField returns a copy in which a field of the account's first line is replaced. Without such a line or field
// the copy is equal.
//
// Preconditions: value holds neither a colon nor a newline.
func (a accounts) withField(user string, index int, value string) accounts {
	start, end, ok := a.find(user, index)
	if !ok {
		return slices.Clone(a)
	}
	return slices.Concat(a[:start], accounts(value), a[end:])
}

// withLine returns a copy with a line added at the end.
func (a accounts) withLine(line string) accounts {
	out := slices.Clone(a)
	if len(out) > 0 && out[len(out)-1] != '\n' {
		out = append(out, '\n')
	}
	return append(append(out, line...), '\n')
}

// find returns the offsets of a field of the account's first line.
func (a accounts) find(user string, index int) (start, end int, ok bool) {
	prefix := []byte(user + ":")
	for start = 0; start < len(a); {
		line := a[start:]
		if i := bytes.IndexByte(line, '\n'); i >= 0 {
			line = line[:i]
		}
		if !bytes.HasPrefix(line, prefix) {
			start += len(line) + 1
			continue
		}
		for ; index > 0; index-- {
			i := bytes.IndexByte(line, ':')
			if i < 0 {
				return 0, 0, false
			}
			line = line[i+1:]
			start += i + 1
		}
		if i := bytes.IndexByte(line, ':'); i >= 0 {
			line = line[:i]
		}
		return start, start + len(line), true
	}
	return 0, 0, false
}
