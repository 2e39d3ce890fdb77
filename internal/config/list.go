package config

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A piece is a part of a setting's value that knows where it stands, so that an error can point there.
type piece struct {
	text string
	at   int // offset in the value, in bytes
}

func (p piece) to(i int) piece   { return piece{p.text[:i], p.at} }
func (p piece) from(i int) piece { return piece{p.text[i:], p.at + i} }

// cut is strings.Cut.
func (p piece) cut(separator string) (before, after piece, found bool) {
	i := strings.Index(p.text, separator)
	if i < 0 {
		return p, p.from(len(p.text)), false
	}
	return p.to(i), p.from(i + len(separator)), true
}

// cutPrefix is strings.CutPrefix.
func (p piece) cutPrefix(prefix string) (after piece, found bool) {
	if !strings.HasPrefix(p.text, prefix) {
		return p, false
	}
	return p.from(len(prefix)), true
}

// is compares with a word of the grammar, which may be written in either case.
func (p piece) is(word string) bool { return strings.EqualFold(p.text, word) }

// errorf is fmt.Errorf for what is wrong at the beginning of p.
func (p piece) errorf(format string, args ...any) error {
	return pieceError{fmt.Errorf(format, args...), p.at}
}

// A pieceError is an error and its place in the value.
type pieceError struct {
	error
	at int
}

// A list is a value whose items are separated by blanks or commas.
type list struct {
	value string
	items []piece
}

func splitList(value string) list {
	isSeparator := func(r rune) bool { return r == ',' || unicode.IsSpace(r) }
	isText := func(r rune) bool { return !isSeparator(r) }
	l := list{value: value}
	rest := piece{text: value}
	for {
		start := strings.IndexFunc(rest.text, isText)
		if start < 0 {
			return l
		}
		rest = rest.from(start)
		end := strings.IndexFunc(rest.text, isSeparator)
		if end < 0 {
			end = len(rest.text)
		}
		l.items = append(l.items, rest.to(end))
		rest = rest.from(end)
	}
}

// name is how a message refers to item i.
func (l list) name(i int) string { return fmt.Sprintf("item %d, %q", i+1, l.items[i].text) }

// problem puts the place before an error of item i: the item, if there are others, and the character, counted from
// 1 in the whole value. It is the item's first one unless the error knows better.
func (l list) problem(i int, err error) error {
	at := l.items[i].at
	if inner, ok := errors.AsType[pieceError](err); ok {
		at = inner.at
	}
	err = fmt.Errorf("character %d: %w", utf8.RuneCountInString(l.value[:at])+1, err)
	if len(l.items) > 1 {
		err = fmt.Errorf("%s, %w", l.name(i), err)
	}
	return err
}
