#include "textflag.h"

// Address of stageParams: stageAddress + paramsOffset.
#define PARAMS 0x400400
// Address and length of failure, without the last byte.
#define FAILURE 0x4003c0
#define FAILURE_LEN 45

// Numbers of system calls (arch/x86/entry/syscalls/syscall_64.tbl).
#define SYS_WRITE 1
#define SYS_PAUSE 34
#define SYS_EXECVE 59
#define SYS_FCNTL 72
#define SYS_EXIT_GROUP 231
#define SYS_SETNS 308

#define CLONE_NEWUSER 0x10000000
#define F_SETFD 2
#define FD_CLOEXEC 1

// The stage, a program of its own: newStage copies it to 0x400100 of another process, where it is started with the stack
// as the kernel leaves it (argc, argv, NULL, environment, NULL). It calls nothing and has no data but stageParams.
TEXT stage<>(SB), NOSPLIT|NOFRAME, $0
	MOVQ $PARAMS, BX
	MOVL 0(BX), DI // Join
	CMPL DI, $0
	JLT  wait

	MOVL $CLONE_NEWUSER, SI
	MOVL $SYS_SETNS, AX
	SYSCALL
	TESTQ AX, AX
	JNE  fail

	MOVL 0(BX), DI
	MOVL $F_SETFD, SI
	MOVL $FD_CLOEXEC, DX
	MOVL $SYS_FCNTL, AX
	SYSCALL
	MOVL 4(BX), DI // Program
	MOVL $F_SETFD, SI
	MOVL $FD_CLOEXEC, DX
	MOVL $SYS_FCNTL, AX
	SYSCALL

	LEAQ 8(BX), DI // the path
	LEAQ 8(SP), SI // argv
	MOVQ 0(SP), CX // argc
	LEAQ 8(SI)(CX*8), DX
	MOVL $SYS_EXECVE, AX
	SYSCALL

fail:
	MOVL $2, DI
	MOVQ $FAILURE, SI
	MOVL $FAILURE_LEN, DX
	MOVL $SYS_WRITE, AX
	SYSCALL
	MOVL $125, DI
	MOVL $SYS_EXIT_GROUP, AX
	SYSCALL

wait:
	MOVL $SYS_PAUSE, AX
	SYSCALL
	JMP  wait

// func stageCode() unsafe.Pointer
TEXT ·stageCode(SB), NOSPLIT, $0-8
	LEAQ stage<>(SB), AX
	MOVQ AX, ret+0(FP)
	RET
