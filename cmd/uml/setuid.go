package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// setuidRisk says that other users of the host can execute the programs of a root file system that is in a directory; ""
// that they cannot. With its set-user-id bits, such a program is one of whoever it belongs to: the user's, who is the
// guest's root.
//
// The directory itself stays as it is, since its mode is that of the guest's root directory.
func setuidRisk(dir string) string {
	path, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return "" // told by who opens it
	}
	return setuidRiskOf(path, os.Lstat)
}

func setuidRiskOf(path string, stat func(string) (fs.FileInfo, error)) string {
	closable := ""
	for at := path; ; at = filepath.Dir(at) {
		info, err := stat(at)
		if err != nil || info.Mode().Perm()&0o001 == 0 {
			return ""
		}
		owner := info.Sys().(*syscall.Stat_t).Uid
		if at != path && closable == "" && owner == uint32(os.Geteuid()) && info.Mode()&fs.ModeSticky == 0 && at != "/" {
			closable = at
		}
		if at == "/" {
			break
		}
	}
	mend := "move it into a directory of mode 700"
	if closable != "" {
		mend = "chmod 700 " + closable
	}
	return fmt.Sprintf("other users of this host can run set-user-id programs of %s as you: %s", path, mend)
}
