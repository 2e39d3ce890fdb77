package main

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"docker-usermode-linux/internal/agent"
	"docker-usermode-linux/internal/config"
	"docker-usermode-linux/internal/disk"
	"docker-usermode-linux/internal/image/runconfig"
)

// TestWithImage has commands put together as docker run does.
func TestWithImage(t *testing.T) {
	image := runconfig.Config{
		Env: []string{"A=image", "B=image"}, WorkingDir: "/srv", User: "www-data",
		Entrypoint: []string{"/entry", "-x"}, Cmd: []string{"serve", "--all"},
	}
	none := runconfig.Config{}
	for _, test := range []struct {
		name       string
		image      runconfig.Config
		own        bool
		entrypoint string
		given      agent.Command
		want       agent.Command
	}{
		{"no image", none, false, "", agent.Command{Args: []string{"id"}}, agent.Command{Args: []string{"id"}, Env: []string{}}},
		{"no image, no command", none, false, "", agent.Command{}, agent.Command{Args: []string{}, Env: []string{}}},
		{
			"the image's command", image, false, "",
			agent.Command{},
			agent.Command{Args: []string{"/entry", "-x", "serve", "--all"}, Env: image.Env, Dir: "/srv", User: "www-data"},
		},
		{
			"arguments, and what the user says wins", image, false, "",
			agent.Command{Args: []string{"help"}, Env: []string{"A=user"}, Dir: "/", User: "root"},
			agent.Command{Args: []string{"/entry", "-x", "help"}, Env: []string{"A=image", "B=image", "A=user"}, Dir: "/", User: "root"},
		},
		{
			"an entry point of the user's", image, true, "/bin/sh",
			agent.Command{Args: []string{"-c", "id"}},
			agent.Command{Args: []string{"/bin/sh", "-c", "id"}, Env: image.Env, Dir: "/srv", User: "www-data"},
		},
		{
			"an entry point alone", image, true, "/bin/sh",
			agent.Command{},
			agent.Command{Args: []string{"/bin/sh"}, Env: image.Env, Dir: "/srv", User: "www-data"},
		},
		{
			"no entry point", image, true, "",
			agent.Command{Args: []string{"id"}},
			agent.Command{Args: []string{"id"}, Env: image.Env, Dir: "/srv", User: "www-data"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := test.given
			if withImage(&c, test.image, test.own, test.entrypoint); !reflect.DeepEqual(c, test.want) {
				t.Errorf("withImage() = %+v, want %+v", c, test.want)
			}
		})
	}
}

// TestReadImageConfig reads what an image says from a directory and from a disk.
func TestReadImageConfig(t *testing.T) {
	want := runconfig.Config{Cmd: []string{"serve"}, WorkingDir: "/srv"}
	text, err := want.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	type root struct {
		what string
		text []byte // of the file, nil: there is none
		want runconfig.Config
		err  string
	}
	for _, r := range []root{
		{"image", text, want, ""},
		{"no image", nil, runconfig.Config{}, ""},
		{"damaged", []byte("{"), runconfig.Config{}, "mend or remove it"},
	} {
		check := func(t *testing.T, cfg config.Config) {
			t.Helper()
			got, unknown, err := readImageConfig(t.Context(), cfg)
			if unknown != nil || (err == nil) != (r.err == "") || err != nil && !strings.Contains(err.Error(), r.err) {
				t.Errorf("readImageConfig() = %v, %v, want %q", unknown, err, r.err)
			}
			if !reflect.DeepEqual(got, r.want) {
				t.Errorf("readImageConfig() = %+v, want %+v", got, r.want)
			}
		}
		t.Run("directory, "+r.what, func(t *testing.T) {
			dir := t.TempDir()
			if r.text != nil {
				if err := os.WriteFile(filepath.Join(dir, runconfig.File), r.text, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			check(t, config.Config{Rootfs: dir})
		})
		t.Run("disk, "+r.what, func(t *testing.T) {
			if err := disk.Usable(); err != nil {
				t.Skip(err)
			}
			var archive bytes.Buffer
			w := tar.NewWriter(&archive)
			if r.text != nil {
				if err := w.WriteHeader(&tar.Header{Name: runconfig.File, Mode: 0o644, Size: int64(len(r.text))}); err != nil {
					t.Fatal(err)
				}
				if _, err := w.Write(r.text); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "a disk?")
			if err := disk.Create(t.Context(), path, disk.Options{Tar: &archive, Size: 8 << 20}); err != nil {
				t.Fatal(err)
			}
			check(t, config.Config{Disk: path})
		})
	}
	t.Run("another file system", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, unknown, err := readImageConfig(t.Context(), config.Config{Disk: path}); !got.IsZero() || unknown != nil || err != nil {
			t.Errorf("readImageConfig() = %+v, %v, %v, want nothing", got, unknown, err)
		}
	})
}
