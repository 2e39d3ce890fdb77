#include "textflag.h"

// Numbers of system calls (arch/x86/entry/syscalls/syscall_64.tbl) and what they take.
#define SYS_RT_SIGACTION 13
#define SYS_RT_SIGRETURN 15
#define SYS_GETPID 39
#define SIGSET_SIZE 8
#define LAST_SIGNAL 64

// struct kernel_sigaction, and its flags SA_RESTORER|SA_ONSTACK|SA_RESTART.
#define SA_HANDLER 0
#define SA_FLAGS 8
#define SA_RESTORE 16
#define SA_MASK 24
#define SA_SIZE 32
#define FLAGS 0x1c000000

// goHandler is the handler of Go's runtime, the same for all signals.
GLOBL goHandler<>(SB), NOPTR, $8

// pid1entry is where a program begins that was linked with -E pid1entry; see "Signals before main" in the package's doc. It
// leaves the stack as the kernel made it, which is all that Go's own entry looks at.
TEXT pid1entry(SB), NOSPLIT|NOFRAME, $0
	MOVL $SYS_GETPID, AX
	SYSCALL
	CMPL AX, $1
	JNE  start

	LEAQ sigaction<>(SB), AX
	MOVQ AX, _cgo_sigaction(SB)

	SUBQ $SA_SIZE, SP
	LEAQ hold<>(SB), AX
	MOVQ AX, SA_HANDLER(SP)
	MOVQ $FLAGS, SA_FLAGS(SP)
	LEAQ sigreturn<>(SB), AX
	MOVQ AX, SA_RESTORE(SP)
	MOVQ $-1, SA_MASK(SP)
	MOVL $1, DI

next:
	LEAL -1(DI), CX
	BTQ  CX, ·forwardedSet(SB)
	JCC  skip
	MOVQ SP, SI
	XORL DX, DX
	MOVL $SIGSET_SIZE, R10
	MOVL $SYS_RT_SIGACTION, AX
	SYSCALL

skip:
	INCL DI
	CMPL DI, $LAST_SIGNAL
	JLE  next
	ADDQ $SA_SIZE, SP

start:
	JMP _rt0_amd64_linux(SB)

TEXT sigreturn<>(SB), NOSPLIT|NOFRAME, $0
	MOVL $SYS_RT_SIGRETURN, AX
	SYSCALL
	INT  $3 // not reached

// sigaction is what Go's runtime calls in the place of the system call: int sigaction(DI signal, SI new, DX old), a C
// function. For a signal that is forwarded it has the kernel call hold, which passes on to the runtime's handler.
TEXT sigaction<>(SB), NOSPLIT|NOFRAME, $0
	TESTQ SI, SI
	JEQ   call
	MOVQ  SA_HANDLER(SI), AX
	CMPQ  AX, $1 // SIG_DFL is 0, SIG_IGN 1
	JLS   call
	LEAL  -1(DI), CX
	BTQ   CX, ·forwardedSet(SB)
	JCC   call
	MOVQ  AX, goHandler<>(SB)
	LEAQ  hold<>(SB), AX
	MOVQ  AX, SA_HANDLER(SI)

call:
	MOVL $SIGSET_SIZE, R10
	MOVL $SYS_RT_SIGACTION, AX
	SYSCALL
	NEGL AX // an errno
	RET

// hold is the handler of all forwarded signals: hold(DI signal, SI info, DX context). Until released is set it notes them in
// held.
TEXT hold<>(SB), NOSPLIT|NOFRAME, $0
	CMPL ·released(SB), $0
	JNE  pass
	LEAL -1(DI), CX
	LOCK
	BTSQ CX, ·held(SB)
	CMPL ·released(SB), $0
	JEQ  done
	// Released meanwhile: the signal is ours still, or release has got it.
	LOCK
	BTRQ CX, ·held(SB)
	JCC  done

pass:
	MOVQ goHandler<>(SB), AX
	JMP  AX

done:
	RET
