//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// forkExecSh has a shell run /bin/true.
func forkExecSh() (float64, error) {
	const times = 200
	took, _, err := twice("sh", "-c", fmt.Sprintf("i=0; while [ $i -lt %d ]; do /bin/true; i=$((i+1)); done", times))
	return took.Seconds() * 1e3 / times, err
}

// find looks at every file below /usr.
func find() (float64, error) {
	took, out, err := twice("sh", "-c", "find /usr -type f -size +0 | wc -l")
	if err != nil {
		return 0, err
	}
	var files int
	if _, err := fmt.Sscan(out, &files); err != nil || files == 0 {
		return 0, fmt.Errorf("find has found %q files: %v", out, err)
	}
	return took.Seconds() * 1e6 / float64(files), nil
}

// gitStatus looks at every file of the tree. The first time it writes the index anew, where the copy of the root file
// system has changed the files' numbers.
func gitStatus() (float64, error) {
	took, out, err := twice("git", "-C", treeDir, "status", "--porcelain")
	if err == nil && out != "" {
		err = fmt.Errorf("git status shows changes: %s", out)
	}
	return took.Seconds() * 1e3, err
}

// compile has gcc make a program.
func compile() (float64, error) {
	const source, program = "/tmp/work.c", "/tmp/work.out"
	if err := os.WriteFile(source, []byte(cSource()), 0o644); err != nil {
		return 0, err
	}
	defer func() { _, _ = os.Remove(source), os.Remove(program) }()
	took, _, err := twice("gcc", "-O2", "-o", program, source)
	if err != nil {
		return 0, err
	}
	if out, err := output(program); err != nil || strings.TrimSpace(out) != cAnswer {
		return 0, fmt.Errorf("the program says %q, not %q: %v", out, cAnswer, err)
	}
	return took.Seconds() * 1e3, nil
}

// cFunctions is for a compiler's work of about a second on a machine of 2020.
const cFunctions, cAnswer = 100, "100"

// cSource is a C program of some thousand lines, always the same.
func cSource() string {
	var b strings.Builder
	b.WriteString("#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n")
	for i := range cFunctions {
		fmt.Fprintf(&b, `
struct s%[1]d { int a, b[%[2]d]; char name[16]; };

static int f%[1]d(const char *text, int n)
{
	struct s%[1]d s = { n, { 0 }, "" };
	snprintf(s.name, sizeof s.name, "%%s%%d", text, n);
	for (int i = 0; i < %[2]d; i++) {
		for (int k = i; k < n; k += %[3]d)
			s.b[i] += s.a * k ^ (i << %[4]d);
		switch (s.b[i] & 7) {
		case 0: s.a += i; break;
		case 1: s.a ^= s.b[(i + 1) %% %[2]d]; break;
		case 2: s.a -= (int)strlen(s.name); break;
		case 5: s.a *= 3; break;
		default: s.a++;
		}
	}
	return s.a != 0x7fffffff;
}
`, i, i%7+3, i%5+1, i%4+1)
	}
	b.WriteString("\nint main(void)\n{\n\tint n = 0;\n")
	for i := range cFunctions {
		fmt.Fprintf(&b, "\tn += f%[1]d(\"f%[1]d\", %[2]d);\n", i, i%50+10)
	}
	b.WriteString("\tprintf(\"%d\\n\", n);\n\treturn 0;\n}\n")
	return b.String()
}

// aptInstall installs a package that lies there, and removes it untimed.
func aptInstall() (float64, error) {
	files, err := filepath.Glob(filepath.Join(home, "*.deb"))
	if err != nil {
		return 0, err
	}
	if len(files) != 1 {
		return 0, fmt.Errorf("needs one package in %s, has %d", home, len(files))
	}
	name, _, _ := strings.Cut(filepath.Base(files[0]), "_")
	var took time.Duration
	for range 2 {
		began := time.Now()
		_, err := output("apt-get", "install", "-y", "-q", "-o", "Dpkg::Use-Pty=0", "-o", "APT::Sandbox::User=root", files[0])
		took = time.Since(began)
		_, purged := output("dpkg", "--purge", name)
		if err := errors.Join(err, purged); err != nil {
			return 0, err
		}
	}
	return took.Seconds() * 1e3, nil
}

// treeDir is the tree that git looks at.
const treeDir = home + "/tree"

// treeMain makes a tree of 10,000 small files in 100 directories, with one commit, packed: git would pack it behind our
// back, while others copy it.
func treeMain(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("tree: %d directories given, takes one", len(args))
	}
	const dirs, files = 100, 100
	for d := range dirs {
		dir := filepath.Join(args[0], fmt.Sprintf("part%02d", d))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		for f := range files {
			text := fmt.Sprintf("file %d of part %d\n", f, d)
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("file%02d.txt", f)), []byte(text), 0o644); err != nil {
				return err
			}
		}
	}
	if err := setEnvironment(); err != nil {
		return err
	}
	for _, command := range [][]string{
		{"init", "-q"},
		{"add", "."},
		{"-c", "user.name=bench", "-c", "user.email=bench@localhost", "-c", "gc.auto=0", "commit", "-q", "-m", "all"},
		{"gc", "-q"},
	} {
		if _, err := output("git", append([]string{"-C", args[0]}, command...)...); err != nil {
			return err
		}
	}
	return nil
}
