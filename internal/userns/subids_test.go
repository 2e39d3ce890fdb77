package userns

import (
	"fmt"
	"os"
	"reflect"
	"testing"
)

func TestParseSubIDs(t *testing.T) {
	for _, test := range []struct {
		text string
		want []span
	}{
		{"", nil},
		{"me:100000:65536\n", []span{{100000, 65536}}},
		{"me:100000:65536", []span{{100000, 65536}}},
		{"  me:100000:65536\t\r\n", []span{{100000, 65536}}},
		{"1001:5:6\nyou:7:8\nme:9:10\n", []span{{5, 6}, {9, 10}}},
		{"me:300:10\nme:100:10\n", []span{{300, 10}, {100, 10}}},
		{"# me:1:2\n\n:1:2\nme\nme:1\nme:1:2:3\nme:100:10\n", []span{{100, 10}}},
		{"me:-1:10\nme:x:10\nme:1:\nme::1\nme:1:0\nme: 1:1\nme:0x10:1\nme:1:+1\n", nil},
		{"me:4294967294:1\nme:4294967295:1\nme:4294967294:2\nme:1:4294967296\n", []span{{4294967294, 1}}},
		{"mee:1:2\nm:1:2\nroot:1:2\n0:1:2\n", nil},
	} {
		if got := parseSubIDs([]byte(test.text), "me", "1001", ""); !reflect.DeepEqual(got, test.want) {
			t.Errorf("parseSubIDs(%q) = %v, want %v", test.text, got, test.want)
		}
	}
}

func TestParseGetsubids(t *testing.T) {
	const text = "0: me 100000 65536\n1: me 300000 10\nError fetching ranges\n2: me x 1\n"
	want := []span{{100000, 65536}, {300000, 10}}
	if got := parseGetsubids([]byte(text)); !reflect.DeepEqual(got, want) {
		t.Errorf("parseGetsubids(%q) = %v, want %v", text, got, want)
	}
}

func TestLayOut(t *testing.T) {
	for _, test := range []struct {
		own   uint32
		spans []span
		want  []Range
	}{
		{1000, nil, []Range{{0, 1000, 1}}},
		{1000, []span{{100000, 65536}}, []Range{{0, 1000, 1}, {1, 100000, 65536}}},
		{1000, []span{{200, 5}, {100, 5}}, []Range{{0, 1000, 1}, {1, 200, 5}, {6, 100, 5}}},
		// Neither the own id nor another may appear twice.
		{102, []span{{100, 5}}, []Range{{0, 102, 1}, {1, 100, 2}, {3, 103, 2}}},
		{1000, []span{{100, 10}, {105, 10}}, []Range{{0, 1000, 1}, {1, 100, 10}, {11, 110, 5}}},
		{1000, []span{{105, 2}, {100, 10}}, []Range{{0, 1000, 1}, {1, 105, 2}, {3, 100, 5}, {8, 107, 3}}},
		{1000, []span{{100, 10}, {100, 10}}, []Range{{0, 1000, 1}, {1, 100, 10}}},
		// Inside, too, the last number is no id.
		{0, []span{{1, 1 << 31}, {1 << 31, 1 << 31}}, []Range{{0, 0, 1}, {1, 1, 1 << 31}}},
	} {
		if got := layOut(test.own, test.spans); !reflect.DeepEqual(got, test.want) {
			t.Errorf("layOut(%d, %v) = %v, want %v", test.own, test.spans, got, test.want)
		}
	}
	var many []span
	for i := range uint64(1000) {
		many = append(many, span{10 * i, 1})
	}
	if got := layOut(1, many); len(got) != maxExtents {
		t.Errorf("layOut of %d spans has %d ranges, want %d", len(many), len(got), maxExtents)
	}
}

func TestMapped(t *testing.T) {
	for text, want := range map[string]uint64{
		"":                                   0,
		"         0          0 4294967295\n": 4294967295,
		"0 1000 1\n":                         1,
		"0 1000 1\n1 100000 65536\n":         65537,
		"1 100000 65536\n0 1000 1\n":         65537,
		"1 100000 65536\n":                   0,
		"0 0 10\n11 11 10\n":                 10,
		"x\n0 1\n0 1 x\n":                    0,
	} {
		if got := mapped([]byte(text)); got != want {
			t.Errorf("mapped(%q) = %d, want %d", text, got, want)
		}
	}
}

// FuzzSubIDs holds a map made of any file to what the kernel demands of it.
func FuzzSubIDs(f *testing.F) {
	f.Add([]byte("me:100000:65536\n1001:5:6\n"), uint32(1001))
	f.Add([]byte("me:0:10\nme:5:4294967290\n"), uint32(7))
	f.Add([]byte("# comment\n\nme:1\nme:1:2:3\nme:4294967294:1\n"), uint32(4294967294))
	f.Fuzz(func(t *testing.T, data []byte, own uint32) {
		ranges := layOut(own, parseSubIDs(data, "me", fmt.Sprint(own)))
		if len(ranges) > maxExtents || ranges[0] != (Range{0, own, 1}) {
			t.Fatalf("%d ranges, the first %v", len(ranges), ranges[0])
		}
		next := uint64(0)
		for i, r := range ranges {
			outside := span{uint64(r.Outside), uint64(r.Count)}
			if uint64(r.Inside) != next || r.Count == 0 || (i > 0 && outside.end() > maxIDs) {
				t.Fatalf("range %d of %v is not what follows", i, ranges)
			}
			next += uint64(r.Count)
			for _, other := range ranges[:i] {
				if outside.start < uint64(other.Outside)+uint64(other.Count) && uint64(other.Outside) < outside.end() {
					t.Fatalf("ranges %v and %v overlap", other, r)
				}
			}
		}
		if next > maxIDs {
			t.Fatalf("%d ids", next)
		}
	})
}

func TestOutside(t *testing.T) {
	const entered = "         0       1001          1\n         1     100000      65536\n"
	for _, test := range []struct {
		text     string
		id, want int
	}{
		{entered, 0, 1001},
		{entered, 1, 100000},
		{entered, 65536, 165535},
		{entered, 65537, 65537},
		{"         0          0 4294967295\n", 1000, 1000},
		{"", 7, 7},
		{"a b c\n0 5\n7 9 1\n", 7, 9},
	} {
		if got := outsideOf([]byte(test.text), test.id); got != test.want {
			t.Errorf("outsideOf(%q, %d) = %d, want %d", test.text, test.id, got, test.want)
		}
	}
	// The namespace of the test itself, whatever it is.
	if uid, entered := Outside(); entered != (os.Geteuid() == 0 && uid != 0) {
		t.Errorf("Outside() = %d, %v", uid, entered)
	}
}
