/* From request to child: streams, clone, and what the child reports while it carries out its plan. */
#include "stem.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>

#define CLONE_NEW_ALL \
	(CLONE_NEWTIME | CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET)

/* fork(2) with namespaces. In the child nothing is shared with the parent but descriptors. */
pid_t clone_process(uint64_t flags, int *pidfd)
{
	struct clone_args args = { .flags = flags, .exit_signal = flags & CLONE_PARENT ? 0 : SIGCHLD };
	if (pidfd) {
		args.flags |= CLONE_PIDFD;
		args.pidfd = (uint64_t)(uintptr_t)pidfd;
	}
	return (pid_t)syscall(SYS_clone3, &args, sizeof args);
}

void reset_signals(void)
{
	sigset_t none;
	/* By the system call: the C library keeps 32 and 33 to itself, and a parent may have ignored them, too. */
	static const struct {
		void (*handler)(int);
		unsigned long flags, restorer, mask;
	} by_default;
	for (int s = 1; s < NSIG; s++)
		syscall(SYS_rt_sigaction, s, &by_default, NULL, sizeof by_default.mask);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

/* ---- the child's reports ---- */

void status_send(struct child *c, enum status_kind kind, const struct failure *f, int fd)
{
	struct status s = { .kind = kind };
	union {
		struct cmsghdr head;
		char space[CMSG_SPACE(sizeof(int))];
	} control = { 0 };
	struct iovec v = { &s, f ? sizeof s : sizeof s.kind };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1 };
	if (f)
		s.failure = *f;
	if (fd >= 0) {
		m.msg_control = &control;
		m.msg_controllen = sizeof control.space;
		control.head = (struct cmsghdr){ CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS };
		memcpy(CMSG_DATA(&control.head), &fd, sizeof fd);
	}
	if (c->status >= 0 && sendmsg(c->status, &m, MSG_NOSIGNAL) < 0 && errno == EPIPE)
		_exit(127); /* stem is gone, so there is nobody to work for */
}

static void set_tty(struct proc *p, int master)
{
	struct winsize size = { .ws_row = p->rows ? p->rows : 24, .ws_col = p->columns ? p->columns : 80 };
	watch_close(&p->out[0]);
	fcntl(master, F_SETFL, O_RDWR | O_NONBLOCK);
	ioctl(master, TIOCSWINSZ, &size);
	p->out[0].fd = master;
	watch_close(&p->in);
	p->in.fd = fcntl(master, F_DUPFD_CLOEXEC, 3);
}

static void set_pid(struct proc *p, pid_t pid)
{
	close_fd(&p->pidfd);
	p->pid = pid;
	p->cloning = false;
	p->pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (box.stopping && p->pidfd >= 0)
		syscall(SYS_pidfd_send_signal, p->pidfd, SIGKILL, NULL, 0);
}

static void status_message(struct proc *p, const struct status *s, pid_t sender, int fd)
{
	switch (s->kind) {
	case STATUS_ERROR:
		p->failure = s->failure;
		p->cloning = false;
		proc_start_failed(p);
		break;
	case STATUS_TTY:
		if (fd >= 0)
			set_tty(p, fd);
		break;
	case STATUS_CLONING:
		p->cloning = true;
		break;
	case STATUS_CLONED:
		set_pid(p, sender);
		break;
	case STATUS_EXEC:
		p->exec_seen = true;
		if (p->flags & SPAWN_MAIN && fd >= 0) {
			close_fd(&box.root);
			box.root = take_fd(&fd);
		}
		close_fd(&fd);
		break;
	}
}

