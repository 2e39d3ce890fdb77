package mconsole

import (
	"bytes"
	"encoding"
	"reflect"
	"strings"
	"testing"
)

// words are 32-bit numbers in the machine's byte order.
func words(numbers ...uint32) []byte {
	var b []byte
	for _, n := range numbers {
		b = order.AppendUint32(b, n)
	}
	return b
}

// datagram is a header and its data.
func datagram(data string, header ...uint32) []byte { return append(words(header...), data...) }

func TestMarshal(t *testing.T) {
	long := strings.Repeat("x", 600)
	for _, test := range []struct {
		name string
		in   encoding.BinaryMarshaler
		want []byte
	}{
		{"request", Request{"cad"}, datagram("cad", magic, 2, 3)},
		{"longest request", Request{long[:511]}, datagram(long[:511], magic, 2, 511)},
		{"reply", Reply{Text: "ok"}, datagram("ok\x00", 0, 0, 3)},
		{"reply with all", Reply{Code: -16, More: true}, datagram("\x00", 0xfffffff0, 1, 1)},
		{"panic", Notification{Panic, "oops"}, datagram("oops\x00", magic, 2, 1, 5)},
		{"user", Notification{UserNotify, "hi\n"}, datagram("hi\n", magic, 2, 3, 3)},
		{"long user", Notification{UserNotify, long}, datagram(long[:512], magic, 2, 3, 512)},
	} {
		if got, err := test.in.MarshalBinary(); err != nil || !bytes.Equal(got, test.want) {
			t.Errorf("%s: MarshalBinary() = %q, %v, want %q", test.name, got, err, test.want)
		}
	}
}

func TestMarshalErrors(t *testing.T) {
	for _, test := range []struct {
		in   encoding.BinaryMarshaler
		want string
	}{
		{Request{}, "empty mconsole command"},
		{Request{strings.Repeat("x", 512)}, "mconsole command of 512 bytes is longer than 511"},
		{Request{"a\x00b"}, "mconsole command holds a NUL byte"},
		{Reply{Text: strings.Repeat("x", 512)}, "mconsole reply of 512 bytes is longer than 511"},
	} {
		if got, err := test.in.MarshalBinary(); err == nil || err.Error() != test.want {
			t.Errorf("MarshalBinary() = %q, %v, want error %q", got, err, test.want)
		}
	}
}

func TestUnmarshalRequest(t *testing.T) {
	padded := datagram("cad"+strings.Repeat("\x00", 509), magic, 2, 3)
	for _, in := range [][]byte{datagram("cad", magic, 2, 3), padded} {
		var got Request
		if err := got.UnmarshalBinary(in); err != nil || got.Command != "cad" {
			t.Errorf("UnmarshalBinary(%q) = %v, %v, want cad", in, got, err)
		}
	}
	for _, in := range [][]byte{
		nil, datagram("", magic, 2), datagram("cad", 1, 2, 3), datagram("cad", magic, 1, 3), datagram("", magic, 2, 0),
		datagram("cad", magic, 2, 4), datagram("cad", magic, 2, 0xffffffff), datagram("a\x00b", magic, 2, 3),
		datagram(strings.Repeat("x", 512), magic, 2, 512),
	} {
		var got Request
		if err := got.UnmarshalBinary(in); err == nil {
			t.Errorf("UnmarshalBinary(%q) = %v, want an error", in, got)
		}
	}
}

