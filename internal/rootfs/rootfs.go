// Package rootfs edits the root file system of the guest before its init starts: the password of root, the SSH
// keys of root, a drop-in of the SSH server and its host keys. It also keeps the host key of the agent's SSH server, which
// makes one when it starts. Nothing has to be installed in the guest for it, so it works on the tree of any distribution.
//
// # Theory of operation
//
// Every path is opened through os.Root. A symbolic link that leads out of the tree is refused and reported, as is an
// absolute one, even though it would stay inside once the guest runs.
//
// A file is replaced by writing a temporary file beside it, with the mode and the owner of the old one, syncing it
// and renaming it. The sync is needed: on hostfs the rename reaches the host at once, the data only when the guest
// writes back, and a crash in between would leave root with an empty shadow file. A file that already says what it
// should is not touched, so that a second boot writes nothing, and a tree that is read-only is no problem as long as
// there is nothing to change.
//
// Non-goals: accounts other than root, and undoing what the guest's owner did. A password that root got inside the
// guest stays, unless the user of the container explicitly chose another one.
package rootfs

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"docker-usermode-linux/internal/boot"
)

// Apply makes the tree below root what s asks for. It does all that it can; each returned error is one thing that
// could not be done. None contains a password.
func Apply(root *os.Root, s boot.Settings) []error {
	state, passwordErr := SetPassword(root, s, time.Now())
	return collapseReadOnly([]error{
		passwordErr,
		SetAuthorizedKeys(root, s.AuthorizedKeys),
		SetSSHServer(root, s, state),
		MakeHostKeys(root, s),
	})
}

// collapseReadOnly drops nil errors, and says only once that the file system is read-only.
func collapseReadOnly(errs []error) []error {
	var out []error
	readOnly := false
	for _, err := range errs {
		switch {
		case err == nil:
		case !errors.Is(err, syscall.EROFS):
			out = append(out, err)
		case !readOnly:
			readOnly = true
			out = append(out, fmt.Errorf("root file system is read-only, password and SSH settings stay: %w", err))
		}
	}
	return out
}
