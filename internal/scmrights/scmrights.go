// Package scmrights takes descriptors out of what comes over a unix socket (unix(7), SCM_RIGHTS).
package scmrights

import (
	"os"

	"golang.org/x/sys/unix"
)

// Parse returns the descriptors in control messages as (*net.UnixConn).ReadMsgUnix reads them; package net has them closed
// at exec. They are the caller's to close.
func Parse(oob []byte) ([]int, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, os.NewSyscallError("parse control message", err)
	}
	var fds []int
	for _, m := range msgs {
		got, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue // something else, such as credentials
		}
		fds = append(fds, got...)
	}
	return fds, nil
}
