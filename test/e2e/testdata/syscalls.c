// What a program of the guest may expect of system calls, whichever way they come to the guest's kernel: TestSystemCalls.
// Ends with 0, or with the line that did not hold.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096

#define CHECK(that) \
	do { \
		if (!(that)) { \
			fprintf(stderr, "line %d: not so: %s (errno %d)\n", __LINE__, #that, errno); \
			exit(1); \
		} \
	} while (0)

// --- A system call between known registers.

struct call {
	double before[8], after[8]; // xmm8, xmm9, xmm15, xmm0
	long nr, args[3], result, changed;
};

void make_call(struct call *);
asm(".text\n"
    "make_call:\n"
    "	push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15; push %rdi\n"
    "	mov $0x1111, %rbx; mov $0x2222, %rbp; mov $0x3333, %r12\n"
    "	mov $0x4444, %r13; mov $0x5555, %r14; mov $0x6666, %r15\n"
    "	movupd (%rdi), %xmm8; movupd 16(%rdi), %xmm9; movupd 32(%rdi), %xmm15; movupd 48(%rdi), %xmm0\n"
    "	mov 128(%rdi), %rax; mov 144(%rdi), %rsi; mov 152(%rdi), %rdx; mov 136(%rdi), %rdi\n"
    "	mov $0x77, %r8d; mov $0x88, %r9d; mov $0x99, %r10d\n"
    "	syscall\n"
    "	pop %rdi\n"
    "	mov %rax, 160(%rdi)\n"
    "	movupd %xmm8, 64(%rdi); movupd %xmm9, 80(%rdi); movupd %xmm15, 96(%rdi); movupd %xmm0, 112(%rdi)\n"
    "	xor $0x1111, %rbx; xor $0x2222, %rbp; or %rbp, %rbx; xor $0x3333, %r12; or %r12, %rbx\n"
    "	xor $0x4444, %r13; or %r13, %rbx; xor $0x5555, %r14; or %r14, %rbx; xor $0x6666, %r15; or %r15, %rbx\n"
    "	xor $0x77, %r8; or %r8, %rbx; xor $0x88, %r9; or %r9, %rbx; xor $0x99, %r10; or %r10, %rbx\n"
    "	xor 144(%rdi), %rsi; or %rsi, %rbx; xor 152(%rdi), %rdx; or %rdx, %rbx\n"
    "	mov %rbx, 168(%rdi)\n"
    "	pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
    "	ret\n");

// call returns what the system call did, and has looked at all other registers.
static long call(long nr, long a, long b, long c)
{
	struct call call = {.nr = nr, .args = {a, b, c}};

	for (int i = 0; i < 8; i++)
		call.before[i] = i + 0.5 + nr;
	make_call(&call);
	CHECK(call.changed == 0);
	CHECK(memcmp(call.before, call.after, sizeof(call.before)) == 0);
	return call.result;
}

static int wait_for(pid_t pid)
{
	int status;

	while (waitpid(pid, &status, 0) < 0)
		CHECK(errno == EINTR);
	return status;
}

// --- Signals.

static volatile int alarms;

static void on_alarm(int signal)
{
	(void)signal;
	alarms++;
	getppid();
}

static void alarm_every(int usec, int flags)
{
	struct sigaction action = {.sa_handler = on_alarm, .sa_flags = flags};
	struct itimerval interval = {{0, usec}, {0, usec}};

	CHECK(sigaction(SIGALRM, &action, NULL) == 0);
	CHECK(setitimer(ITIMER_REAL, &interval, NULL) == 0);
}

static void interrupted(void)
{
	struct timespec moment = {0, 5000000};
	int pipes[2];
	sigset_t none;
	char byte;

	CHECK(pipe(pipes) == 0);

	alarm_every(1500, SA_RESTART);
	for (int i = 0; i < 50000; i++)
		CHECK(call(SYS_getppid, 0, 0, 0) == getppid());
	for (int i = 0; i < 20; i++) {
		long result = call(SYS_nanosleep, (long)&moment, 0, 0);
		CHECK(result == 0 || result == -EINTR);
	}
	// Started again after each alarm.
	for (int i = 0; i < 10; i++) {
		pid_t child = fork();
		CHECK(child >= 0);
		if (child == 0) {
			usleep(12000);
			byte = 'a' + i;
			_exit(write(pipes[1], &byte, 1) == 1 ? 7 : 8);
		}
		CHECK(call(SYS_read, pipes[0], (long)&byte, 1) == 1 && byte == 'a' + i);
		CHECK(WEXITSTATUS(wait_for(child)) == 7);
	}
	CHECK(alarms > 20);

	alarm_every(1500, 0);
	CHECK(call(SYS_read, pipes[0], (long)&byte, 1) == -EINTR);
	CHECK(pause() < 0 && errno == EINTR);
	sigemptyset(&none);
	CHECK(sigsuspend(&none) < 0 && errno == EINTR);
	alarm_every(0, SA_RESTART);
}

// --- Memory that the kernel is the first to write to.

static void fresh_memory(void)
{
	const int size = 256 * PAGE;
	char *data = malloc(size);
	int file = open("/tmp/syscalls", O_RDWR | O_CREAT | O_TRUNC, 0600);

	CHECK(file >= 0 && unlink("/tmp/syscalls") == 0);
	for (int i = 0; i < size; i++)
		data[i] = i * 31 + i / PAGE;
	CHECK(write(file, data, size) == size);

	for (int i = 0; i < 20; i++) {
		char *all = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		CHECK(all != MAP_FAILED);
		CHECK(pread(file, all, size, 0) == size && memcmp(all, data, size) == 0);
		CHECK(munmap(all, size) == 0);
	}
	for (int i = 0; i < 2000; i++) {
		char *some = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		CHECK(some != MAP_FAILED);
		CHECK(pread(file, some + 4000, 5000, PAGE * (i % 50)) == 5000);
		CHECK(memcmp(some + 4000, data + PAGE * (i % 50), 5000) == 0);
		CHECK(munmap(some, 3 * PAGE) == 0);
	}
	close(file);
	free(data);
}

// --- Processes that share memory for a while, and that are killed.

static void vfork_killed_in_call(volatile int *pid)
{
	const struct timespec long_time = {60, 0};

	*pid = 0;
	pid_t killer = fork();
	CHECK(killer >= 0);
	if (killer == 0) {
		while (*pid == 0)
			usleep(1000);
		usleep(20000);
		_exit(kill(*pid, SIGKILL));
	}
	pid_t child = vfork();
	CHECK(child >= 0);
	if (child == 0) {
		*pid = getpid();
		for (;;)
			nanosleep(&long_time, NULL);
	}
	CHECK(WIFSIGNALED(wait_for(child)));
	CHECK(call(SYS_getppid, 0, 0, 0) == getppid());
	CHECK(wait_for(killer) == 0);
}

static void vforks(void)
{
	volatile int *shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	char *argv[] = {"true", NULL};
	pid_t child;

	alarm_every(1500, SA_RESTART);
	for (int i = 0; i < 150; i++) {
		child = vfork();
		CHECK(child >= 0);
		if (child == 0) {
			shared[0]++;
			getppid();
			if (i % 3 == 0)
				kill(getpid(), SIGKILL);
			if (i % 3 == 1)
				_exit(i % 128);
			execv("/bin/true", argv);
			_exit(99);
		}
		int status = wait_for(child);
		if (i % 3 == 0)
			CHECK(WIFSIGNALED(status));
		else
			CHECK(WIFEXITED(status) && WEXITSTATUS(status) == (i % 3 == 1 ? i % 128 : 0));
	}
	CHECK(shared[0] == 150);

	for (int i = 0; i < 10; i++)
		vfork_killed_in_call(&shared[1]);
	for (int i = 0; i < 50; i++) {
		CHECK(posix_spawn(&child, "/bin/true", NULL, NULL, argv, NULL) == 0);
		CHECK(wait_for(child) == 0);
	}
	alarm_every(0, SA_RESTART);
}

static void killed(void)
{
	int pipes[2];

	CHECK(pipe(pipes) == 0);
	for (int i = 0; i < 40; i++) {
		pid_t child = fork();
		CHECK(child >= 0);
		while (child == 0) {
			char byte;
			if (i % 2 && read(pipes[0], &byte, 1) < 0)
				_exit(1);
			getppid();
		}
		usleep(i * 200);
		kill(child, i % 4 < 2 ? SIGKILL : SIGTERM);
		CHECK(WIFSIGNALED(wait_for(child)));
	}
}

// --- Tracers see all registers, and what they change holds.

static void traced(void)
{
	struct user_regs_struct regs;
	int status, stops = 0, seen = 0;
	pid_t child = fork();

	CHECK(child >= 0);
	if (child == 0) {
		CHECK(ptrace(PTRACE_TRACEME, 0, 0, 0) == 0);
		raise(SIGSTOP);
		for (int i = 0; i < 50; i++)
			if (call(SYS_getppid, 0, 0, 0) != 4711)
				_exit(1);
		_exit(5);
	}
	CHECK(WIFSTOPPED(wait_for(child)));
	CHECK(ptrace(PTRACE_SETOPTIONS, child, 0, PTRACE_O_TRACESYSGOOD) == 0);
	for (;; stops++) {
		CHECK(ptrace(PTRACE_SYSCALL, child, 0, 0) == 0);
		status = wait_for(child);
		if (WIFEXITED(status))
			break;
		CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == (SIGTRAP | 0x80));
		CHECK(ptrace(PTRACE_GETREGS, child, 0, &regs) == 0);
		if (regs.orig_rax != SYS_getppid)
			continue;
		seen++;
		CHECK(regs.rbx == 0x1111 && regs.rbp == 0x2222 && regs.r12 == 0x3333 && regs.r15 == 0x6666);
		if (stops % 2) {
			regs.rax = 4711;
			CHECK(ptrace(PTRACE_SETREGS, child, 0, &regs) == 0);
		}
	}
	CHECK(WEXITSTATUS(status) == 5 && seen == 100);

	// One that sleeps in a call is stopped there.
	child = fork();
	CHECK(child >= 0);
	while (child == 0) {
		struct timespec moment = {0, 300000};
		call(SYS_nanosleep, (long)&moment, 0, 0);
	}
	for (int i = 0; i < 30; i++) {
		usleep(2000);
		CHECK(ptrace(PTRACE_ATTACH, child, 0, 0) == 0);
		CHECK(WIFSTOPPED(wait_for(child)));
		CHECK(ptrace(PTRACE_GETREGS, child, 0, &regs) == 0);
		CHECK(regs.rsp > PAGE && regs.rip > PAGE);
		for (int step = 0; i % 2 && step < 20; step++) {
			CHECK(ptrace(PTRACE_SINGLESTEP, child, 0, 0) == 0);
			CHECK(WIFSTOPPED(wait_for(child)));
		}
		CHECK(ptrace(PTRACE_DETACH, child, 0, 0) == 0);
	}
	kill(child, SIGKILL);
	CHECK(WTERMSIG(wait_for(child)) == SIGKILL);
}

