// Package agent is the way from the supervisor into the guest: commands, terminals and files, over one byte stream.
// A small process in the guest serves it; with nothing else installed there another one is the guest's SSH server.
//
// # Theory of operation
//
// The protocol is SSH (RFC 4251 to 4254), with golang.org/x/crypto/ssh on both ends, because its channels already are
// what docker-exec(1) needs: any number of sessions over one stream, each with standard error apart, half-close,
// flow control, terminals, signals and exit codes. Of our own are only requests named NAME@docker-usermode-linux:
//
//   - "command", on a session channel in place of "exec": a Command in JSON. It is executed as it is, while "exec" is
//     a string for the shell of the user.
//   - "stdout", on a session channel of a Proxy: the client's pipe for standard output comes along with it (handover.go).
//   - global requests: JSON both ways, answered by ServerOptions.Handle; the payload of a refusal is its text.
//
// One Server serves two kinds of clients. Without an Authenticator, the stream itself is the proof of who is there: a
// console port that only root in the guest can open, with the supervisor at its other end. Any user may be asked for.
// With one, it is a listener on TCP, and does what sshd(8) would.
//
//	guest …  --unix socket-->  supervisor (Proxy, Client)  --console port-->  agent (Server.Serve)   --> command
//	ssh …    ------------------------ TCP ------------------------->  SSH server (ServeListener)  --> command
//
// A session is one command. Its standard streams are pipes, or a terminal, that one goroutine each copies from and to
// the channel, so that a client that does not read stops its own command and nothing else: the SSH window of a channel
// is 2 MiB, and requests never wait for data. They do wait for files, to look up a user, a directory and a program: a
// file system that hangs holds up its session and, as soon as that has more than 16 requests waiting, its connection.
// The channel is closed when the command has ended and its output is read; see process for what becomes of a child
// that keeps the output open. The other way round, a client that is gone is a terminal that is hung up: SIGHUP, and
// the streams are closed.
//
// All that is sent goes through a queue (stream.go), which is what keeps two busy ends from waiting for each other.
//
// Exit codes are those of a shell: 128+n after signal n, 127 for a command that is not there, 126 for one that cannot
// be executed, and 125 for what went wrong before, as with docker-run(1).
//
// Preconditions of the guest's end: /proc is mounted; the process has the umask, signal mask and limits that commands
// are to have (Go resets the dispositions of signals by itself); nothing else in the process waits for children.
//
// Non-goals: agent and X11 forwarding, remote forwarding, PAM, utmp, and passwords that have to be changed.
package agent

// requestSuffix marks what is not in an RFC, as RFC 4250 section 4.6.1 wants it.
const requestSuffix = "@docker-usermode-linux"

// requestCommand asks for a Command on a session channel.
const requestCommand = "command" + requestSuffix

// requestEndOfWrite says that its sender reads no more data of the channel (OpenSSH's PROTOCOL, section 2.1).
const requestEndOfWrite = "eow@openssh.com"

// bufferSize is the size of all copies, in bytes: what fits into one SSH packet (RFC 4253 section 6.1).
const bufferSize = 32 << 10

// What is on its way between a command and its client, in bytes: fewer system calls and fewer switches, which are what
// copying costs most of.
const (
	pipeSize       = 256 << 10 // a pipe between the agent and a command
	outputSize     = 128 << 10 // what the agent reads of an output at once, for several packets
	clientPipeSize = 1 << 20   // a pipe that is the client's standard output; what any user may have (pipe(7))
)
