package agent

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

// sshServer is a server on TCP with the accounts of a test.
type sshServer struct {
	t        *testing.T
	address  string
	home     string // of the user of the test
	log      *buffer
	dir      string // for the client's files
	listener net.Listener
	served   chan error // what ServeListener returns
}

// startSSH serves the account "tester", who is whoever runs the test, with a password and the home of a test.
func startSSH(t *testing.T, keys ...string) *sshServer {
	t.Helper()
	return startSSHWith(t, &Authenticator{}, keys...)
}

// startSSHWith is startSSH with other settings than the default.
func startSSHWith(t *testing.T, auth *Authenticator, keys ...string) *sshServer {
	t.Helper()
	s := &sshServer{t: t, home: t.TempDir(), log: &buffer{}, dir: t.TempDir()}
	if err := os.Chmod(s.home, 0o755); err != nil {
		t.Fatal(err)
	}
	if len(keys) > 0 {
		if err := os.Mkdir(filepath.Join(s.home, ".ssh"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(s.home, ".ssh/authorized_keys"), []byte(strings.Join(keys, "\n")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	root := newTree(t, map[string]string{
		"etc/passwd": fmt.Sprintf("tester:x:%d:%d::%s:/bin/sh\n", os.Getuid(), os.Getgid(), s.home),
		"etc/shadow": "tester:" + hashes["sha512"] + ":19000:0:99999:7:::\n",
	})
	auth.root, auth.delay = root, 1
	server := NewServer(ServerOptions{Auth: auth, Log: func(err error) { fmt.Fprintln(s.log, err) }})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.address, s.listener = listener.Addr().String(), listener
	ctx, cancel := context.WithCancel(context.Background())
	s.served = make(chan error, 1)
	go func() {
		s.served <- server.ServeListener(ctx, listener)
		close(s.served)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-s.served; err != nil {
			t.Errorf("ServeListener = %v", err)
		}
	})
	return s
}

// command is one of OpenSSH's clients, with the password.
func (s *sshServer) command(name string, args ...string) *exec.Cmd {
	s.t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		s.t.Skipf("needs openssh-client: %v", err)
	}
	ask := filepath.Join(s.dir, "askpass")
	if err := os.WriteFile(ask, []byte("#!/bin/sh\necho "+password+"\n"), 0o700); err != nil {
		s.t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(s.address)
	options := []string{
		"-F", "none", "-o", "Port=" + port, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
		"-o", "LogLevel=ERROR", "-o", "IdentityAgent=none",
	}
	cmd := exec.Command(name, append(options, args...)...)
	cmd.Env = append(os.Environ(), "SSH_ASKPASS="+ask, "SSH_ASKPASS_REQUIRE=force", "DISPLAY=none", "LC_TEST=passed")
	return cmd
}

// keyFile writes a private key for OpenSSH.
func keyFile(t *testing.T) (file, line string) {
	t.Helper()
	_, private, line := newKey(t)
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	return file, line
}

func exitCode(err error) int {
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	if err != nil {
		return -1
	}
	return 0
}

func TestOpenSSH(t *testing.T) {
	s := startSSH(t)
	const host = "tester@127.0.0.1"
	onlyPassword := []string{"-o", "PreferredAuthentications=password", "-o", "NumberOfPasswordPrompts=1"}
	run := func(stdin string, args ...string) (stdout, stderr string, code int) {
		t.Helper()
		cmd := s.command("ssh", append(onlyPassword[:len(onlyPassword):len(onlyPassword)], args...)...)
		var out, errs bytes.Buffer
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
		err := cmd.Run()
		return out.String(), errs.String(), exitCode(err)
	}
	if stdout, stderr, code := run("in", host, "cat; echo err >&2; exit 17"); stdout != "in" || stderr != "err\n" || code != 17 {
		t.Errorf("exec: %q, %q, %d", stdout, stderr, code)
	}
	if stdout, _, code := run("pwd; echo $0; exit 5\n", host); stdout != s.home+"\n-sh\n" || code != 5 {
		t.Errorf("shell: %q, %d", stdout, code)
	}
	if stdout, _, _ := run("", "-o", "SendEnv=LC_TEST", host, `echo $LC_TEST $USER; test -n "$SSH_CONNECTION" && echo c`); stdout != "passed tester\nc\n" {
		t.Errorf("environment: %q", stdout)
	}
	if _, _, code := run("", host, "kill -9 $$"); code != 255 {
		t.Errorf("killed: %d, want 255, which is ssh's", code)
	}
	if stdout, _, _ := run("", "-tt", host, "tty; echo $SSH_TTY"); !strings.HasPrefix(stdout, "/dev/pts/") || strings.Count(stdout, "/dev/pts/") != 2 {
		t.Errorf("terminal: %q", stdout)
	}
	if stdout, _, code := run("", host, "head -c 20000000 /dev/zero"); len(stdout) != 20000000 || code != 0 {
		t.Errorf("20 MB: %d, %d", len(stdout), code)
	}
	if _, _, code := run("", "-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:1", host, "true"); code != 255 {
		t.Errorf("ssh -R: %d, want a refusal", code)
	}
	if stdout, _, code := run("", "-A", host, "echo x$SSH_AUTH_SOCK"); code != 0 || stdout != "x\n" {
		t.Errorf("ssh -A: %q, %d", stdout, code)
	}
	if stdout, _, code := run("hello\n", "-W", s.address, host); code != 0 || !strings.HasPrefix(stdout, version) {
		t.Errorf("ssh -W to itself: %q, %d, want its greeting", stdout, code)
	}
	// Wrong password, unknown user.
	for _, who := range []string{host, "stranger@127.0.0.1"} {
		cmd := s.command("ssh", append(onlyPassword, who, "true")...)
		if err := os.WriteFile(filepath.Join(s.dir, "askpass"), []byte("#!/bin/sh\necho wrong\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		if out, err := cmd.CombinedOutput(); exitCode(err) != 255 || !strings.Contains(string(out), "Permission denied") {
			t.Errorf("ssh %s with a wrong password = %v, %q", who, err, out)
		}
	}
	for _, want := range []string{`login of "tester"`, "wrong password", `login of "stranger"`} {
		if !strings.Contains(s.log.String(), want) {
			t.Errorf("log %q has no %q", s.log, want)
		}
	}
	if strings.Contains(s.log.String(), password) {
		t.Errorf("the password is in the log")
	}
}

func TestOpenSSHFiles(t *testing.T) {
	file, line := keyFile(t)
	s := startSSH(t, line)
	data := bytes.Repeat([]byte("0123456789abcdef\n"), 500_000)
	local, remote, back := filepath.Join(s.dir, "local"), filepath.Join(s.home, "remote"), filepath.Join(s.dir, "back")
	if err := os.WriteFile(local, data, 0o640); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"-p", local, "tester@127.0.0.1:remote"}, // relative to the home
		{"tester@127.0.0.1:" + remote, back},
	} {
		cmd := s.command("scp", append([]string{"-s", "-i", file}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("scp %q = %v, %s", args, err, out)
		}
	}
	if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, data) {
		t.Errorf("there and back: %d bytes, %v, want %d, the same", len(got), err, len(data))
	}
	if info, err := os.Stat(remote); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v, want 0640", info.Mode(), err)
	}
	cmd := s.command("sftp", "-i", file, "-b", "-", "tester@127.0.0.1")
	cmd.Stdin = strings.NewReader("pwd\nmkdir d\nrename remote d/r\nls d\nrm d/r\nrmdir d\n")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), s.home) || !strings.Contains(string(out), "d/r") {
		t.Errorf("sftp = %v, %s", err, out)
	}
	if _, err := os.Stat(remote); !os.IsNotExist(err) {
		t.Errorf("the file is still there: %v", err)
	}
}