/* One message. False when there is none, or the socket is done with; may forget p. */
static bool status_read(struct proc *p)
{
	struct status s = { 0 };
	union {
		struct cmsghdr head;
		char space[CMSG_SPACE(sizeof(int)) + CMSG_SPACE(sizeof(struct ucred))];
	} control;
	struct iovec v = { &s, sizeof s };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control.space };
	ssize_t n = recvmsg(p->status.fd, &m, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	if (n < 0)
		return errno == EINTR;
	if (n == 0) {
		watch_close(&p->status);
		if (p->exec_seen) {
			proc_started(p);
		} else {
			fail_with(&p->failure, NO_INDEX, ESRCH, "the process was killed while its plan was carried out");
			proc_start_failed(p);
			if (!p->pid)
				proc_forget(p);
		}
		return false;
	}
	int fd = -1;
	pid_t sender = 0;
	for (struct cmsghdr *h = CMSG_FIRSTHDR(&m); h; h = CMSG_NXTHDR(&m, h)) {
		struct ucred who;
		if (h->cmsg_type == SCM_RIGHTS)
			memcpy(&fd, CMSG_DATA(h), sizeof fd);
		else if (h->cmsg_type == SCM_CREDENTIALS)
			memcpy(&who, CMSG_DATA(h), sizeof who), sender = who.pid;
	}
	s.failure.text[sizeof s.failure.text - 1] = 0;
	status_message(p, &s, sender, fd);
	return p->status.fd >= 0;
}

static void on_status(struct watch *w, uint32_t events)
{
	(void)events;
	status_read((struct proc *)((char *)w - offsetof(struct proc, status)));
}

void spawn_status_drain(void)
{
	for (struct proc *p = procs, *next; p; p = next) {
		next = p->next;
		while (p->state == P_STARTING && p->status.fd >= 0 && status_read(p))
			;
	}
}

/* ---- the start ---- */

struct ends { /* the child's ends of everything */
	int in, out, err, status, channel;
};

static void close_ends(struct ends *e)
{
	close_fd(&e->in);
	close_fd(&e->out);
	close_fd(&e->err);
	close_fd(&e->status);
	close_fd(&e->channel);
}

static int make_pipe(int *reading, int *writing)
{
	int fds[2];
	if (pipe2(fds, O_CLOEXEC) < 0)
		return -errno;
	*reading = fds[0];
	*writing = fds[1];
	return 0;
}

static int make_streams(struct proc *p, struct ends *e)
{
	int rc = 0;
	if (p->flags & SPAWN_TTY)
		return 0;
	if (p->flags & SPAWN_STDIN)
		rc = make_pipe(&e->in, &p->in.fd);
	if (!rc)
		rc = make_pipe(&p->out[0].fd, &e->out);
	if (!rc)
		rc = make_pipe(&p->out[1].fd, &e->err);
	if (!rc) {
		fcntl(p->in.fd, F_SETFL, O_WRONLY | O_NONBLOCK);
		fcntl(p->out[0].fd, F_SETFL, O_RDONLY | O_NONBLOCK);
		fcntl(p->out[1].fd, F_SETFL, O_RDONLY | O_NONBLOCK);
	}
	return rc;
}

static int make_sockets(struct proc *p, struct ends *e)
{
	int fds[2], on = 1;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0)
		return -errno;
	p->status = (struct watch){ .fd = fds[0], .ready = on_status };
	e->status = fds[1];
	if (setsockopt(fds[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof on) < 0)
		return -errno;
	if (!(p->flags & SPAWN_CHANNEL))
		return 0;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)
		return -errno;
	fcntl(fds[0], F_SETFL, O_RDWR | O_NONBLOCK);
	p->channel = fds[0];
	e->channel = fds[1];
	return 0;
}

/* Moves what the child keeps out of the way of PLACED_MIN..PLACED_MAX and closes everything else it has inherited. The
 * pidfds of running processes stay, for JOIN. */
static void settle_descriptors(struct child *c, struct ends *e)
{
	if (e->in >= 0)
		dup2(e->in, 0);
	if (e->out >= 0)
		dup2(e->out, 1);
	if (e->err >= 0)
		dup2(e->err, 2);
	c->status = fcntl(e->status, F_DUPFD_CLOEXEC, PLACED_MAX + 1);
	c->channel = e->channel >= 0 ? fcntl(e->channel, F_DUPFD_CLOEXEC, PLACED_MAX + 1) : -1;
	for (struct proc *p = procs; p; p = p->next)
		if (p->pidfd >= 0)
			p->pidfd = fcntl(p->pidfd, F_DUPFD_CLOEXEC, PLACED_MAX + 1);
	close_others(c);
}