func TestUnmarshalReply(t *testing.T) {
	for _, test := range []struct {
		in   []byte
		want Reply
	}{
		{datagram("ok\x00", 0, 0, 3), Reply{Text: "ok"}},
		{datagram("ok", 0, 0, 2), Reply{Text: "ok"}},
		{datagram("ok\x00rest", 0, 0, 3), Reply{Text: "ok"}},
		{datagram("", 1, 7, 0), Reply{Code: 1, More: true}},
		{datagram("\x00", 0xfffffff0, 0, 1), Reply{Code: -16}},
	} {
		var got Reply
		if err := got.UnmarshalBinary(test.in); err != nil || got != test.want {
			t.Errorf("UnmarshalBinary(%q) = %+v, %v, want %+v", test.in, got, err, test.want)
		}
	}
	for _, in := range [][]byte{
		nil, words(0, 0), words(0, 0, 1), words(0, 0, 0xffffffff), datagram(strings.Repeat("x", 513), 0, 0, 513),
	} {
		var got Reply
		if err := got.UnmarshalBinary(in); err == nil {
			t.Errorf("UnmarshalBinary(%q) = %+v, want an error", in, got)
		}
	}
}

func TestUnmarshalNotification(t *testing.T) {
	for _, test := range []struct {
		in   []byte
		want Notification
	}{
		{datagram("/run/mconsole\x00", magic, 2, 0, 14), Notification{Socket, "/run/mconsole"}},
		{datagram("oops\x00", magic, 2, 1, 5), Notification{Panic, "oops"}},
		{datagram("", magic, 2, 2, 0), Notification{Hang, ""}},
		{datagram("a\xff\nb", magic, 2, 3, 4), Notification{UserNotify, "a\xff\nb"}},
		{datagram("", magic, 2, 99, 0), Notification{Kind(99), ""}},
	} {
		var got Notification
		if err := got.UnmarshalBinary(test.in); err != nil || got != test.want {
			t.Errorf("UnmarshalBinary(%q) = %+v, %v, want %+v", test.in, got, err, test.want)
		}
	}
	for _, in := range [][]byte{
		nil, words(magic, 2, 0), words(1, 2, 0, 0), words(magic, 1, 0, 0), words(magic, 2, 0, 1),
		datagram(strings.Repeat("x", 513), magic, 2, 0, 513),
	} {
		var got Notification
		if err := got.UnmarshalBinary(in); err == nil {
			t.Errorf("UnmarshalBinary(%q) = %+v, want an error", in, got)
		}
	}
}

func TestKindString(t *testing.T) {
	for kind, want := range map[Kind]string{
		Socket: "socket", Panic: "panic", Hang: "hang", UserNotify: "user", 9: "kind 9",
	} {
		if got := kind.String(); got != want {
			t.Errorf("Kind(%d).String() = %q, want %q", uint32(kind), got, want)
		}
	}
}

// A codec is one of the three kinds of datagrams.
type codec interface {
	encoding.BinaryMarshaler
	encoding.BinaryUnmarshaler
}

// fuzzCodec checks that what decodes encodes again, to something that decodes to the same.
func fuzzCodec[T any, P interface {
	*T
	codec
}](f *testing.F, seeds ...[]byte) {
	f.Add([]byte(nil))
	for _, seed := range seeds {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var first, second T
		if P(&first).UnmarshalBinary(b) != nil {
			return
		}
		encoded, err := P(&first).MarshalBinary()
		if err != nil && len(b) >= maxData {
			return // 512 bytes without a NUL decode, but the NUL would not fit
		}
		if err != nil {
			t.Fatalf("MarshalBinary() of %+v = %v, want what came from %q", first, err, b)
		}
		if err := P(&second).UnmarshalBinary(encoded); err != nil || !reflect.DeepEqual(first, second) {
			t.Errorf("UnmarshalBinary(%q) = %+v, %v, want %+v", encoded, second, err, first)
		}
	})
}

func FuzzRequest(f *testing.F) { fuzzCodec[Request](f, datagram("cad", magic, 2, 3)) }

func FuzzReply(f *testing.F) {
	fuzzCodec[Reply](f, datagram("ok\x00", 0, 1, 3), datagram(strings.Repeat("x", 512), 1, 0, 512))
}

func FuzzNotification(f *testing.F) {
	fuzzCodec[Notification](f, datagram("oops\x00", magic, 2, 1, 5), datagram("a\x00b\x00\x00", magic, 2, 3, 5))
}
