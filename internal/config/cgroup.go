package config

import (
	"io/fs"
	"math"
	"strconv"
	"strings"
)

// noLimitV1 is where cgroup v1 limits stop being limits, in bytes. "Unlimited" reads as the largest multiple of
// the page size below 1<<63 (PAGE_COUNTER_MAX, include/linux/page_counter.h), which depends on the page size.
const noLimitV1 = math.MaxInt64 / 2

// MemoryLimit is the memory limit in bytes of the cgroup at root, which is /sys/fs/cgroup in a container; ok is
// false when there is none. Both versions of cgroups are known. Limits of the groups above are not visible from
// inside a container and do not count.
func MemoryLimit(root fs.FS) (limit uint64, ok bool) {
	if limit, ok = readLimit(root, "memory.max"); ok {
		return limit, true
	}
	if limit, ok = readLimit(root, "memory/memory.limit_in_bytes"); ok && limit < noLimitV1 {
		return limit, true
	}
	return 0, false
}

// readLimit fails on version 2's "max", as on all that is no number.
func readLimit(root fs.FS, name string) (uint64, bool) {
	data, err := fs.ReadFile(root, name)
	if err != nil {
		return 0, false
	}
	limit, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
	return limit, err == nil
}
