// Entrypoint boots a whole Linux kernel (User-Mode Linux) as a plain process, with /rootfs as the guest's root
// file system and a userspace TCP/IP bridge as its network. As PID 1 of a container it also reaps orphans and
// forwards signals.
//
//	entrypoint [KERNEL ARGUMENT]...
//
// All arguments are raw kernel arguments. One that sets what an argument of ours sets (mem=, con0=, seccomp=, …)
// replaces it; what follows "--" goes to the guest's init. --help, --version and --showconfig print what the
// kernel says of itself, and nothing is booted.
//
// # Environment
//
// An empty variable counts as unset, except PORTS.
//
//	MEM                  RAM of the guest: a number with k, M or G. Default 256M.
//	PORTS                Ports forwarded into the guest, separated by blanks or commas. Default 22; empty
//	                     forwards nothing. 22, 8080:80 (container port:guest port), 53/udp, 53/tcp+udp,
//	                     5000-5010, 8000-8010:9000-9010, 127.0.0.1:8080:80, [::1]:8080:80.
//	ROOT_PASSWORD        Password of root in the guest. Default voidlinux, which is public: a warning says so.
//	                     The default is only given to a root that has no password yet.
//	SSH_AUTHORIZED_KEYS  Public keys that may log in as root: lines of an authorized_keys file, or the path of
//	                     one. When set, and ROOT_PASSWORD is not, root gets no password, and OpenSSH takes keys alone.
//	HOSTNAME             Name of the guest. Docker sets it to the container's.
//	LOG_LEVEL            trace, debug, info, warn or error: what is said of the supervisor's work on stderr.
//	                     Default info.
//	LOG_FORMAT           console or json. Default console.
//	ROOTFS               Directory that is the guest's root file system. Default /rootfs.
//	KERNEL               The kernel's binary. Default /linux.
//	INITRAMFS            The archive with the guest stage. Default /initramfs.
//
// # Signals
//
// SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGPWR and SIGRTMIN+3 power the guest off in an orderly way. A second one
// does not wait for the guest's init any longer, and so on, down to killing the kernel.
//
// # Exit code
//
//	0    the guest powered off, halted or rebooted
//	n    the guest wrote n to its /proc/exitcode before it did
//	1    the guest could not be started
//	2    the environment is wrong; every mistake has a line on stderr
//	125  the supervisor crashed, or the guest stage failed
//	126  the guest's init could not be executed
//	127  the guest has no init
//	134  the guest's kernel panicked
//	128+n  the kernel's process was killed by signal n
package main
