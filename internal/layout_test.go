// Package internal_test holds the packages below to the rules of docs/ARCHITECTURE.md.
package internal_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// imports lists for each package of ours those of ours that it may import. A leaf has none.
var imports = map[string][]string{
	"bench/figures": {}, "bench/work": {},
	"bench/kernels": {"bench/figures"}, "bench/load": {"bench/figures"},
	"cmd/entrypoint": {
		"internal/attach", "internal/command", "internal/config", "internal/control", "internal/slirp",
		"internal/supervisor", "internal/uml",
	},
	"cmd/guest": {"internal/agent", "internal/boot", "internal/rootfs"},
	"cmd/uml": {
		"internal/agent", "internal/builtin", "internal/command", "internal/config", "internal/control", "internal/disk",
		"internal/image", "internal/image/runconfig", "internal/pid1", "internal/slirp", "internal/supervisor", "internal/tempfile",
		"internal/uml", "internal/userns", "rootfs/debian",
	},
	"internal/agent":   {"internal/scmrights"},
	"internal/attach":  {"internal/agent"},
	"internal/balloon": {"internal/vhostuser"},
	"internal/boot":    {},
	"internal/builtin": {},
	"internal/command": {
		"internal/agent", "internal/attach", "internal/control", "internal/pid1", "internal/slirp", "internal/supervisor",
	},
	"internal/config":    {},
	"internal/control":   {},
	"internal/disk":      {"internal/tempfile"},
	"internal/image":     {"internal/image/runconfig", "internal/tempfile"},
	"internal/mconsole":  {},
	"internal/netnstest": {},
	"internal/pid1":      {},
	"internal/rootfs":    {"internal/boot"},
	"internal/scmrights": {},
	"internal/slirp":     {"internal/slirp/dhcp", "internal/slirp/dns", "internal/slirp/link"},
	"internal/slirp/dns": {}, "internal/slirp/dhcp": {}, "internal/vhostuser": {"internal/scmrights"},
	"internal/image/runconfig": {},
	"internal/slirp/link":      {"internal/vhostuser"},
	"internal/slirp/slirptest": {"internal/vhostuser/vhostusertest"},
	"internal/supervisor": {
		"internal/agent", "internal/attach", "internal/balloon", "internal/boot", "internal/config", "internal/control",
		"internal/disk", "internal/mconsole", "internal/slirp", "internal/slirp/dns", "internal/uml", "internal/vport",
	},
	"internal/tempfile":                {},
	"internal/uml":                     {},
	"internal/userns":                  {},
	"internal/uml/umltest":             {"internal/agent", "internal/vport/vporttest"},
	"internal/vhostuser/truncate":      {},
	"internal/vhostuser/vhostusertest": {"internal/vhostuser", "internal/vhostuser/truncate"},
	"internal/vport":                   {"internal/vhostuser"},
	"internal/vport/vporttest":         {"internal/vhostuser", "internal/vhostuser/vhostusertest"},
	"rootfs/debian":                    {},
}

// TestLayout checks the import rules, and that every package says what it is.
func TestLayout(t *testing.T) {
	const module = "docker-usermode-linux/"
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,Doc,GoFiles", "./...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	seen := 0
	for packages := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath, Doc  string
			Imports, GoFiles []string
		}
		if err := packages.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if len(p.GoFiles) == 0 {
			continue // tests only
		}
		seen++
		name := strings.TrimPrefix(p.ImportPath, module)
		allowed, known := imports[name]
		if !known {
			t.Errorf("package %s is not in this test's table: what may it import?", name)
		}
		if p.Doc == "" {
			t.Errorf("package %s has no doc comment", name)
		}
		for _, i := range p.Imports {
			if ours, ok := strings.CutPrefix(i, module); ok && !slices.Contains(allowed, ours) {
				t.Errorf("package %s imports %s", name, ours)
			}
		}
	}
	if seen != len(imports) {
		t.Errorf("go list shows %d packages, the table has %d", seen, len(imports))
	}
}