// --- The guest's own seccomp filters.

static void filtered(void)
{
	pid_t child = fork();

	CHECK(child >= 0);
	if (child == 0) {
		struct sock_filter filter[] = {
			BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
			BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
			BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 42),
			BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getuid, 0, 1),
			BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
			BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		};
		struct sock_fprog prog = {sizeof(filter) / sizeof(filter[0]), filter};

		CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
		CHECK(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &prog) == 0);
		for (int i = 0; i < 100; i++)
			CHECK(call(SYS_getppid, 0, 0, 0) == -42);
		call(SYS_getuid, 0, 0, 0);
		_exit(3);
	}
	int status = wait_for(child);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS);
}

// --- What a container may not do, and what there is not: the guest's kernel answers.

static void refused_outside(void)
{
	CHECK(mount("none", "/mnt", "tmpfs", 0, NULL) == 0 && umount("/mnt") == 0);
	pid_t child = fork();
	CHECK(child >= 0);
	if (child == 0)
		_exit(unshare(CLONE_NEWNS | CLONE_NEWPID) != 0);
	CHECK(wait_for(child) == 0);
	CHECK(socket(AF_VSOCK, SOCK_STREAM, 0) < 0 && errno == EAFNOSUPPORT);

	CHECK(syscall(0x40000000 + SYS_write) == -1 && errno == ENOSYS);
	CHECK(syscall(99999) == -1 && errno == ENOSYS);
	CHECK(syscall(-1) == -1 && errno == ENOSYS);
}