// TestSFTPUser serves files with the rights of the user.
func TestSFTPUser(t *testing.T) {
	needRoot(t)
	// As the executable of the test is where only root can get to, it is that of the process itself that matters.
	c := startGuest(t)
	c.server.accounts.root = newTree(t, map[string]string{"etc/passwd": "u:x:4321:4321::/:/bin/sh\n"})
	u, err := c.server.accounts.byName("u")
	if err != nil {
		t.Fatal(err)
	}
	p := Command{}.plan(u)
	p.sftpServer()
	proc, err := p.start()
	if err != nil {
		t.Fatal(err)
	}
	go proc.wait()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", proc.cmd.Process.Pid))
	if err != nil || !strings.Contains(string(status), "Uid:\t4321\t4321\t4321\t4321\n") {
		t.Errorf("status %s, %v, want user 4321", status, err)
	}
	proc.closeStreams()
	<-proc.exited
}

func TestKeyOptions(t *testing.T) {
	plain, plainLine := keyFile(t)
	forced, forcedLine := keyFile(t)
	restricted, restrictedLine := keyFile(t)
	refused, refusedLine := keyFile(t)
	files, filesLine := keyFile(t)
	s := startSSH(t, plainLine, `command="echo forced $SSH_ORIGINAL_COMMAND" `+forcedLine, "restrict "+restrictedLine,
		`from="*" `+refusedLine, `command="internal-sftp" `+filesLine)
	run := func(key string, args ...string) (string, int) {
		cmd := s.command("ssh", append([]string{"-i", key, "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"}, args...)...)
		out, err := cmd.CombinedOutput()
		return string(out), exitCode(err)
	}
	const host = "tester@127.0.0.1"
	if out, code := run(plain, host, "echo x"); out != "x\n" || code != 0 {
		t.Errorf("plain: %q, %d", out, code)
	}
	for command, want := range map[string]string{"rm -rf x": "forced rm -rf x\n", "": "forced\n"} {
		args := []string{host}
		if command != "" {
			args = append(args, command)
		}
		if out, code := run(forced, args...); out != want || code != 0 {
			t.Errorf("forced: %q, %d, want %q", out, code, want)
		}
	}
	if out, code := run(restricted, host, "echo x"); out != "x\n" || code != 0 {
		t.Errorf("restricted: %q, %d", out, code)
	}
	if out, _ := run(restricted, "-tt", host, "tty"); !strings.Contains(out, "PTY allocation request failed") {
		t.Errorf("restricted, with a terminal: %q", out)
	}
	if out, code := run(restricted, "-W", s.address, host); code == 0 || strings.Contains(out, version) {
		t.Errorf("restricted, forwarding: %q, %d", out, code)
	}
	if out, code := run(refused, host, "true"); code != 255 {
		t.Errorf("a key with an option that is not known: %q, %d", out, code)
	}
	if !strings.Contains(s.log.String(), `option "from" is not supported`) {
		t.Errorf("log %q has nothing about from", s.log)
	}
	cmd := s.command("sftp", "-i", files, "-o", "BatchMode=yes", "-b", "-", host)
	cmd.Stdin = strings.NewReader("pwd\n")
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), s.home) {
		t.Errorf("sftp = %v, %s", err, out)
	}
}

