package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path"
	"strconv"
	"strings"

	"docker-usermode-linux/internal/userns"
)

// Where systemd's login manager has what it knows (systemd-logind(8), loginctl(1)).
const (
	bootedBySystemd = "run/systemd/system"
	lingerDir       = "var/lib/systemd/linger"
	runUser         = "/run/user/"
)

// lingerWarning says that a guest whose registry is dir is lost with the last login of its user; "" that it is not.
func lingerWarning(dir string) string {
	uid, _ := userns.Outside()
	account, err := user.LookupId(strconv.Itoa(uid))
	if err != nil {
		return "" // nobody that a login manager knows
	}
	return lingers(os.DirFS("/"), dir, account.Username)
}

func lingers(root fs.FS, dir, name string) string {
	if !strings.HasPrefix(dir, runUser) {
		return ""
	}
	if _, err := fs.Stat(root, bootedBySystemd); err != nil {
		return "" // another one made the directory, and has rules of its own
	}
	if _, err := fs.Stat(root, path.Join(lingerDir, name)); !errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	return fmt.Sprintf("when you have logged out the guest ends, or is not found any more: to keep it, loginctl enable-linger %s",
		name)
}
