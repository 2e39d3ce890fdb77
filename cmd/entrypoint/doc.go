// Entrypoint boots a whole Linux kernel (User-Mode Linux) as a plain process, with /rootfs as the guest's root
// file system and a userspace TCP/IP bridge as its network. As PID 1 of a container it also reaps orphans and
// forwards signals.
//
//	entrypoint [KERNEL ARGUMENT]...
//	entrypoint COMMAND [ARGUMENT]...
//
// All arguments are raw kernel arguments, unless the first one is a command of ours. One that sets what an argument of ours
// sets (mem=, con0=, seccomp=, …) replaces it; what follows "--" goes to the guest's init. --help, --version and
// --showconfig print what the kernel says of itself, and nothing is booted.
//
// # Commands
//
// run boots a guest for one command; the others boot nothing. Those that ask a guest find the one that runs beside them,
// as docker exec CONTAINER entrypoint net does; where several run, --dir names the directory of the run. They need the
// user that the guest runs as, or root. Exit code: 0, 1 (no guest, or it does not answer) or 2 (wrong arguments); that of
// exec and run is their command's.
//
//	run [OPTION]... COMMAND [ARGUMENT]...
//	                     Boot, run the command in the guest as root, and end with it. Its standard streams are ours,
//	                     signals go to it (see Signals). Without --init, no init of the guest's is started: our own
//	                     program is process 1, and mounts what a container has. LOG_LEVEL defaults to warn, PORTS to
//	                     nothing; the guest's console goes to the log at level debug. A guest that powers itself off
//	                     meanwhile ends with the kernel's exit code.
//	exec [OPTION]... [COMMAND [ARGUMENT]...]
//	                     Run a command in the guest, without one a login shell. The same by the name guest: docker exec
//	                     -it CONTAINER guest. A guest that boots is waited for, 30 s at most.
//	status [--json]      State, uptime, kernel, init, memory, forwards and flows.
//	healthcheck          Print the state, and why the guest is not healthy: exit code 1 then. For Docker's HEALTHCHECK.
//	net [--json] [--all] Forwarded ports, live flows and counters. The names in the JSON are stable; package slirp,
//	                     type Inspection, says what each is. Without --all the table has the 20 flows that moved last.
//	version              The version of this program.
//	help                 A list of the commands.
//
// The options of run and exec come before the command:
//
//	-u, --user USER[:GROUP]   names or numbers
//	-w, --workdir DIR
//	-e, --env NAME[=VALUE]    may be repeated; without a value that of our own
//	-t, --tty                 a terminal in the guest; without it, where stdin and stdout are terminals
//	-T, --no-tty              never a terminal
//	-i, --interactive         ignored, stdin is always passed on: -it is -t
//	--init                    run: start the guest's own init beside the command
//	--dir DIR                 exec, status, healthcheck, net: look for the guest there only
//
// The exit code of a command is as in a shell: 127 is not found, 126 not executable, 128+n died by signal n; 125 says that
// it could not be run at all.
//
// # Environment
//
// An empty variable counts as unset, except PORTS.
//
//	MEM                  RAM of the guest: a number with k, M or G. Default 256M.
//	CPUS                 Number of the guest's CPUs, 1 to 64, or auto: as many as the container may use (cpuset and quota), 8
//	                     at most. Default auto. Each is a thread of the kernel's process.
//	USERSPACE            How the guest's programs are run: seccomp, ptrace or auto. Default auto: seccomp, or ptrace where the
//	                     host forbids that. seccomp is fast and can have several CPUs, but a program in the guest that means
//	                     harm can reach the guest kernel's memory; ptrace keeps it out, is slower and has one CPU.
//	CPU_PLACEMENT        auto or off. Default auto: each CPU of the guest stays on one of the host's that the container may
//	                     use, and is moved when that is busy with something else. With off the host's scheduler alone
//	                     decides; system calls of the guest are slower then, on virtual machines by a third or more.
//	NET                  on or off. Default on; off is a guest without a network interface, and leaves nothing to set for
//	                     PORTS, NET_ALLOW, NET_DENY, NET_MTU, NET_PCAP and NET_METRICS.
//	PORTS                Ports forwarded into the guest, separated by blanks or commas. Default 22; empty
//	                     forwards nothing. 22, 8080:80 (container port:guest port), 53/udp, 53/tcp+udp,
//	                     5000-5010, 8000-8010:9000-9010, 127.0.0.1:8080:80, [::1]:8080:80.
//	                     all, all/udp, all/tcp+udp, 127.0.0.1:all: every port that nobody else has and the list does
//	                     not name, but for those of the container's outgoing connections (ip_local_port_range).
//	                     ~22, ~8000-8010/udp: never these ports of the container, whatever else the list says.
//	PORTS_SOURCE         What the guest sees as client of a forwarded port. Default client: the client's address. gateway:
//	                     the gateway's. proxy: the gateway's, with a PROXY protocol header that tells the client's; UDP
//	                     has no header.
//	NET_ALLOW            What the guest may reach although it is closed by default or in NET_DENY: rules, separated by
//	                     blanks or commas. 10.0.0.0/8, 192.0.2.1:443/tcp, 192.0.2.0/24:8000-8010, 192.0.2.1/icmp,
//	                     fd00::/8, [fd00::/8]:443/tcp+udp, all:53. gateway:5432/tcp is a port of the container's loopback,
//	                     which the guest reaches at 10.0.2.2 and fd00:10:0:2::2. Closed by default are loopback, link-local
//	                     (metadata services), multicast and the guest's own network; only a rule within such a range
//	                     opens it, all does not. In the guest's own network, 10.0.2.0/24 and fd00:10:0:2::/64, that
//	                     opens nothing but the gateway: a warning says so.
//	NET_DENY             What the guest may not reach, unless NET_ALLOW has it: the same rules. With NET_DENY=all nothing
//	                     but NET_ALLOW is open, and the gateway's own services: its name server still asks the
//	                     container's.
//	NET_PCAP             File that gets every packet of the guest's network interface, for Wireshark or tcpdump -r. A
//	                     named pipe loses what nobody reads in time.
//	NET_MTU              MTU of the guest's NIC in bytes, 1280 to 65520. Default 1500.
//	NET_METRICS          Where Prometheus finds metrics, at /metrics: :9100, 127.0.0.1:9100, [::1]:9100.
//	ROOT_PASSWORD        Password of root in the guest. Default voidlinux, which is public: a warning says so.
//	                     The default is only given to a root that has no password yet, and not with run, which closes
//	                     it where a boot before has left it.
//	SSH_AUTHORIZED_KEYS  Public keys that may log in as root: lines of an authorized_keys file, or the path of
//	                     one. When set, and ROOT_PASSWORD is not, root gets no password, and keys alone are taken: by
//	                     OpenSSH, and by the server that a guest without one gets.
//	ROOT_PASSWORD_FILE   Path of a file with the password, which may end in a line break: a secret of Docker or Compose.
//	                     Instead of ROOT_PASSWORD, not beside it.
//	SSH_AUTHORIZED_KEYS_FILE
//	                     Path of a file with the keys, instead of SSH_AUTHORIZED_KEYS.
//	HOSTNAME             Name of the guest. Docker sets it to the container's.
//	STOP_TIMEOUT         How long the guest's init may take for an orderly shutdown: seconds, or a duration like 1m30s or
//	                     500ms, 0 to 1h. Default 6.5s. With 0 the init is not asked at all: file systems are synced and
//	                     remounted read-only, then the guest is halted. The steps beside it take up to 2.5 s, and Docker
//	                     kills after 10: docker stop -t, docker run --stop-timeout and stop_grace_period have to grow with it.
//	HOOKS                Directory with scripts that run in the guest as root, before its init, with the network up. Default
//	                     /docker-entrypoint.d, which need not exist. They run in lexical order, each by its #! or else by
//	                     /bin/sh, at /, with root's HOME and PATH and what the kernel's arguments give the init
//	                     (NAME=value), without a standard input; the first that fails powers the guest off with its exit
//	                     code. Files that are neither executable nor named *.sh are ignored with a note, *.envsh too;
//	                     hidden ones, backups (~) and .dpkg-* without. 1 MiB each, 8 MiB together. Those in its subdirectory
//	                     stop run in the same way when the guest is stopped, before its init is asked to shut down, all
//	                     of them whatever fails; STOP_TIMEOUT includes their time.
//	LOG_LEVEL            trace, debug, info, warn or error: what is said of the supervisor's work on stderr.
//	                     Default info. Above debug the kernel gets quiet as an argument, which systemd heeds too: errors,
//	                     panics and units that failed still show. It does not if you give quiet, debug, loglevel=,
//	                     ignore_loglevel or earlyprintk yourself.
//	LOG_FORMAT           console or json. Default console. With json each event is an object on stderr, with "stream":
//	                     "supervisor"; and unless stdout is a terminal, each line of the guest's console is one on stdout,
//	                     with "stream":"console" and "line". A line above 2 KiB, or not ended yet, comes in pieces; all but
//	                     the last have "partial":true. Escape sequences are kept.
//	ROOTFS               Directory that is the guest's root file system. Default /rootfs.
//	DISK                 Image of a disk, or a block device, that has the guest's root file system, in the place of ROOTFS. It is
//	                     /dev/ubda in the guest; root= as a kernel argument names a partition. One guest at a time may have
//	                     it, or several that are EPHEMERAL.
//	EPHEMERAL            on or off. Default off; with on, nothing of what the guest writes to its root file system is kept. With
//	                     ROOTFS it is in the guest's RAM, half of which it may fill; with DISK in a file without a name, in
//	                     TMPDIR, or else in /var/tmp or, where there is none, in the directory of the run.
//	KERNEL               The kernel's binary. Default /linux. Another one than ours keeps the guest's RAM in /dev/shm, which
//	                     has to be mounted exec; the modules that it needs are looked for in lib/uml/modules and lib/modules of
//	                     its prefix, lib/modules beside it, /usr/lib/uml/modules and /lib/modules.
//	INITRAMFS            The archive with the guest stage. Default /initramfs.
//
// # Signals
//
// SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGPWR and SIGRTMIN+3 power the guest off in an orderly way. A second one
// does not wait for the guest's init any longer, and so on, down to killing the kernel. With run, the first one goes to
// the command, and the guest is powered off when that has ended, or after STOP_TIMEOUT less the 2.5 s (half of a shorter
// one) that are left for the power-off. SIGUSR1, SIGUSR2, SIGALRM and SIGCONT go to the command of run, too, as soon as it
// can run, and mean nothing else.
//
// # Reboot
//
// A guest that reboots is booted again by the same process, with the same settings. run ends.
//
// # Exit code
//
//	0    the guest powered off or halted
//	n    the guest wrote n to its /proc/exitcode before it did, or a hook ended with n
//	1    the guest could not be started
//	2    the environment is wrong; every mistake has a line on stderr
//	125  the supervisor crashed, or the guest stage failed
//	126  the guest's init or a hook could not be executed
//	127  the guest has no init
//	134  the guest's kernel panicked
//	     (for run: the code of its command)
//	128+n  the kernel's process was killed by signal n
package main
