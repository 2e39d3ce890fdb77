package agent

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/pkg/sftp"
)

// subsystemSFTP is the name of the subsystem in SSH.
const subsystemSFTP = "sftp"

// SFTPServerArg is the first argument with which the agent executes itself to serve files as another user. A program
// that runs a Server calls ServeSFTP when it gets it.
const SFTPServerArg = "sftp-server"

// selfExe is the running program, even after its file was deleted (proc_pid_exe(5)).
const selfExe = "/proc/self/exe"

// sftpServer makes it the server of files. It is a process of its own for root, too, so that the working directory is
// its own.
func (p *plan) sftpServer() {
	p.name, p.path, p.argv = selfExe, selfExe, []string{SFTPServerArg, SFTPServerArg}
}

// ServeSFTP serves files on the standard streams until the client has finished, relative to the working directory.
func ServeSFTP() error {
	server, err := sftp.NewServer(stdio{})
	if err != nil {
		return fmt.Errorf("serve files: %w", err)
	}
	defer server.Close()
	if err := server.Serve(); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("serve files: %w", err)
	}
	return nil
}

// stdio is the standard streams as one.
type stdio struct{}

func (stdio) Read(p []byte) (int, error)  { return os.Stdin.Read(p) }
func (stdio) Write(p []byte) (int, error) { return os.Stdout.Write(p) }
func (stdio) Close() error                { return errors.Join(os.Stdin.Close(), os.Stdout.Close()) }
