package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// clientTimeout bounds a request, and the search for a guest. A supervisor answers in milliseconds, unless it is
// stopped or the host is very busy.
const clientTimeout = 10 * time.Second

// maxAnswer bounds an answer in bytes. A full table of flows has some 5 MB.
const maxAnswer = 64 << 20

// ErrNoGuest is what Find's error is when no supervisor answers.
var ErrNoGuest = errors.New("no guest is running")

// Client asks one supervisor.
type Client struct {
	// Dir is the directory of the run.
	Dir  string
	http http.Client
}

// Find returns a client of the only guest that runs here. With a dir it looks there alone: dir is the directory of a
// run, or one that holds such.
func Find(ctx context.Context, dir string) (*Client, error) {
	in, where := places(), "here"
	var dirs []string
	if dir != "" {
		in, where = []string{dir}, "in "+dir
		dirs = append(dirs, dir)
	}
	for _, place := range in {
		entries, _ := os.ReadDir(place) // nothing runs in a place that cannot be read
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), runPrefix) {
				dirs = append(dirs, filepath.Join(place, e.Name()))
			}
		}
	}
	slices.Sort(dirs)
	ctx, cancel := context.WithTimeout(ctx, clientTimeout)
	defer cancel()
	var live []string
	var errs []error
	for _, dir := range slices.Compact(dirs) { // TMPDIR and XDG_RUNTIME_DIR may be the same
		switch err := probe(ctx, dir); {
		case err == nil:
			live = append(live, dir)
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ECONNREFUSED):
			// Not a run, or one that has ended.
		default:
			errs = append(errs, err)
		}
	}
	switch {
	case len(live) == 1:
		return newClient(live[0]), nil
	case len(live) > 1:
		return nil, fmt.Errorf("several guests are running %s; choose one with --dir: %s", where, strings.Join(live, ", "))
	case len(errs) > 0:
		return nil, errors.Join(errs...)
	}
	return nil, fmt.Errorf("%w %s", ErrNoGuest, where)
}

// probe says whether the run in dir is ours to ask and answers.
func probe(ctx context.Context, dir string) error {
	if err := foreign(dir, os.Geteuid()); err != nil {
		return err
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", filepath.Join(dir, Socket))
	if err != nil {
		return err
	}
	return conn.Close()
}

// foreign is an error if dir is not for the user uid.
func foreign(dir string, uid int) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if owner := int(info.Sys().(*syscall.Stat_t).Uid); uid != 0 && uid != owner {
		return fmt.Errorf("the guest in %s belongs to user %d: ask as that user, or as root", dir, owner)
	}
	return nil
}

func newClient(dir string) *Client {
	var dialer net.Dialer
	return &Client{Dir: dir, http: http.Client{
		Timeout: clientTimeout,
		Transport: &http.Transport{
			DisableKeepAlives: true, // a client asks once
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return dialer.DialContext(ctx, "unix", filepath.Join(dir, Socket))
			},
		},
	}}
}

// Dial connects to one of the other sockets of the run.
func (c *Client) Dial(ctx context.Context, socket string) (net.Conn, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", filepath.Join(c.Dir, socket))
	if err != nil {
		return nil, fmt.Errorf("reach the guest in %s: %w", c.Dir, err)
	}
	return conn, nil
}

// Get asks for path, such as "/net", and puts the JSON that comes back into answer.
func (c *Client) Get(ctx context.Context, path string, answer any) error {
	if err := c.get(ctx, path, answer); err != nil {
		return fmt.Errorf("ask the guest in %s for %s: %w", c.Dir, path, err)
	}
	return nil
}

func (c *Client) get(ctx context.Context, path string, answer any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://supervisor"+path, nil)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 200))
		return fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(text)))
	}
	return json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(answer)
}
