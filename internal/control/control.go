// Package control is the way into a running supervisor for everyone else: HTTP over a unix socket in the directory of
// its run. Who asks finds that directory without being told.
package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// Theory of operation
//
// Every run has a directory of its own, uml-<random>, in the first of a few places that can be written, and its socket
// in there. So any number of guests run beside each other, nothing has a fixed name that one could take from another,
// and a client finds all runs by looking in the same places. The directory of a run that crashed stays, and its socket
// refuses: it is passed over. (Nobody removes it: a socket also refuses between bind and listen.)
//
// Who may: the directory has mode 0700 and the socket 0600, which leaves the user and root. The client in turn trusts
// no socket that somebody else has put into a place like /tmp, unless it is root, who asks guests of all users.

// The sockets in a run's directory: one for requests, and one for commands in the guest, which speaks the protocol of the
// guest's agent.
const (
	Socket     = "control"
	ExecSocket = "exec"
)

// runPrefix is how the names of runs' directories begin.
const runPrefix = "uml-"

const (
	// Bounds of a request. A handler that takes or gives a stream lifts them with http.ResponseController.
	headerTimeout = 5 * time.Second
	readTimeout   = 10 * time.Second
	writeTimeout  = 30 * time.Second
	idleTimeout   = time.Minute
	maxHeader     = 16 << 10
	maxBody       = 64 << 10
)

// places are the directories where runs may have theirs, the best first. /dev/shm can be written even in a container
// with a read-only root.
func places() []string {
	all := []string{"/run", os.TempDir(), "/dev/shm"}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		all = append([]string{dir}, all...)
	}
	return all
}

// MakeRunDir makes the directory for the sockets of one run, in the directory in unless that is "". The caller removes
// it.
func MakeRunDir(in string) (string, error) {
	if in != "" {
		dir, err := os.MkdirTemp(in, runPrefix)
		if err != nil {
			return "", fmt.Errorf("make a directory for the kernel's sockets: %w", err)
		}
		return dir, nil
	}
	var errs []error
	for _, place := range places() {
		dir, err := os.MkdirTemp(place, runPrefix)
		if err == nil {
			return dir, nil
		}
		errs = append(errs, err)
	}
	return "", fmt.Errorf("no writable directory for the kernel's sockets; mount a tmpfs on /run (docker run --tmpfs /run), or "+
		"set XDG_RUNTIME_DIR or TMPDIR to a directory that can be written: %w", errors.Join(errs...))
}

// Listen opens one of the sockets of the run in dir, for its user alone.
func Listen(dir, socket string) (net.Listener, error) {
	path := filepath.Join(dir, socket)
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("open the %s socket: %w", socket, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("open the %s socket: %w", socket, err), l.Close())
	}
	return l, nil
}

// Serve answers requests on l until ctx ends, which breaks off what is being answered, and closes l. What goes wrong
// with single requests is written to errs.
func Serve(ctx context.Context, l net.Listener, handler http.Handler, errs io.Writer) error {
	server := &http.Server{
		Handler:           http.MaxBytesHandler(handler, maxBody),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          log.New(errs, "", 0),
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	err := server.Serve(l)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// JSON answers with what state returns.
func JSON[T any](state func() T) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		// An error is the client's, who is gone, or the type's, which its tests find.
		_ = json.NewEncoder(w).Encode(state())
	})
}
