// Package runconfig is what an OCI image says about how its program is run, and the file that keeps it in a root file
// system made from the image. It stands alone so that the guest can read the file without a registry's client.
package runconfig

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
)

const (
	// File is where a root file system has its Config, as a path in the tree.
	File = ".uml-image.json"
	// MaxSize is the largest File that is read, in bytes. Environment and arguments of an execve have 2 MiB together.
	MaxSize = 1 << 20
)

// Config has the names and the meaning that Docker gives them. The zero value says nothing.
type Config struct {
	Env        []string `json:"Env,omitempty"`        // NAME=value
	WorkingDir string   `json:"WorkingDir,omitempty"` // an absolute path; empty is /
	User       string   `json:"User,omitempty"`       // USER[:GROUP], names or numbers; empty is root
	Entrypoint []string `json:"Entrypoint,omitempty"`
	Cmd        []string `json:"Cmd,omitempty"` // arguments of the Entrypoint, or the command where there is none
}

// IsZero says whether c says nothing.
func (c Config) IsZero() bool {
	return len(c.Env)+len(c.Entrypoint)+len(c.Cmd) == 0 && c.WorkingDir == "" && c.User == ""
}

// Normal returns c as File has it: the working directory absolute, without lines of the environment that name nothing,
// which Docker ignores.
func (c Config) Normal() Config {
	c.Env = slices.DeleteFunc(slices.Clone(c.Env), func(line string) bool { return !isAssignment(line) })
	if c.WorkingDir != "" {
		c.WorkingDir = path.Join("/", c.WorkingDir)
	}
	return c
}

// Marshal returns the text of File.
func (c Config) Marshal() ([]byte, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	text, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return nil, err
	}
	if len(text) >= MaxSize {
		return nil, fmt.Errorf("%d bytes of environment and arguments, %d at most", len(text), MaxSize)
	}
	return append(text, '\n'), nil
}

// Parse reads the text of File. Fields that it does not know are ignored.
func Parse(text []byte) (Config, error) {
	var c Config
	if len(text) > MaxSize {
		return c, fmt.Errorf("longer than %d bytes", MaxSize)
	}
	if err := json.Unmarshal(text, &c); err != nil {
		return Config{}, err
	}
	if err := c.check(); err != nil {
		return Config{}, err
	}
	return c, nil
}

// Read returns the Config of the tree below root, the zero value where there is none. What is in its place and cannot be
// one is an error: a guest may write there whatever it likes.
func Read(root *os.Root) (Config, error) {
	c, err := read(root)
	if err != nil {
		return Config{}, fmt.Errorf("/%s of the root file system, which says how its image is run: %w; mend or remove it",
			File, err)
	}
	return c, nil
}

func read(root *os.Root) (Config, error) {
	info, err := root.Lstat(File)
	if errors.Is(err, fs.ErrNotExist) {
		return Config{}, nil
	}
	if err != nil {
		return Config{}, err
	}
	if !info.Mode().IsRegular() {
		return Config{}, errors.New("not a regular file")
	}
	// Should a running guest put a named pipe there just now, this does not wait for a writer.
	file, err := root.OpenFile(File, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return Config{}, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, MaxSize+1))
	if err != nil {
		return Config{}, err
	}
	return Parse(text)
}

// check refuses what no program can be started with.
func (c Config) check() error {
	for i, line := range c.Env {
		if !isAssignment(line) {
			return fmt.Errorf("line %d of Env, %.40q, is not NAME=value", i+1, line)
		}
	}
	if c.WorkingDir != "" && !path.IsAbs(c.WorkingDir) {
		return fmt.Errorf("WorkingDir %.40q is not an absolute path", c.WorkingDir)
	}
	for _, s := range slices.Concat(c.Env, []string{c.WorkingDir, c.User}, c.Entrypoint, c.Cmd) {
		if strings.IndexByte(s, 0) >= 0 {
			return fmt.Errorf("%.40q has a NUL byte", s)
		}
	}
	return nil
}

func isAssignment(line string) bool {
	return strings.IndexByte(line, '=') > 0
}
