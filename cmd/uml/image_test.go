package main

import (
	"reflect"
	"testing"

	"docker-usermode-linux/internal/agent"
)

// TestWithImage has commands put together as docker run does.
func TestWithImage(t *testing.T) {
	image := &imageConfig{
		Env: []string{"A=image", "B=image"}, WorkingDir: "/srv", User: "www-data",
		Entrypoint: []string{"/entry", "-x"}, Cmd: []string{"serve", "--all"},
	}
	for _, test := range []struct {
		name       string
		image      *imageConfig
		own        bool
		entrypoint string
		given      agent.Command
		want       agent.Command
	}{
		{"no image", nil, false, "", agent.Command{Args: []string{"id"}}, agent.Command{Args: []string{"id"}, Env: []string{}}},
		{"no image, no command", nil, false, "", agent.Command{}, agent.Command{Args: []string{}, Env: []string{}}},
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
			before := readImageConfig
			readImageConfig = func(string) (*imageConfig, error) { return test.image, nil }
			defer func() { readImageConfig = before }()
			c := test.given
			if err := withImage(&c, "/root", test.own, test.entrypoint); err != nil || !reflect.DeepEqual(c, test.want) {
				t.Errorf("withImage() = %+v, %v, want %+v", c, err, test.want)
			}
		})
	}
}