static int by_value(const void *a, const void *b)
{
	return *(const int *)a - *(const int *)b;
}

/* Closes every descriptor above 2 except those placed by the plan and stem's own in this child. */
void close_others(const struct child *c)
{
	int count = 0, total = PLACED_MAX + 8 + (int)c->kept_count;
	for (struct proc *p = procs; p; p = p->next)
		total++;
	autofree int *keep = calloc((size_t)total, sizeof *keep);
	if (!keep)
		_exit(127);
	for (int fd = PLACED_MIN; fd <= PLACED_MAX; fd++)
		if (c->placed[fd / 64] >> fd % 64 & 1)
			keep[count++] = fd;
	const int own[] = { c->status, c->channel, c->root, c->userns };
	for (size_t i = 0; i < sizeof own / sizeof *own; i++)
		if (own[i] >= 0)
			keep[count++] = own[i];
	for (struct proc *p = procs; p; p = p->next)
		if (p->pidfd >= 0)
			keep[count++] = p->pidfd;
	for (uint32_t k = 0; k < c->kept_count; k++)
		if (c->kept[k] >= 0)
			keep[count++] = c->kept[k];
	qsort(keep, (size_t)count, sizeof *keep, by_value);
	unsigned from = 3;
	for (int i = 0; i < count; from = (unsigned)keep[i++] + 1)
		if (from < (unsigned)keep[i])
			syscall(SYS_close_range, from, (unsigned)keep[i] - 1, 0);
	syscall(SYS_close_range, from, ~0u, 0);
}

static _Noreturn void child_main(struct proc *p, const struct spawn *s, struct ends *e)
{
	struct child c = { .root = -1, .userns = -1, .rows = p->rows, .columns = p->columns };
	reset_signals();
	setsid();
	umask(0);
	settle_descriptors(&c, e);
	plan_run(&c, s->ops, s->count);
}

/* Starts the child of a local process. p keeps what was made when this fails; the caller forgets it. */
int spawn_local(struct proc *p, const struct spawn *s, struct failure *f)
{
	struct ends e __attribute__((cleanup(close_ends))) = { -1, -1, -1, -1, -1 };
	int rc = log_open(&p->log, s->log, s->log_keep, p->flags & SPAWN_CONSOLE);
	if (rc < 0) {
		fail_with(f, NO_INDEX, -rc, "open log %.*s: %s", (int)s->log.size, s->log.data, strerror(-rc));
		return rc;
	}
	p->exit_path = s->exit.size ? span_dup(s->exit) : NULL;
	p->oom_path = s->oom.size ? span_dup(s->oom) : NULL;
	int64_t before = oom_count(p->oom_path);
	p->oom_before = before < 0 ? 0 : before; /* a group that the plan has yet to make begins at 0 */
	p->rows = s->rows;
	p->columns = s->columns;
	rc = make_streams(p, &e);
	if (!rc)
		rc = make_sockets(p, &e);
	if (!rc && s->clone & ~(uint64_t)CLONE_NEW_ALL)
		rc = -EINVAL;
	if (!rc) {
		p->pid = clone_process(s->clone, &p->pidfd);
		if (p->pid == 0)
			child_main(p, s, &e);
		rc = p->pid < 0 ? -errno : 0;
	}
	if (!rc && p->flags & SPAWN_CHANNEL)
		relay_set_monitor(p);
	if (!rc)
		rc = watch_set(&p->status, EPOLLIN);
	if (rc < 0)
		fail_with(f, NO_INDEX, -rc, "start a process: %s", strerror(-rc));
	return rc;
}
