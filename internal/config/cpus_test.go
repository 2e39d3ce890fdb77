package config

import (
	"strings"
	"testing"
	"testing/fstest"
)

func TestParseCPUs(t *testing.T) {
	for _, test := range []struct {
		text      string
		userspace Userspace
		allowed   int
		want      int
		problem   string
	}{
		{"auto", UserspaceAuto, 2, 2, ""},
		{"Auto", UserspaceAuto, 96, 8, ""},
		{"auto", UserspacePtrace, 4, 1, ""},
		{"1", UserspacePtrace, 4, 1, ""},
		{"16", UserspaceSeccomp, 2, 16, ""},
		{" 3 ", UserspaceAuto, 2, 3, ""},
		{"2", UserspacePtrace, 4, 1, "write CPUS=1, or USERSPACE=seccomp"},
		{"0", UserspaceAuto, 4, 1, "write 1 to 64"},
		{"65", UserspaceAuto, 4, 1, "write 1 to 64"},
		{"1.5", UserspaceAuto, 4, 1, "write 1 to 64"},
	} {
		got, err := parseCPUs(test.text, test.userspace, func() int { return test.allowed })
		problem := ""
		if err != nil {
			problem = err.Error()
		}
		if got != test.want || (test.problem == "") != (err == nil) || !strings.Contains(problem, test.problem) {
			t.Errorf("parseCPUs(%q, %v, %d) = %d, %q, want %d, %q",
				test.text, test.userspace, test.allowed, got, problem, test.want, test.problem)
		}
	}
}

func TestCPUQuota(t *testing.T) {
	const v2, v1, period = "cpu.max", "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"
	for _, test := range []struct {
		name   string
		files  map[string]string
		want   int
		wantOK bool
	}{
		{"no cgroup", nil, 0, false},
		{"v2, two CPUs", map[string]string{v2: "200000 100000\n"}, 2, true},
		{"v2, one and a half", map[string]string{v2: "150000 100000\n"}, 2, true},
		{"v2, a tenth", map[string]string{v2: "10000 100000\n"}, 1, true},
		{"v2 without a quota", map[string]string{v2: "max 100000\n"}, 0, false},
		{"v1, one CPU", map[string]string{v1: "50000\n", period: "50000\n"}, 1, true},
		{"v1 without a quota", map[string]string{v1: "-1\n", period: "100000\n"}, 0, false},
		{"v1 without a period", map[string]string{v1: "100000\n"}, 0, false},
		{"v1, no period at all", map[string]string{v1: "100000\n", period: "0\n"}, 0, false},
	} {
		root := fstest.MapFS{}
		for name, content := range test.files {
			root[name] = &fstest.MapFile{Data: []byte(content)}
		}
		if got, ok := cpuQuota(root); got != test.want || ok != test.wantOK {
			t.Errorf("%s: cpuQuota() = %d, %v, want %d, %v", test.name, got, ok, test.want, test.wantOK)
		}
	}
	if got := allowedCPUs(fstest.MapFS{v2: {Data: []byte("10000 100000\n")}}); got != 1 {
		t.Errorf("allowedCPUs() with a tenth of a CPU = %d, want 1", got)
	}
}
