// Package debian is the recipe of the default guest, Debian with systemd and an SSH server: the same files from which the
// Dockerfile makes it.
package debian

import (
	"embed"
	"io/fs"
	"os"
	"path/filepath"
)

// Suite is the release that the recipe is for.
const Suite = "trixie"

//go:embed setup packages units etc all:files
var recipe embed.FS

// Write writes the recipe into an existing directory. It is run by "sh setup" there, as root of a minimal system.
func Write(dir string) error {
	return fs.WalkDir(recipe, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := filepath.Join(dir, path)
		if entry.IsDir() {
			return os.MkdirAll(to, 0o755)
		}
		data, err := recipe.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(to, data, 0o644)
	})
}
