package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"docker-usermode-linux/internal/boot"
)

const (
	sshdDir = "etc/ssh/sshd_config.d"
	// The SSH server takes the first value that it reads, and reads the drop-ins in the order of their names.
	sshdFile = sshdDir + "/00-docker-usermode-linux.conf"

	sshdHeader = "# Written by docker-usermode-linux at start, from ROOT_PASSWORD and SSH_AUTHORIZED_KEYS.\n"

	sshdKeysOnly = sshdHeader +
		"PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n"
)

// SetSSHServer writes the drop-in of an OpenSSH server that reads drop-ins, so that root can log in by the means
// that s names and by no other; when nobody asked for a login, none. When root keeps a password of its own that s did not
// ask for, it writes nothing, but takes back that there is no login by password.
func SetSSHServer(root *os.Root, s boot.Settings, state PasswordState) error {
	if s.LoginUnasked {
		return nil
	}
	text := sshdDropIn(s, state)
	var err error
	if text != "" {
		err = setSSHServer(root, text)
	} else if old, _ := root.ReadFile(sshdFile); string(old) == sshdKeysOnly {
		err = root.Remove(sshdFile) // of a start with other settings
	}
	if err != nil {
		return fmt.Errorf("configure SSH server: %w", err)
	}
	return nil
}

func setSSHServer(root *os.Root, text string) error {
	switch info, err := root.Stat(sshdDir); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !info.IsDir():
		return nil
	}
	old, err := root.ReadFile(sshdFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if string(old) == text {
		return nil
	}
	return replace(root, sshdFile, []byte(text), ours(0o644))
}

// sshdDropIn returns the text of the drop-in, or "" for none.
func sshdDropIn(s boot.Settings, state PasswordState) string {
	switch {
	case s.RootPassword != "" && state == PasswordSet:
		return sshdHeader + "PermitRootLogin yes\nPasswordAuthentication yes\n"
	case s.RootPassword != "":
		return ""
	case s.KeysOnly():
		return sshdKeysOnly
	default:
		return sshdHeader + "PermitRootLogin prohibit-password\n"
	}
}
