// What a kernel does for one small program: its figures, without a language's runtime in between. C, since Go's would
// have a dozen threads and a hundred mappings, which forks and switches are measured with.
//
//	micro NAME
//
// prints the value. work, beside it, has the names and units.
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGES = 8192, PAGE = 4096, FORKS = 200, BURNS = 10000, SPINS = 20000 };

static const double ENOUGH = 0.5; // seconds that a loop takes at least

static void die(const char *what)
{
	fprintf(stderr, "micro: %s: %s\n", what, strerror(errno));
	exit(1);
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

// per_round is the time of a round of f in seconds, as the mean of as many as take ENOUGH.
static double per_round(void (*f)(void))
{
	for (long n = 64;; n *= 2) {
		double began = now();
		for (long i = 0; i < n; i++)
			f();
		double took = now() - began;
		if (took >= ENOUGH / 2)
			return took / n;
	}
}

static void call(void) { syscall(SYS_getppid); }

static int there[2], back[2];

static void trip(void)
{
	char c = 0;
	if (write(there[1], &c, 1) != 1 || read(back[0], &c, 1) != 1)
		die("the other process");
}

// pipe_round_trip is a byte to another process on the same CPU and back: two switches, four system calls.
static double pipe_round_trip(void)
{
	cpu_set_t one;
	CPU_ZERO(&one);
	CPU_SET(sched_getcpu(), &one);
	if (sched_setaffinity(0, sizeof one, &one)) // the child inherits it
		die("sched_setaffinity");
	if (pipe(there) || pipe(back))
		die("pipe");
	pid_t pid = fork();
	if (pid < 0)
		die("fork");
	if (pid == 0) {
		char c;
		close(there[1]);
		while (read(there[0], &c, 1) == 1 && write(back[1], &c, 1) == 1)
			;
		_exit(0);
	}
	double t = per_round(trip);
	close(there[1]);
	waitpid(pid, NULL, 0);
	return t;
}

// page_fault is the first write to a page of anonymous memory.
static double page_fault(void)
{
	char *mem = mmap(NULL, (size_t)PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (mem == MAP_FAILED)
		die("mmap");
	madvise(mem, (size_t)PAGES * PAGE, MADV_NOHUGEPAGE); // the kernel may have none
	double began = now();
	for (int i = 0; i < PAGES; i++)
		mem[(size_t)i * PAGE] = 1;
	return (now() - began) / PAGES;
}

static void wait_for(pid_t pid)
{
	int status;
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0)
		die("child");
}

static void fork_exec_once(void)
{
	pid_t pid = fork();
	if (pid == 0) {
		execl("/bin/true", "true", NULL);
		_exit(127);
	}
	wait_for(pid);
}

static double fork_exec(void)
{
	fork_exec_once();
	double began = now();
	for (int i = 0; i < FORKS; i++)
		fork_exec_once();
	return (now() - began) / FORKS;
}

static void burn(void)
{
	volatile uint64_t sink;
	uint64_t n = 1;
	for (int i = 0; i < BURNS; i++) {
		syscall(SYS_getppid);
		for (int k = 0; k < SPINS; k++)
			n = n * 6364136223846793005u + 1442695040888963407u;
	}
	sink = n;
	(void)sink;
}

static double jobs(int n)
{
	pid_t pids[2];
	double began = now();
	for (int i = 0; i < n; i++) {
		pids[i] = fork();
		if (pids[i] == 0) {
			burn();
			_exit(0);
		}
	}
	for (int i = 0; i < n; i++)
		wait_for(pids[i]);
	return now() - began;
}

static void *burn_thread(void *unused)
{
	(void)unused;
	burn();
	return NULL;
}

static double threads(int n)
{
	pthread_t ids[2];
	double began = now();
	for (int i = 0; i < n; i++)
		if ((errno = pthread_create(&ids[i], NULL, burn_thread, NULL)))
			die("pthread_create");
	for (int i = 0; i < n; i++)
		pthread_join(ids[i], NULL);
	return now() - began;
}

// twice is how much more two of f get done at once than one after the other.
static double twice(double (*f)(int))
{
	double one = f(1);
	return 2 * one / f(2);
}

int main(int argc, char **argv)
{
	const char *name = argc == 2 ? argv[1] : "";
	double value;
	if (!strcmp(name, "system-call"))
		value = per_round(call) * 1e6;
	else if (!strcmp(name, "pipe-round-trip"))
		value = pipe_round_trip() * 1e6;
	else if (!strcmp(name, "page-fault"))
		value = page_fault() * 1e6;
	else if (!strcmp(name, "fork-exec"))
		value = fork_exec() * 1e3;
	else if (!strcmp(name, "two-jobs"))
		value = twice(jobs);
	else if (!strcmp(name, "two-threads"))
		value = twice(threads);
	else {
		fprintf(stderr, "usage: micro system-call|pipe-round-trip|page-fault|fork-exec|two-jobs|two-threads\n");
		return 2;
	}
	printf("%.6g\n", value);
	return 0;
}
