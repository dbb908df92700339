/* Requests, the same for host, guest and (for what it answers itself) relay. */
#include "stem.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <termios.h>

#define READ_MAX CHUNK

static void accept_again(struct timer *t)
{
	(void)t;
	watch_set(&box.listener, EPOLLIN);
}

void on_accept(struct watch *w, uint32_t events)
{
	static struct timer later = { .fire = accept_again };
	(void)events;
	int fd = accept4(w->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	if (fd >= 0 && !conn_new(fd, false))
		close(fd);
	if (fd < 0 && errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) {
		watch_set(w, 0); /* no descriptors left: the caller waits in the queue until some are */
		timer_set(&later, NS_PER_S / 10);
	}
}

/* Contents of a small file (procfs and sysfs included): length, or negative errno. */
int file_read(const char *path, void *out, size_t size)
{
	size_t used = 0;
	autoclose int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return -errno;
	while (used < size) {
		ssize_t n = read(fd, (char *)out + used, size - used);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		used += (size_t)n;
	}
	return (int)used;
}

void hello_answer(struct conn *c, uint32_t tag, const char *release)
{
	uint8_t out[12 + 256];
	uint32_t head[3] = { PROTOCOL_VERSION, box.role, (uint32_t)strnlen(release, 256) };
	memcpy(out, head, sizeof head);
	memcpy(out + sizeof head, release, head[2]);
	if (tag)
		conn_send(c, FR_OK, 0, 0, tag, out, sizeof head + head[2]);
}

static void hello(struct conn *c, const struct frame *f, const uint8_t *payload)
{
	struct reader r = { payload, payload + f->length, false };
	uint32_t version = get_u32(&r);
	struct utsname name;
	if (r.bad || version != PROTOCOL_VERSION)
		return reply_error(c, f, EPROTO, "this stem speaks version %u of the protocol", PROTOCOL_VERSION);
	c->custody = f->flags & HELLO_CUSTODY;
	if (box.role == ROLE_RELAY)
		return relay_hello(c, f);
	uname(&name);
	hello_answer(c, f->tag, name.release);
}

void spawn_request(struct conn *c, const struct frame *f, const uint8_t *payload)
{
	struct spawn s;
	struct failure failure = { .index = NO_INDEX };
	if (!spawn_parse(payload, f->length, &s, &failure))
		return reply_failure(c, 0, f->tag, &failure);
	if (box.stopping)
		return reply_error(c, f, ESHUTDOWN, "the sandbox is ending");
	if (f->flags & SPAWN_CHANNEL && (box.role != ROLE_RELAY || relay_has_monitor()))
		return reply_error(c, f, EBUSY, "only a relay has a channel, and only one");
	struct proc *p = proc_new(f->flags, false);
	if (!p)
		return reply_error(c, f, ENOMEM, "out of memory");
	p->id = proc_next_id() | (box.role == ROLE_RELAY ? LOCAL_BIT : 0);
	p->spawner = c;
	p->spawn_tag = f->tag;
	if (spawn_local(p, &s, &failure) < 0) {
		p->spawner = NULL;
		proc_forget(p);
		reply_failure(c, 0, f->tag, &failure);
	}
}

static void resize(struct conn *c, const struct frame *f, struct proc *p, const uint8_t *payload)
{
	struct reader r = { payload, payload + f->length, false };
	struct winsize size = { .ws_row = get_u16(&r), .ws_col = get_u16(&r) };
	if (r.bad)
		return reply_error(c, f, EINVAL, "RESIZE is malformed");
	if (!(p->flags & SPAWN_TTY) || p->out[0].fd < 0 || ioctl(p->out[0].fd, TIOCSWINSZ, &size) < 0)
		return reply_error(c, f, ENOTTY, "process %u has no terminal", p->id);
	reply(c, f, p->id, NULL, 0);
}

static void send_signal(struct conn *c, const struct frame *f, struct proc *p, const uint8_t *payload)
{
	struct reader r = { payload, payload + f->length, false };
	uint32_t number = get_u32(&r);
	if (r.bad)
		return reply_error(c, f, EINVAL, "SIGNAL is malformed");
	if (p->pidfd < 0)
		return reply_error(c, f, ESRCH, "process %u has ended", p->id);
	if (syscall(SYS_pidfd_send_signal, p->pidfd, number, NULL, 0) < 0)
		return reply_error(c, f, errno, "signal %u to process %u: %s", number, p->id, strerror(errno));
	reply(c, f, p->id, NULL, 0);
}

static void stat_request(struct conn *c, const struct frame *f)
{
	uint32_t count = 0;
	struct buf out = { 0 };
	for (struct proc *p = procs; p; p = p->next)
		count += p->id && p->state != P_STARTING;
	bool fine = buf_add(&out, &count, 4);
	for (struct proc *p = procs; p && fine; p = p->next) {
		uint32_t row[4] = { p->id, (uint32_t)p->pid, p->state == P_ENDED ? 2 : 1, p->code };
		if (p->id && p->state != P_STARTING)
			fine = buf_add(&out, row, sizeof row);
	}
	if (fine)
		reply(c, f, 0, out.data, out.len);
	buf_free(&out);
}

static void read_request(struct conn *c, const struct frame *f, const uint8_t *payload)
{
	static uint8_t out[READ_MAX];
	struct reader r = { payload, payload + f->length, false };
	autofree char *path = span_dup(get_span(&r));
	if (box.role != ROLE_GUEST)
		return reply_error(c, f, EPERM, "READ is answered by guests only");
	if (r.bad || !path || strlen(path) + 4 != f->length)
		return reply_error(c, f, EINVAL, "READ is malformed");
	int n = file_read(path, out, sizeof out);
	if (n < 0)
		return reply_error(c, f, -n, "read %s: %s", path, strerror(-n));
	reply(c, f, 0, out, (size_t)n);
}

/* Requests that name a process. */
static void process_request(struct conn *c, const struct frame *f, const uint8_t *payload)
{
	struct proc *p = proc_find(f->proc);
	if (!p || p->state == P_STARTING) {
		if (f->type != FR_WRITE)
			reply_error(c, f, ESRCH, "no process %u", f->proc);
		return;
	}
	switch (f->type) {
	case FR_ATTACH:
		reply(c, f, p->id, NULL, 0);
		/* fall through */
	case FR_WAIT:
		if (p->state == P_ENDED)
			send_exited(c, p, f->tag);
		else
			proc_add_waiter(p, c, f->tag, f->type == FR_ATTACH);
		break;
	case FR_WRITE:
		proc_write(p, c, payload, f->length, f->flags & WRITE_EOF);
		break;
	case FR_RESIZE:
		resize(c, f, p, payload);
		break;
	case FR_SIGNAL:
		send_signal(c, f, p, payload);
		break;
	}
}

/* HOLD and RELEASE of the relay, in a guest. */
static void hold_output(const struct frame *f, bool hold)
{
	struct proc *p = proc_find(f->proc);
	if (p && f->flags & HOLD_OUTPUT) {
		p->held_output = hold;
		proc_flow(p);
	}
}

/* False: the sender broke the protocol and is dropped. */
bool serve_frame(struct conn *c, const struct frame *f, const uint8_t *payload)
{
	if (box.role == ROLE_RELAY && relay_request(c, f, payload))
		return true;
	switch (f->type) {
	case FR_HELLO:
		hello(c, f, payload);
		break;
	case FR_SPAWN:
		spawn_request(c, f, payload);
		break;
	case FR_ATTACH:
	case FR_WRITE:
	case FR_RESIZE:
	case FR_SIGNAL:
	case FR_WAIT:
		process_request(c, f, payload);
		break;
	case FR_STAT:
		stat_request(c, f);
		break;
	case FR_SHUTDOWN:
		reply(c, f, 0, NULL, 0);
		if (f->flags & SHUTDOWN_FORCE && box.role == ROLE_RELAY)
			relay_kill();
		stop_sandbox(true);
		break;
	case FR_READ:
		read_request(c, f, payload);
		break;
	case FR_HOLD:
	case FR_RELEASE:
		if (!c->channel)
			return false;
		hold_output(f, f->type == FR_HOLD);
		break;
	default:
		reply_error(c, f, EINVAL, "unknown request 0x%x", f->type);
	}
	return true;
}
