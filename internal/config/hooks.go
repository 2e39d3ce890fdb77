package config

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// The scripts lie in the guest's RAM until they have run, some of them until its end.
const (
	maxHook  = 1 << 20 // one script, in bytes
	maxHooks = 8 << 20 // all of them
)

// stopDir is the subdirectory of HOOKS with the scripts for the stop.
const stopDir = "stop"

// Hooks are the user's scripts that run in the guest, each list in lexical order of their names.
type Hooks struct {
	// Start run before the guest's init, Stop when the guest is to stop.
	Start, Stop []Hook
	// Skipped are the files that are none.
	Skipped []SkippedHook
}

// Hook is one script.
type Hook struct {
	Name   string
	Script []byte
}

// SkippedHook is a file that is left out, and why.
type SkippedHook struct {
	// Name is relative to HOOKS.
	Name, Reason string
	// Debris says that nobody will have meant it to run: what editors and package managers leave behind.
	Debris bool
}

// parseHooks reads the directory that HOOKS names, or without one the default, which need not exist.
func parseHooks(value string) (Hooks, []error) {
	var h Hooks
	dir, err := parsePath(cmp.Or(value, defaultHooks))
	if err != nil {
		return Hooks{}, []error{err}
	}
	switch _, err := os.Lstat(dir); {
	case errors.Is(err, fs.ErrNotExist) && value == "":
		return Hooks{}, nil
	case errors.Is(err, fs.ErrNotExist):
		return Hooks{}, []error{fmt.Errorf("%w; mount a directory with scripts there", cause(err))}
	}
	room := int64(maxHooks)
	var errs, more []error
	h.Start, errs = h.read(dir, "", &room)
	if len(errs) == 0 {
		switch info, err := os.Stat(filepath.Join(dir, stopDir)); {
		case errors.Is(err, fs.ErrNotExist):
		case err == nil && !info.IsDir(): // a file of that name
		default:
			h.Stop, more = h.read(filepath.Join(dir, stopDir), stopDir, &room)
		}
	}
	if errs = append(errs, more...); len(errs) > 0 {
		return Hooks{}, errs
	}
	return h, nil
}

// read returns the scripts in a directory, which is called prefix within HOOKS, and notes what is skipped. room is how
// many bytes may still be read.
func (h *Hooks) read(dir, prefix string, room *int64) (scripts []Hook, errs []error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, []error{fmt.Errorf("%w; mount a directory with scripts there", cause(err))}
	}
	for _, entry := range entries {
		file := entry.Name()
		name := filepath.Join(prefix, file)
		skip := func(reason string, debris bool) {
			h.Skipped = append(h.Skipped, SkippedHook{Name: name, Reason: reason, Debris: debris})
		}
		if isDebris(file) {
			skip("its name is that of a hidden file or a backup", true)
			continue
		}
		path := filepath.Join(dir, file)
		info, err := os.Stat(path) // of the file behind a link: Kubernetes mounts such
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("%s: %w; remove it or mend it", name, cause(err)))
		case info.IsDir() && name == stopDir:
		case info.IsDir():
			skip("a directory: only the one called stop is looked into", false)
		case !info.Mode().IsRegular():
			skip("not a regular file", false)
		case strings.HasSuffix(file, ".envsh"):
			skip("a script that sets variables for others (.envsh) has none to set them for", false)
		case info.Mode()&0o111 == 0 && !strings.HasSuffix(file, ".sh"):
			skip("neither executable nor named *.sh", false)
		default:
			script, err := readShort(path, maxHook)
			if errors.Is(err, errTooLong) {
				err = fmt.Errorf("longer than %s; have it fetch what is long", FormatSize(maxHook))
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", name, err))
				continue
			}
			if *room -= int64(len(script)); *room < 0 {
				return nil, append(errs, fmt.Errorf("%s: with it the scripts are longer than %s; have them fetch what is long",
					name, FormatSize(maxHooks)))
			}
			scripts = append(scripts, Hook{Name: file, Script: script})
		}
	}
	return scripts, errs
}

// isDebris is what run-parts(8) and dpkg pass over.
func isDebris(name string) bool {
	return strings.HasPrefix(name, ".") || strings.HasSuffix(name, "~") || strings.Contains(name, ".dpkg-")
}
