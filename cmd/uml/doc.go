// Uml boots whole Linux kernels (User-Mode Linux) as plain processes of a normal user, on any Linux host: no root, no
// KVM, no /dev/net/tun, no packages. It is what entrypoint is in a container, of the same parts, with names for guests and
// commands that find them.
//
//	uml up --rootfs DIR [OPTION]... [-- KERNEL ARGUMENT...]
//	uml run --rootfs DIR [OPTION]... COMMAND [ARGUMENT]...
//	uml exec NAME COMMAND [ARGUMENT]...
//	uml rootfs import|pull|create|grow|rm ...
//	uml ps, stop, kill, logs, status, net, version, help
//
// # Settings
//
// All settings of a guest are environment variables, which the doc of cmd/entrypoint explains, and options: MEM and --mem,
// NET_ALLOW and --net-allow. An option wins. Different from a container are these:
//
//	ROOTFS, DISK   one of them has to be given; ROOTFS takes a disk image, too
//	KERNEL, INITRAMFS
//	               by default those that are built into this program (make host)
//	PORTS          127.0.0.1:2222:22: a normal user can have no port below 1024, and the password is public. For run
//	               nothing, as there.
//	ROOT_PASSWORD  none where PORTS lead to the guest's port 22 from other addresses than the loopback's
//	HOOKS          nothing
//	HOSTNAME       the guest's name
//	OWNERSHIP      how files keep their owners, see there: auto, subids, disk or plain. Default auto
//
// # Ownership
//
// Root's files keep their owners. For a plain user there are three ways, of which auto is the first that works:
//
//	subids   the files are in a directory, and this program executes itself anew in a user namespace with the user's
//	         subordinate ids (package userns): for up and run on a directory, and for rootfs
//	disk     they are on an ext4 image (package disk), which rootfs makes in the place of the directory, and always with --size,
//	         or where the target's name ends in .img, .ext4 or .raw. To up and run it is one way or the other: what it is is seen
//	plain    they are in a directory, and all the user's. A warning says what would mend that
//
// # Guests
//
// A guest has a name, that of its root file system unless --name says otherwise. What runs is known in a directory of the
// user's (package control, Registry), by a lock for each name that the supervising process holds. Another one is on the root file
// system itself, which two guests may only share if they write nothing to it (--ephemeral).
//
// up without -d is the guest's console, and its end is the guest's. With -d it returns as soon as all ports are bound
// and the kernel runs, with --wait when the guest is healthy; what it said is in its log (uml logs), 10 MB and as
// much of before, below XDG_STATE_HOME (~/.local/state/uml). With a terminal, Ctrl-C is a byte for the guest: it is stopped from within, or by uml stop.
//
// # Exit code
//
// That of the guest, or of the command that was run in it, as entrypoint has it; 1 where nothing could be done, 2 for
// wrong arguments or settings, 125 for a command that could not be run.
package main
