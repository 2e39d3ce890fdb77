package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/crypto/ssh"
)

// The payloads of RFC 4254, sections 6.2 to 6.10.
type (
	ptyRequest struct {
		Term          string
		Cols, Rows    uint32
		Width, Height uint32 // pixels
		Modes         string
	}
	envRequest    struct{ Name, Value string }
	stringRequest struct{ Value string } // exec, subsystem, signal
	windowChange  struct{ Cols, Rows, Width, Height uint32 }
	exitStatus    struct{ Code uint32 }
	exitSignal    struct {
		Signal     string
		CoreDumped bool
		Message    string
		Language   string
	}
)

// session is a "session" channel: at most one command.
//
// The goroutine of serve handles requests and never waits for data. run and the goroutines below it move the data.
type session struct {
	conn     *connection
	channel  ssh.Channel
	requests <-chan *ssh.Request

	env     []string
	pty     *PTY
	process *process // once started
	busy    sync.WaitGroup
	gone    chan struct{} // closed when the client has closed the channel
}

// serve returns when the client has closed the channel, and nothing of the session is left but a command that ignores
// that.
func (s *session) serve(ctx context.Context) {
	for request := range s.requests {
		ok, then := s.handle(ctx, request)
		// The reply comes first: what then starts may close the channel.
		if request.WantReply {
			_ = request.Reply(ok, nil) // fails once the connection is gone, which ends this loop
		}
		if then != nil {
			s.busy.Go(then)
		}
	}
	close(s.gone)
	if s.process != nil {
		select {
		case <-s.process.exited:
		default:
			s.process.hangUp()
		}
	}
	s.busy.Wait()
}

// handle answers one request. then, unless it is nil, is to run after the reply.
func (s *session) handle(ctx context.Context, request *ssh.Request) (ok bool, then func()) {
	started := s.process != nil
	switch request.Type {
	case "env":
		var v envRequest
		if ssh.Unmarshal(request.Payload, &v) != nil || started || !s.acceptsEnv(v) {
			return false, nil
		}
		s.env = append(s.env, v.Name+"="+v.Value)
		return true, nil
	case "pty-req":
		var v ptyRequest
		if ssh.Unmarshal(request.Payload, &v) != nil || started || s.conn.grant.noPTY || strings.ContainsRune(v.Term, 0) {
			return false, nil
		}
		s.pty = &PTY{v.Term, Size{uint16(v.Rows), uint16(v.Cols)}}
		return true, nil
	case "window-change":
		var v windowChange
		if ssh.Unmarshal(request.Payload, &v) != nil || !started || s.process.terminal == nil {
			return false, nil
		}
		s.process.terminal.resize(Size{uint16(v.Rows), uint16(v.Cols)})
		return true, nil
	case "signal":
		var v stringRequest
		if ssh.Unmarshal(request.Payload, &v) != nil || !started {
			return false, nil
		}
		sig, ok := signalNumber(v.Value)
		if ok {
			s.process.signal(sig)
		}
		return ok, nil
	case requestEndOfWrite:
		// As in "ssh guest yes | head": the command gets SIGPIPE for the next that it writes.
		if started && s.process.terminal == nil {
			s.process.stdout.Close()
		}
		return true, nil
	case "shell", "exec", "subsystem", requestCommand:
		if started {
			return false, nil
		}
		plan, err := s.plan(request)
		if plan == nil && err == nil {
			return false, nil
		}
		if err == nil {
			s.process, err = s.start(plan)
		}
		if err != nil {
			return true, func() { s.reportFailure(err) }
		}
		return true, func() { s.run(ctx) }
	}
	return false, nil
}

// acceptsEnv lets a login set what sshd_config(5) does as distributions ship it. More could get around a command that
// is forced upon a key.
func (s *session) acceptsEnv(v envRequest) bool {
	if v.Name == "" || strings.ContainsAny(v.Name, "=\x00") || strings.ContainsRune(v.Value, 0) || len(s.env) >= maxEnv {
		return false
	}
	return s.conn.server.options.Auth == nil || v.Name == "LANG" || strings.HasPrefix(v.Name, "LC_") ||
		v.Name == "COLORTERM" || v.Name == "NO_COLOR"
}

