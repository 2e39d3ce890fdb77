package uml

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// moduleOf names the module (modules.dep(5)) of each option that may as well be one: the guest stage loads them before
// anything else. HOSTFS and VIRTIO_UML are not among them. As modules they are in the guest's hands: the one knows no hostfs=
// then, which keeps it within a directory, and the other connects to any socket of the host.
var moduleOf = map[string]string{
	"VIRTIO_CONSOLE": "virtio_console",
	"VIRTIO_NET":     "virtio_net",
	"VIRTIO_BALLOON": "virtio_balloon",
	"IPV6":           "ipv6",
	"OVERLAY_FS":     "overlay",
}

// moduleDirs returns where a kernel's modules may be installed: with it, as PREFIX/bin/linux.uml or in the tree where it was
// built, or where Debian and modules_install put them.
func moduleDirs(kernel, release string) []string {
	var parents []string
	if resolved, err := filepath.EvalSymlinks(kernel); err == nil {
		dir := filepath.Dir(resolved)
		prefix := filepath.Dir(dir)
		parents = []string{filepath.Join(prefix, "lib/uml/modules"), filepath.Join(prefix, "lib/modules"), filepath.Join(dir, "lib/modules")}
	}
	var dirs []string
	for _, parent := range append(parents, "/usr/lib/uml/modules", "/lib/modules") {
		if dir := filepath.Join(parent, release); !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// release asks a kernel for its version, such as "6.1.176".
func release(ctx context.Context, kernel string) (string, error) {
	out, err := exec.CommandContext(ctx, kernel, "--version").Output()
	if err != nil {
		return "", err
	}
	name := strings.TrimSpace(string(out))
	if name == "" || name != filepath.Base(name) || name == ".." {
		return "", errors.New("it tells no version")
	}
	return name, nil
}

// dependencies are the modules that there are, by name, each with its own file first and then those of the modules that it
// needs, as in a line of modules.dep.
type dependencies map[string][]string

// readDependencies reads the modules.dep of a directory. Files are paths that begin with it.
func readDependencies(dir string) (dependencies, error) {
	file, err := os.Open(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return parseDependencies(file, dir)
}

func parseDependencies(text io.Reader, dir string) (dependencies, error) {
	all := dependencies{}
	lines := bufio.NewScanner(text)
	lines.Buffer(nil, 1<<20) // a module that needs thousands of others
	for lines.Scan() {
		file, needs, ok := strings.Cut(lines.Text(), ":")
		if !ok || path.Ext(file) != ".ko" { // finit_module(2) takes no compressed ones as they are
			continue
		}
		files := append([]string{file}, strings.Fields(needs)...)
		for i, name := range files {
			if !path.IsAbs(name) {
				files[i] = path.Join(dir, name)
			}
		}
		all[moduleName(file)] = files
	}
	return all, lines.Err()
}

// moduleName is the name of the module in a file, as the kernel has it: "virtio_net" for "…/virtio-net.ko".
func moduleName(file string) string {
	return strings.ReplaceAll(strings.TrimSuffix(path.Base(file), ".ko"), "-", "_")
}

// usable says that a module is there with all that it needs, for a modules.dep may be older than what lies beside it.
func (d dependencies) usable(module string) bool {
	return d[module] != nil && !slices.ContainsFunc(d[module], func(file string) bool {
		info, err := os.Stat(file)
		return err != nil || !info.Mode().IsRegular()
	})
}

// load appends to files those that a module needs, in the order in which they are to be loaded, and its own.
func (d dependencies) load(files []string, module string) []string {
	for _, file := range slices.Backward(d[module]) {
		if !slices.Contains(files, file) {
			files = append(files, file)
		}
	}
	return files
}
