/* Processes: their streams, who waits for them, their end. In a relay a process may be remote: the real one is in the guest
 * and this is the relay's picture of it, with the same log, clients and end. */
#include "stem.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#define TTY_GRACE (NS_PER_S / 2)

struct proc *procs;
static uint32_t last_id;

static void on_stdout(struct watch *w, uint32_t events);
static void on_stderr(struct watch *w, uint32_t events);
static void on_stdin(struct watch *w, uint32_t events);
static void on_grace(struct timer *t);

struct proc *proc_new(uint16_t flags, bool remote)
{
	struct proc *p = calloc(1, sizeof *p);
	if (!p)
		return NULL;
	p->flags = flags;
	p->remote = remote;
	p->channel = p->pidfd = p->log.fd = p->in.fd = p->status.fd = -1;
	p->out[0] = (struct watch){ .fd = -1, .ready = on_stdout };
	p->out[1] = (struct watch){ .fd = -1, .ready = on_stderr };
	p->in.ready = on_stdin;
	p->grace.fire = on_grace;
	p->next = procs;
	procs = p;
	return p;
}

struct proc *proc_find(uint32_t id)
{
	for (struct proc *p = procs; p && id; p = p->next)
		if (p->id == id)
			return p;
	return NULL;
}

uint32_t proc_next_id(void)
{
	return ++last_id;
}

static void proc_close(struct proc *p)
{
	watch_close(&p->out[0]);
	watch_close(&p->out[1]);
	watch_close(&p->in);
	watch_close(&p->status);
	timer_clear(&p->grace);
	close_fd(&p->pidfd);
	close_fd(&p->channel);
	log_close(&p->log);
	buf_free(&p->stdin_queue);
	free(p->exit_path);
	free(p->oom_path);
	p->exit_path = p->oom_path = NULL;
}

/* Connections that were waiting for p to take its stdin go on. */
static void unblock(struct proc *p)
{
	for (struct conn *c = conns; c; c = c->next)
		if (c->blocked == p && !c->dead)
			conn_resume(c);
	if (p->told_stdin) {
		p->told_stdin = false;
		conn_send(relay_channel(), FR_RELEASE, HOLD_STDIN, p->id, 0, NULL, 0);
	}
}

void proc_forget(struct proc *p)
{
	unblock(p);
	relay_forget_monitor(p);
	for (struct proc **at = &procs; *at; at = &(*at)->next)
		if (*at == p) {
			*at = p->next;
			break;
		}
	proc_close(p);
	while (p->waiters) {
		struct waiter *w = p->waiters;
		p->waiters = w->next;
		free(w);
	}
	free(p);
}

/* ---- output ---- */

void proc_output(struct proc *p, uint8_t stream, const void *data, size_t n)
{
	log_write(&p->log, stream, data, n);
	for (struct waiter *w = p->waiters; w; w = w->next)
		if (w->attach)
			conn_send(w->conn, FR_OUTPUT, stream == 2 ? OUTPUT_STDERR : 0, p->id, 0, data, n);
	proc_flow(p);
}

static void proc_finish(struct proc *p)
{
	proc_pump(p); /* nobody will read it any more: discards and unblocks */
	p->state = P_ENDED;
	if (p->exit_path && exit_record(p->exit_path, p->code, p->signal, p->oom, p->end_ns) < 0)
		exit_record("exit", p->code, p->signal, p->oom, p->end_ns);
	while (p->waiters) {
		struct waiter *w = p->waiters;
		p->waiters = w->next;
		send_exited(w->conn, p, w->tag);
		free(w);
	}
	proc_close(p);
	p->told_stdin = false; /* EXITED has said as much */
	unblock(p);
	if (p->flags & SPAWN_MAIN)
		box.main_ended = true;
	if (p->flags & SPAWN_CHANNEL && box.role == ROLE_RELAY)
		relay_monitor_ended(p);
}

/* One read from one stream. False when there is nothing now. Closes the stream at its end. */
static bool read_stream(struct proc *p, int which, size_t max)
{
	ssize_t n = read(p->out[which].fd, scratch_out, max < sizeof scratch_out ? max : sizeof scratch_out);
	if (n > 0) {
		p->left[which] -= (size_t)n < p->left[which] ? (size_t)n : p->left[which];
		proc_output(p, which ? 2 : 1, scratch_out, (size_t)n);
		return true;
	}
	if (n < 0 && errno == EINTR)
		return true;
	if (n < 0 && errno == EAGAIN)
		return false;
	watch_close(&p->out[which]); /* end of file, or EIO: the last one has closed the terminal */
	return false;
}

static bool must_wait(const struct proc *p)
{
	return p->stalled && !box.hurry;
}

/* After the process has ended: takes what is left. A pipe is done when what it held at that moment is read (others may keep
 * writing into it); a terminal at EIO, because what the process wrote last may still be on its way through the line
 * discipline, or after a grace time when somebody else keeps it open. */
