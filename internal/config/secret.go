package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// parsePassword chooses between ROOT_PASSWORD and ROOT_PASSWORD_FILE, the path of a file that holds it, as the secrets
// of Docker and Compose are given. An error begins with the name of the setting; neither shows a password.
func parsePassword(value, path string, names Names) (string, error) {
	const setting = "ROOT_PASSWORD"
	file := names.Of(setting + "_FILE")
	switch {
	case value != "" && path != "":
		return "", bothSet(setting, names)
	case path != "" && !strings.HasPrefix(path, "/"):
		return "", fmt.Errorf("%s%w", file, errNoPath)
	case path != "":
		password, err := readPassword(path)
		if err != nil {
			return "", fmt.Errorf("%s=%q: %w", file, path, err)
		}
		return password, nil
	}
	if err := checkPassword(value); err != nil {
		return "", fmt.Errorf("%s: %w", names.Of(setting), err)
	}
	return value, nil
}

// errNoPath does not show the value, which may be the secret itself by mistake.
var errNoPath = errors.New(": not an absolute path; begin it with a /")

func bothSet(setting string, names Names) error {
	return fmt.Errorf("%s and %s are both set; unset one of the two", names.Of(setting), names.Of(setting+"_FILE"))
}

// readPassword is the content of a file without the line end that an editor leaves there.
func readPassword(path string) (string, error) {
	data, err := readShort(path, maxPassword+len("\r\n"))
	switch {
	case errors.Is(err, errTooLong):
		return "", fmt.Errorf("longer than a password of %d bytes; give a file with the password alone", maxPassword)
	case err != nil:
		return "", fmt.Errorf("%w; mount a file with the password there", err)
	}
	password, ended := strings.CutSuffix(string(data), "\n")
	if ended {
		password = strings.TrimSuffix(password, "\r")
	}
	if password == "" {
		return "", errors.New("the file is empty; write the password into it")
	}
	return password, checkPassword(password)
}

var errTooLong = errors.New("too long")

// readShort is a file's content, or errTooLong if that is more than limit bytes. It waits for no one to open the other
// end of a named pipe.
func readShort(path string, limit int) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrPermission) {
		return nil, fmt.Errorf("%w for user %d", cause(err), os.Getuid())
	}
	if err != nil {
		return nil, cause(err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err != nil {
		return nil, cause(err)
	}
	if len(data) > limit {
		return nil, errTooLong
	}
	return data, nil
}

// cause is err without the operation and the path, which the message around it has already.
func cause(err error) error {
	if pathErr, ok := errors.AsType[*os.PathError](err); ok {
		return pathErr.Err
	}
	return err
}