// plan says what a request wants to have run. Neither plan nor error means that the request is refused.
func (s *session) plan(request *ssh.Request) (*plan, error) {
	if request.Type == requestCommand {
		if s.conn.server.options.Auth != nil {
			return nil, nil
		}
		command, err := parseCommand(request.Payload)
		if err != nil {
			return nil, err
		}
		u, err := s.conn.server.accounts.lookup(command.User)
		if err != nil {
			return nil, err
		}
		if command.PTY != nil {
			s.pty = command.PTY
		}
		p := command.plan(u)
		p.env = append(s.env, p.env...)
		return p, nil
	}

	var line stringRequest
	if request.Type != "shell" && ssh.Unmarshal(request.Payload, &line) != nil || strings.ContainsRune(line.Value, 0) {
		return nil, nil
	}
	if request.Type == "subsystem" && line.Value != subsystemSFTP {
		return nil, nil
	}
	u, err := s.conn.account()
	if err != nil {
		return nil, err
	}
	p := Command{Env: append(s.conn.environment(), s.env...)}.plan(u)
	switch forced := s.conn.grant.command; {
	case forced == "internal-sftp":
		p.sftpServer()
	case forced != "":
		if request.Type != "shell" {
			p.env = append(p.env, "SSH_ORIGINAL_COMMAND="+line.Value)
		}
		p.shellCommand(forced)
	case request.Type == "exec":
		p.shellCommand(line.Value)
	case request.Type == "subsystem":
		p.sftpServer()
	}
	return p, nil
}

// start starts a plan's command, with its terminal.
func (s *session) start(p *plan) (*process, error) {
	if s.pty != nil {
		t, err := newTerminal(p.user, s.conn.server.accounts.ttyGroup(p.user), *s.pty)
		if err != nil {
			return nil, err
		}
		p.terminal = t
		if s.conn.server.options.Auth != nil {
			p.env = append(p.env, "SSH_TTY="+t.slave.Name())
		}
	}
	proc, err := p.start()
	if err == nil {
		go proc.wait() // ends with the command, which may outlive the session
	}
	return proc, err
}

// reportFailure ends a session whose command did not start, as a shell would.
func (s *session) reportFailure(err error) {
	code := codeAgent
	if exit, ok := errors.AsType[*exitError](err); ok {
		code = exit.code
	}
	end := "\n"
	if s.pty != nil {
		end = "\r\n" // the client's terminal is in raw mode
	}
	_, _ = fmt.Fprintf(s.channel.Stderr(), "guest: %v%s", err, end)
	s.end("exit-status", ssh.Marshal(exitStatus{uint32(code)}))
}

// run moves the data of a command that has been started, until its end or that of the client.
func (s *session) run(ctx context.Context) {
	s.busy.Go(s.copyInput)

	var outputs sync.WaitGroup
	outputs.Go(func() { s.copyOutput(s.channel, s.process.stdout) })
	if s.process.stderr != nil {
		outputs.Go(func() { s.copyOutput(s.channel.Stderr(), s.process.stderr) })
	}
	select {
	case <-s.process.exited:
		s.process.limitOutput()
	case <-s.gone: // serve has hung up, so that reads and writes end
	}
	outputs.Wait()
	s.process.closeStreams()
	if ctx.Err() != nil {
		return
	}
	select {
	case <-s.process.exited:
		name, payload := exitRequest(s.process.cmd.ProcessState.Sys().(syscall.WaitStatus))
		s.end(name, payload)
	default:
	}
}

// end reports how the command has ended, and closes the channel. Errors mean that the client is gone.
func (s *session) end(request string, payload []byte) {
	_ = s.channel.CloseWrite()
	_, _ = s.channel.SendRequest(request, false, payload)
	_ = s.channel.Close()
}

// exitRequest is the request that reports the end of a process.
func exitRequest(status syscall.WaitStatus) (name string, payload []byte) {
	if status.Signaled() {
		return "exit-signal", ssh.Marshal(exitSignal{
			Signal: signalName(status.Signal()), CoreDumped: status.CoreDump(), Message: status.Signal().String(),
		})
	}
	return "exit-status", ssh.Marshal(exitStatus{uint32(status.ExitStatus())})
}

// copyInput copies what the client sends to the command, until either closes it.
func (s *session) copyInput() {
	defer func() {
		// What is left is read all the same: it takes room from the connection.
		_ = copyBuffered(io.Discard, s.channel)
	}()
	err := copyBuffered(s.process.stdin, s.channel)
	if err == nil {
		s.process.closeInput()
		return
	}
	select {
	case <-s.process.exited:
	default:
		_, _ = s.channel.SendRequest(requestEndOfWrite, false, nil)
		if s.process.terminal == nil {
			s.process.stdin.Close()
		}
	}
}

// copyOutput copies one of the command's outputs to the client. Once the client does not take it, the command gets
// SIGPIPE for the next.
func (s *session) copyOutput(dst io.Writer, src *os.File) {
	if err := s.process.copyOutput(throttled{dst, s.conn.stream}, src); err != nil {
		src.Close()
	}
}

// copyBuffered is io.Copy with large buffers, in every case.
func copyBuffered(dst io.Writer, src io.Reader) error {
	_, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, make([]byte, bufferSize))
	return err
}

// ttyGroup is the group of terminals: "tty", or that of the user.
func (a accounts) ttyGroup(u *user) uint32 {
	data, err := a.read("etc/group")
	if err == nil {
		if entry, ok := findGroup(data, "tty"); ok {
			return entry.gid
		}
	}
	return u.gid
}
