package config

import (
	"testing"
	"testing/fstest"
)

func TestMemoryLimit(t *testing.T) {
	const v2, v1 = "memory.max", "memory/memory.limit_in_bytes"
	for _, test := range []struct {
		name, path, content string
		want                uint64
		wantOK              bool
	}{
		{"no cgroup", "x", "", 0, false},
		{"v2 limit", v2, "209715200\n", 200 << 20, true},
		{"v2 without a limit", v2, "max\n", 0, false},
		{"v2 garbage", v2, "-1\n", 0, false},
		{"v1 limit", v1, "209715200\n", 200 << 20, true},
		{"v1 without a limit, 4k pages", v1, "9223372036854771712\n", 0, false},
		{"v1 without a limit, 64k pages", v1, "9223372036854710272\n", 0, false},
		{"v1 empty", v1, "", 0, false},
	} {
		root := fstest.MapFS{test.path: {Data: []byte(test.content)}}
		if got, ok := MemoryLimit(root); got != test.want || ok != test.wantOK {
			t.Errorf("%s: MemoryLimit() = %d, %v, want %d, %v", test.name, got, ok, test.want, test.wantOK)
		}
	}
}