static void proc_drain(struct proc *p)
{
	for (int i = 0; i < 2 && !(p->flags & SPAWN_TTY); i++) {
		while (p->out[i].fd >= 0 && p->left[i] && !must_wait(p) && read_stream(p, i, p->left[i]))
			;
		if (!must_wait(p))
			watch_close(&p->out[i]);
	}
	if (p->out[0].fd < 0 && p->out[1].fd < 0)
		proc_finish(p);
	else if (!must_wait(p) && !p->grace.at)
		timer_set(&p->grace, TTY_GRACE);
}

static void on_grace(struct timer *t)
{
	struct proc *p = (struct proc *)((char *)t - offsetof(struct proc, grace));
	if (must_wait(p))
		return;
	if (p->flags & SPAWN_TTY)
		watch_close(&p->out[0]);
	proc_drain(p);
}

static void on_output(struct proc *p, int which)
{
	read_stream(p, which, SIZE_MAX);
	if (p->state == P_ENDING)
		proc_drain(p);
}

static void on_stdout(struct watch *w, uint32_t events)
{
	(void)events;
	on_output((struct proc *)((char *)w - offsetof(struct proc, out)), 0);
}

static void on_stderr(struct watch *w, uint32_t events)
{
	(void)events;
	on_output((struct proc *)((char *)(w - 1) - offsetof(struct proc, out)), 1);
}

/* At the very end nobody's slowness counts any more. */
void procs_settle(void)
{
	for (struct proc *p = procs; p; p = p->next)
		if (p->state == P_ENDING)
			proc_drain(p);
}

/* Decides anew whether p's output is read: not while a client that is attached to it has too much queued. */
void proc_flow(struct proc *p)
{
	bool stalled = p->held_output;
	for (struct waiter *w = p->waiters; w; w = w->next)
		stalled |= w->attach && w->conn->slow && !w->conn->dead;
	if (p->state == P_STARTING || p->state == P_ENDED)
		return;
	bool changed = stalled != p->stalled;
	p->stalled = stalled;
	if (p->remote) {
		if (changed)
			conn_send(relay_channel(), stalled ? FR_HOLD : FR_RELEASE, HOLD_OUTPUT, p->id, 0, NULL, 0);
		return;
	}
	for (int i = 0; i < 2; i++)
		watch_set(&p->out[i], stalled ? 0 : EPOLLIN);
	if (changed && p->state == P_ENDING) {
		timer_clear(&p->grace);
		if (!stalled) /* from the loop, not from here: our caller still walks over lists */
			timer_set(&p->grace, p->flags & SPAWN_TTY ? TTY_GRACE : 1);
	}
}

/* ---- input ---- */

void proc_pump(struct proc *p)
{
	if (p->state >= P_ENDING || (p->in.fd < 0 && !p->remote)) {
		buf_free(&p->stdin_queue);
	} else if (p->remote) {
		relay_write(p);
	} else {
		while (p->stdin_queue.len) {
			ssize_t n = write(p->in.fd, p->stdin_queue.data + p->stdin_queue.head, p->stdin_queue.len);
			if (n > 0) {
				buf_skip(&p->stdin_queue, (size_t)n);
			} else if (errno == EAGAIN || errno == EINTR) {
				break;
			} else { /* the process has closed its standard input */
				buf_free(&p->stdin_queue);
				watch_close(&p->in);
			}
		}
		watch_set(&p->in, p->stdin_queue.len ? EPOLLOUT : 0);
		if (!p->stdin_queue.len && p->stdin_eof && !(p->flags & SPAWN_TTY))
			watch_close(&p->in);
	}
}

void proc_refill(struct proc *p)
{
	proc_pump(p);
	if (p->stdin_queue.len < QUEUE_LOW)
		unblock(p);
}

static void on_stdin(struct watch *w, uint32_t events)
{
	(void)events;
	proc_refill((struct proc *)((char *)w - offsetof(struct proc, in)));
}

void proc_write(struct proc *p, struct conn *c, const void *data, size_t n, bool eof)
{
	if (p->state >= P_ENDING || p->stdin_eof || (!p->remote && p->in.fd < 0))
		return;
	if (n && (p->stdin_queue.len + n > QUEUE_MAX || !buf_add(&p->stdin_queue, data, n)))
		return c->channel ? channel_lost("the relay ignores HOLD") : conn_drop(c);
	p->stdin_eof |= eof;
	proc_refill(p);
	if (p->stdin_queue.len <= QUEUE_HIGH)
		return;
	if (!c->channel)
		conn_block(c, p);
	else if (!p->told_stdin) {
		p->told_stdin = true;
		conn_send(c, FR_HOLD, HOLD_STDIN, p->id, 0, NULL, 0);
	}
}

/* ---- start and end ---- */

void proc_add_waiter(struct proc *p, struct conn *c, uint32_t tag, bool attach)
{
	struct waiter *w = calloc(1, sizeof *w);
	if (!w)
		return conn_drop(c);
	for (struct waiter *other = p->waiters; other; other = other->next)
		attach &= !(other->attach && other->conn == c); /* one copy of the output per connection is enough */
	*w = (struct waiter){ p->waiters, c, tag, attach };
	p->waiters = w;
	proc_flow(p);
}