// dial logs in with the Go client.
func (s *sshServer) dial(auth ...ssh.AuthMethod) (*ssh.Client, error) {
	return ssh.Dial("tcp", s.address, &ssh.ClientConfig{User: "tester", Auth: auth, HostKeyCallback: ssh.InsecureIgnoreHostKey()})
}

func TestLoginRefusals(t *testing.T) {
	s := startSSH(t)
	tries := 0
	_, err := s.dial(ssh.RetryableAuthMethod(ssh.PasswordCallback(func() (string, error) {
		tries++
		return "wrong", nil
	}), 100))
	if err == nil || tries > maxAuthTries {
		t.Errorf("%v after %d passwords, want at most %d", err, tries, maxAuthTries)
	}
	if _, err := s.dial(); err == nil {
		t.Errorf("a login without anything")
	}
	client, err := s.dial(ssh.Password(password))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	// Nothing of the private side is there.
	if ok, _, err := client.SendRequest("x"+requestSuffix, true, nil); ok || err != nil {
		t.Errorf("a private global request: %t, %v", ok, err)
	}
	channel, requests, err := client.OpenChannel("session", nil)
	if err != nil {
		t.Fatal(err)
	}
	go ssh.DiscardRequests(requests)
	if ok, err := channel.SendRequest(requestCommand, true, []byte(`{"args":["true"]}`)); ok || err != nil {
		t.Errorf("a private command: %t, %v", ok, err)
	}
	for _, name := range []string{"LD_PRELOAD", "PATH", "", "A=B"} {
		if ok, err := channel.SendRequest("env", true, ssh.Marshal(envRequest{name, "x"})); ok || err != nil {
			t.Errorf("env %q: %t, %v", name, ok, err)
		}
	}
	for _, name := range []string{"auth-agent-req@openssh.com", "x11-req", "future", "signal", "window-change", "subsystem"} {
		if ok, err := channel.SendRequest(name, true, ssh.Marshal(stringRequest{"x"})); ok || err != nil {
			t.Errorf("%s: %t, %v", name, ok, err)
		}
	}
	channel.Close()
	for _, kind := range []string{"x11", "direct-streamlocal@openssh.com", "future"} {
		if _, _, err := client.OpenChannel(kind, nil); err == nil {
			t.Errorf("channel %s: no error", kind)
		}
	}
	var open []ssh.Channel
	for range maxLoginSessions {
		channel, requests, err := client.OpenChannel("session", nil)
		if err != nil {
			t.Fatalf("session %d: %v", len(open), err)
		}
		go ssh.DiscardRequests(requests)
		open = append(open, channel)
	}
	if _, _, err := client.OpenChannel("session", nil); err == nil {
		t.Errorf("session %d: no error", len(open))
	}
	for _, channel := range open {
		channel.Close()
	}
}

