/* Small programs that run inside a container in place of an executable, which the image may not have (operation BUILTIN). */
#include "stem.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

/* PID 1 of a pod: reaps, and leaves when asked to. */
static int run_pause(void)
{
	sigset_t set;
	siginfo_t info;
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	for (;;) {
		if (sigwaitinfo(&set, &info) < 0)
			continue;
		if (info.si_signo != SIGCHLD)
			return 0;
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
	}
}

/* The init of a container (operation INIT): hands every signal on to the one child that it was started for, reaps whatever ends, and
 * ends as that child does. Its signals are blocked already. */
_Noreturn void init_main(pid_t child)
{
	sigset_t all;
	siginfo_t info;
	pid_t pid;
	int status;
	prctl(PR_SET_NAME, INIT_NAME, 0, 0, 0);
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, NULL);
	for (;;) {
		while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
			if (pid == child)
				_exit(WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status));
		if (pid < 0 && errno == ECHILD)
			_exit(127);
		if (sigwaitinfo(&all, &info) > 0 && info.si_signo != SIGCHLD && info.si_signo != SIGTTIN && info.si_signo != SIGTTOU)
			kill(child, info.si_signo);
	}
}

static int run_stat(const char *path)
{
	struct stat st;
	char target[4096] = "", line[9000];
	size_t n = strlen(path);
	while (n > 1 && path[n - 1] == '/')
		n--;
	const char *base = path + n;
	while (base > path && base[-1] != '/')
		base--;
	int base_length = (int)(path + n - base);
	/* as docker cp: a trailing slash follows a symbolic link, otherwise the link itself is meant */
	int flags = O_PATH | (path[n] == '/' ? 0 : O_NOFOLLOW);
	autoclose int fd = open_in(AT_FDCWD, path, flags, 0, RESOLVE_NO_MAGICLINKS);
	if (fd < 0 || fstat(fd, &st) < 0) {
		dprintf(2, "stat: %s: %s\n", path, strerror(fd < 0 ? -fd : errno));
		return 1;
	}
	ssize_t t = S_ISLNK(st.st_mode) ? readlinkat(fd, "", target, sizeof target - 1) : 0;
	target[t > 0 ? t : 0] = 0;
	unsigned long long mtime = (unsigned long long)st.st_mtim.tv_sec * NS_PER_S + (unsigned long long)st.st_mtim.tv_nsec;
	int length = snprintf(line, sizeof line, "%u%c%llu%c%llu%c%.*s%c%s\n", st.st_mode, 0, (unsigned long long)st.st_size, 0, mtime, 0,
			      base_length ? base_length : 1, base_length ? base : "/", 0, target);
	return write(1, line, (size_t)length) == length ? 0 : 1;
}

/* One line of ps for /proc/PID; nothing when it has ended meanwhile. */
static void show_process(const char *pid)
{
	char path[64], text[1024], command[4096];
	struct stat st;
	unsigned long long ppid, tty, utime, stime, start;
	snprintf(path, sizeof path, "/proc/%s/stat", pid);
	int n = file_read(path, text, sizeof text - 1);
	if (n <= 0 || stat(path, &st) < 0)
		return;
	text[n] = 0;
	char *name = strchr(text, '('), *end = strrchr(text, ')');
	/* state ppid pgrp session tty tpgid flags minflt cminflt majflt cmajflt utime stime cutime cstime prio nice threads 0 start */
	if (!name || !end || sscanf(end + 1, " %*c %llu %*d %*d %llu %*d %*u %*u %*u %*u %*u %llu %llu %*d %*d %*d %*d %*d %*d %llu",
				    &ppid, &tty, &utime, &stime, &start) != 5)
		return;
	snprintf(path, sizeof path, "/proc/%s/cmdline", pid);
	n = file_read(path, command, sizeof command);
	while (n > 0 && !command[n - 1])
		n--;
	if (n <= 0) /* a kernel thread or a zombie */
		n = snprintf(command, sizeof command, "[%.*s]", (int)(end - name - 1), name + 1);
	for (int i = 0; i < n; i++)
		if (command[i] == '\n')
			command[i] = ' ';
	printf("%s %llu %u %llu %llu %llu ", pid, ppid, st.st_uid, tty, start, utime + stime);
	fwrite(command, 1, (size_t)n, stdout);
	putchar('\n');
}

static int run_ps(void)
{
	char self[16];
	DIR *proc = opendir("/proc");
	if (!proc) {
		dprintf(2, "ps: /proc: %s\n", strerror(errno));
		return 1;
	}
	snprintf(self, sizeof self, "%d", getpid());
	for (struct dirent *d; (d = readdir(proc));)
		if (strspn(d->d_name, "0123456789") == strlen(d->d_name) && strcmp(d->d_name, self))
			show_process(d->d_name);
	return fflush(stdout) ? 1 : 0;
}

_Noreturn void builtin_run(int count, struct arg *argv)
{
	const char *name = argv[0].s, *path = count > 1 ? argv[1].s : "";
	int code = 127;
	if (!strcmp(name, "pause"))
		code = run_pause();
	else if (!strcmp(name, "ps"))
		code = run_ps();
	else if (!strcmp(name, "stat") && count == 2)
		code = run_stat(path);
	else if (!strcmp(name, "tar-get") && count == 2)
		code = tar_get(path, false);
	else if (!strcmp(name, "tar-list") && count == 2)
		code = tar_get(path, true);
	else if (!strcmp(name, "tar-put") && count == 2)
		code = tar_put(path);
	else
		dprintf(2, "%s: no such builtin, or a wrong number of arguments\n", name);
	_exit(code);
}