void proc_drop_conn(struct conn *c)
{
	for (struct proc *p = procs; p; p = p->next) {
		if (p->spawner == c)
			p->spawner = NULL;
		if (c->channel) /* whoever comes next knows nothing of what was said before */
			p->told_stdin = p->held_output = p->held_stdin = false;
		for (struct waiter **at = &p->waiters; *at;) {
			struct waiter *w = *at;
			if (w->conn != c) {
				at = &w->next;
				continue;
			}
			*at = w->next;
			free(w);
		}
		proc_flow(p);
	}
}

void send_exited(struct conn *c, const struct proc *p, uint32_t tag)
{
	uint8_t out[16];
	memcpy(out, &p->code, 4);
	memcpy(out + 4, &p->signal, 4);
	memcpy(out + 8, &p->end_ns, 8);
	conn_send(c, FR_EXITED, p->oom ? EXITED_OOM : 0, p->id, tag, out, sizeof out);
}

/* The plan has been carried out: answers SPAWN. */
void proc_started(struct proc *p)
{
	uint32_t out[2] = { p->id, (uint32_t)p->pid };
	p->state = P_RUNNING;
	if (p->channel >= 0)
		conn_open(relay_channel(), take_fd(&p->channel));
	if (p->spawner) {
		if (p->spawn_tag)
			conn_send(p->spawner, FR_OK, 0, p->id, p->spawn_tag, out, sizeof out);
		if (p->flags & SPAWN_ATTACH)
			proc_add_waiter(p, p->spawner, p->spawn_tag, true);
	}
	p->spawner = NULL;
	proc_flow(p);
	proc_pump(p);
}

/* The plan failed: answers SPAWN; the process itself is forgotten once it is reaped. */
void proc_start_failed(struct proc *p)
{
	p->failed = true;
	if (p->spawner)
		reply_failure(p->spawner, p->id, p->spawn_tag, &p->failure);
	p->spawner = NULL;
	watch_close(&p->status);
	relay_forget_monitor(p); /* another one may be tried */
}

void proc_ended(struct proc *p, uint32_t code, uint32_t signal, bool oom, uint64_t end_ns)
{
	int64_t now = oom_count(p->oom_path);
	p->state = P_ENDING;
	p->code = code;
	p->signal = signal;
	p->oom = oom || (now >= 0 && now > p->oom_before);
	p->end_ns = end_ns;
	close_fd(&p->pidfd);
	for (int i = 0; i < 2; i++) {
		int left = 0;
		if (p->out[i].fd >= 0 && ioctl(p->out[i].fd, FIONREAD, &left) == 0)
			p->left[i] = (size_t)left;
	}
	proc_drain(p);
}

static void reaped(pid_t pid, int status)
{
	for (struct proc *p = procs; p; p = p->next) {
		if (p->pid != pid || p->remote || p->state > P_RUNNING)
			continue;
		if (p->cloning && !p->failed) {
			p->pid = 0; /* the one that continues the plan has not said its name yet */
			return;
		}
		uint32_t signal = WIFSIGNALED(status) ? (uint32_t)WTERMSIG(status) : 0;
		if (p->state == P_STARTING && p->exec_seen && !p->failed) {
			/* The one that cloned it may be a moment longer in dying, with the other copy of the status socket. */
			watch_close(&p->status);
			proc_started(p);
		} else if (p->state == P_STARTING && !p->failed) {
			fail_with(&p->failure, NO_INDEX, ESRCH, "the process ended before its plan was complete (%s %d)",
				  signal ? "signal" : "code", signal ? (int)signal : WEXITSTATUS(status));
			proc_start_failed(p);
		}
		if (p->failed)
			return proc_forget(p);
		return proc_ended(p, signal ? 128 + signal : (uint32_t)WEXITSTATUS(status), signal, false, clock_ns(CLOCK_REALTIME));
	}
}

/* Everything a child has said was said before it became a zombie, so its words are heard before it is reaped. */
void reap_children(void)
{
	for (;;) {
		siginfo_t info = { .si_pid = 0 };
		int status;
		if (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) < 0 || !info.si_pid)
			return;
		spawn_status_drain();
		if (waitpid(info.si_pid, &status, WNOHANG) > 0)
			reaped(info.si_pid, status);
	}
}

void procs_kill_all(void)
{
	for (struct proc *p = procs; p; p = p->next)
		if (!p->remote && p->state <= P_RUNNING && p->pidfd >= 0)
			syscall(SYS_pidfd_send_signal, p->pidfd, SIGKILL, NULL, 0);
}

int procs_alive(void)
{
	int alive = 0;
	for (struct proc *p = procs; p; p = p->next)
		alive += p->state != P_ENDED;
	return alive;
}

/* Forgets the oldest ended processes beyond ENDED_MAX. New ones are put at the head of the list. */
void procs_trim(void)
{
	int ended = 0;
	for (struct proc *p = procs, *next; p; p = next) {
		next = p->next;
		if (p->state == P_ENDED && !(p->flags & SPAWN_MAIN) && ++ended > ENDED_MAX)
			proc_forget(p);
	}
}