// --- Threads.

static void *calls(void *unused)
{
	(void)unused;
	for (int i = 0; i < 2000; i++) {
		CHECK(call(SYS_getppid, 0, 0, 0) == getppid());
		if (i % 100 == 0)
			sched_yield();
	}
	return NULL;
}

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turned = PTHREAD_COND_INITIALIZER;
static int turn;

static void *turns(void *number)
{
	for (int i = 0; i < 300; i++) {
		pthread_mutex_lock(&mutex);
		while (turn != *(int *)number)
			pthread_cond_wait(&turned, &mutex);
		turn = !turn;
		pthread_cond_broadcast(&turned);
		pthread_mutex_unlock(&mutex);
	}
	return NULL;
}

static void threads(void)
{
	pthread_t thread[4];
	int number[] = {0, 1};

	for (int round = 0; round < 3; round++) {
		for (int i = 0; i < 4; i++)
			CHECK(pthread_create(&thread[i], NULL, calls, NULL) == 0);
		for (int i = 0; i < 4; i++)
			pthread_join(thread[i], NULL);
	}
	for (int i = 0; i < 2; i++)
		CHECK(pthread_create(&thread[i], NULL, turns, &number[i]) == 0);
	for (int i = 0; i < 2; i++)
		pthread_join(thread[i], NULL);

	// The first one of a process that had but one
	for (int i = 0; i < 10; i++) {
		pid_t child = fork();
		CHECK(child >= 0);
		if (child == 0) {
			calls(NULL);
			CHECK(pthread_create(&thread[0], NULL, calls, NULL) == 0);
			calls(NULL);
			pthread_join(thread[0], NULL);
			_exit(9);
		}
		CHECK(WEXITSTATUS(wait_for(child)) == 9);
	}
}

