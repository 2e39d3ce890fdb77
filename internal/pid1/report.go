package pid1

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// statusFD is the number of the status pipe in the child.
	statusFD = 3

	// statusVariable tells the child that it has the status pipe; its value is the number.
	statusVariable = "DUML_STATUS_FD"

	// What the child writes to the pipe: that it is ready, or an exit code, which is the byte that follows.
	messageReady = 'r'
	messageCode  = 'c'
)

// reportFD is the descriptor of the status pipe, or -1 in a process that Run did not start.
//
// A variable and not a call in the supervise role: this way it is not possible to start a process before the
// descriptor is close-on-exec, which would then hold the pipe open.
var reportFD = Inherit(statusVariable, statusFD)

// Inherit takes a pipe over from the process that has started this one, with descriptor want: the variable has its number.
// It is taken out of the environment, and the descriptor made close-on-exec. Without one the result is -1. What is no pipe
// is left alone: then the variable is somebody else's.
func Inherit(variable string, want int) int {
	value, ok := os.LookupEnv(variable)
	if !ok {
		return -1
	}
	os.Unsetenv(variable) // fails on a malformed name only
	fd, err := strconv.Atoi(value)
	if err != nil || fd != want {
		return -1
	}
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil || stat.Mode&unix.S_IFMT != unix.S_IFIFO {
		return -1
	}
	unix.CloseOnExec(fd)
	return fd
}

// Ready tells Run that this process has subscribed to the signals it wants: those that came until now, which Run has
// kept, are forwarded, as all later ones are. In a process that Run did not start it does nothing.
func Ready() error {
	if err := tell(messageReady); err != nil {
		return fmt.Errorf("tell PID 1 to forward signals: %w", err)
	}
	return nil
}

// Report has Run return code, of which the lowest eight bits count, as with exit(2). The supervise role calls it
// just before it exits; of several calls the last one counts. In a process that Run did not start it does nothing.
func Report(code int) error {
	if err := tell(messageCode, byte(code)); err != nil {
		return fmt.Errorf("report exit code %d: %w", code, err)
	}
	return nil
}

// tell writes a message to the status pipe, which neither blocks nor cuts it short: the pipe never has more than a few
// bytes in it.
func tell(message ...byte) error {
	if reportFD < 0 {
		return nil
	}
	_, err := unix.Write(reportFD, message)
	return err
}

// statusEnv is env for a child that has the status pipe.
func statusEnv(env []string) []string {
	child := make([]string, 0, len(env)+1)
	for _, entry := range env {
		if !strings.HasPrefix(entry, statusVariable+"=") {
			child = append(child, entry)
		}
	}
	return append(child, fmt.Sprintf("%s=%d", statusVariable, statusFD))
}