// TestSSHServerInstalled closes the listener, as the agent does when the guest gets an SSH server of its own, below the
// connection that may have installed it.
func TestSSHServerInstalled(t *testing.T) {
	s := startSSH(t)
	client, err := s.dial(ssh.Password(password))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	running, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	input, err := running.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := running.Start("read x; exit $x"); err != nil {
		t.Fatal(err)
	}
	s.listener.Close()
	eventually(t, "no new connection", func() bool {
		conn, err := net.Dial("tcp", s.address)
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	other, err := net.Listen("tcp", s.address)
	if err != nil {
		t.Fatalf("the other server: %v", err)
	}
	other.Close()
	session, err := client.NewSession()
	if err != nil {
		t.Fatalf("a session afterwards: %v", err)
	}
	if out, err := session.Output("echo x"); string(out) != "x\n" || err != nil {
		t.Errorf("a command afterwards: %q, %v", out, err)
	}
	io.WriteString(input, "7\n")
	if exit, ok := errors.AsType[*ssh.ExitError](running.Wait()); !ok || exit.ExitStatus() != 7 {
		t.Errorf("the command that ran: %v, want 7", exit)
	}
	select {
	case err := <-s.served:
		t.Errorf("ServeListener = %v while a client is there", err)
	default:
	}
	client.Close()
	if err := <-s.served; err != nil {
		t.Errorf("ServeListener = %v", err)
	}
}

// TestKeysOnly refuses the password of an account of the image.
func TestKeysOnly(t *testing.T) {
	signer, _, line := newKey(t)
	s := startSSHWith(t, &Authenticator{KeysOnly: true}, line)
	asked := false
	_, err := s.dial(ssh.PasswordCallback(func() (string, error) {
		asked = true
		return password, nil
	}))
	if err == nil || asked {
		t.Errorf("with the password: %v, asked for it %t, want a refusal", err, asked)
	}
	client, err := s.dial(ssh.PublicKeys(signer))
	if err != nil {
		t.Fatalf("with the key: %v", err)
	}
	client.Close()
}

// TestEndOfWrite has a client that reads no more. OpenSSH's says so to servers that call themselves OpenSSH.
func TestEndOfWrite(t *testing.T) {
	s := startSSH(t)
	client, err := s.dial(ssh.Password(password))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	session, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	output, err := session.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errs buffer
	session.Stderr = &errs
	if err := session.Start("yes 2>/dev/null; exec >&-; echo over >&2; exit 3"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(output, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	// The command may be over, and the session with it, before there is an answer.
	if ok, err := session.SendRequest(requestEndOfWrite, true, nil); !ok && !errors.Is(err, io.EOF) {
		t.Errorf("%s: %t, %v", requestEndOfWrite, ok, err)
	}
	go io.Copy(io.Discard, output) // what was on its way
	if exit, ok := errors.AsType[*ssh.ExitError](session.Wait()); !ok || exit.ExitStatus() != 3 || errs.String() != "over\n" {
		t.Errorf("%v, %q, want 3, over", exit, errs.String())
	}
}

// TestStartups drops connections while too many have not logged in.
func TestStartups(t *testing.T) {
	s := startSSH(t)
	var idle []net.Conn
	for range maxStartups {
		conn, err := net.Dial("tcp", s.address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.ReadFull(conn, make([]byte, len(version))); err != nil {
			t.Fatal(err)
		}
		idle = append(idle, conn)
	}
	conn, err := net.Dial("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("one connection too many is served")
	}
	for _, conn := range idle {
		conn.Close()
	}
	eventually(t, "a login afterwards", func() bool {
		client, err := s.dial(ssh.Password(password))
		if err == nil {
			client.Close()
		}
		return err == nil
	})
}

// TestForward passes half-close through, and says why it cannot connect.
func TestForward(t *testing.T) {
	s := startSSH(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		data, _ := io.ReadAll(conn)
		conn.Write(append([]byte("got "), data...))
	}()
	client, err := s.dial(ssh.Password(password))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := client.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(conn, "data")
	conn.(interface{ CloseWrite() error }).CloseWrite()
	if got, err := io.ReadAll(conn); string(got) != "got data" || err != nil {
		t.Errorf("forwarded: %q, %v", got, err)
	}
	listener.Close()
	if _, err := client.Dial("tcp", listener.Addr().String()); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("to a closed port: %v", err)
	}
}