static void many_processes(void)
{
	pid_t children[150];

	for (int i = 0; i < 150; i++) {
		children[i] = fork();
		CHECK(children[i] >= 0);
		while (children[i] == 0)
			pause();
	}
	for (int i = 0; i < 150; i++) {
		kill(children[i], SIGKILL);
		CHECK(WTERMSIG(wait_for(children[i])) == SIGKILL);
	}
}

// --- Nothing is read or written twice, whatever the host does to us: TestPause.

static void numbers(time_t seconds)
{
	const time_t end = time(NULL) + seconds;
	long number, want;
	int pipes[2];

	CHECK(pipe(pipes) == 0);
	pid_t reader = fork();
	CHECK(reader >= 0);
	if (reader == 0) {
		close(pipes[1]);
		for (want = 0; read(pipes[0], &number, sizeof(number)) == sizeof(number); want++)
			CHECK(number == want);
		_exit(0);
	}
	close(pipes[0]);
	puts("begun");
	fflush(stdout);
	alarm_every(3000, SA_RESTART);
	for (number = 0; number % 1000 || time(NULL) < end; number++)
		CHECK(write(pipes[1], &number, sizeof(number)) == sizeof(number));
	close(pipes[1]);
	CHECK(wait_for(reader) == 0);
}

int main(int argc, char **argv)
{
	if (argc > 1) {
		numbers(atoi(argv[1]));
		return 0;
	}
	for (int i = 0; i < 2000; i++)
		CHECK(call(SYS_getppid, 0, 0, 0) == getppid());
	interrupted();
	fresh_memory();
	vforks();
	killed();
	traced();
	filtered();
	refused_outside();
	many_processes();
	threads();
	return 0;
}
