/* Connections: bounded queues on both sides, frames out of bytes. */
#include "stem.h"

#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/uio.h>

struct conn *conns;

static void conn_watch(struct conn *c)
{
	uint32_t events = (c->blocked ? 0 : (uint32_t)EPOLLIN) | (c->out.len && !c->corked ? (uint32_t)EPOLLOUT : 0);
	if (!c->dead && watch_set(&c->w, events) < 0)
		conn_drop(c);
}

/* Only marks it; conns_sweep frees it when no handler can hold a pointer to it any more. */
void conn_drop(struct conn *c)
{
	if (c->dead)
		return;
	c->dead = true;
	watch_close(&c->w);
	buf_free(&c->in);
	buf_free(&c->out);
}

static void conn_flush(struct conn *c)
{
	while (c->out.len && !c->dead) {
		ssize_t n = write(c->w.fd, c->out.data + c->out.head, c->out.len);
		if (n > 0)
			buf_skip(&c->out, (size_t)n);
		else if (n < 0 && (errno == EAGAIN || errno == EINTR))
			break;
		else if (c->channel)
			return channel_lost("writing to the channel failed");
		else
			return conn_drop(c);
	}
	conn_watch(c);
}

/* After the queue has shrunk: what was waiting for that goes on. */
static void conn_drained(struct conn *c)
{
	if (c->slow && c->out.len < QUEUE_LOW && c->in_flight <= WINDOW / 2) {
		c->slow = false;
		for (struct proc *p = procs; p; p = p->next)
			proc_flow(p);
		if (c->channel)
			relay_drained();
	}
}

static bool carries_stream(uint16_t type)
{
	return type == FR_WRITE || type == FR_OUTPUT;
}

/* What a HOLD is meant to stop is under way already, and a virtual machine may be slow to pass the HOLD on. ACK bounds it. */
static void acknowledge(struct conn *c, const struct frame *f)
{
	if (!c->channel || !carries_stream(f->type) || (c->unacked += f->length) < WINDOW / 4)
		return;
	conn_send(c, FR_ACK, 0, 0, 0, &c->unacked, sizeof c->unacked);
	c->unacked = 0;
}

static bool on_ack(struct conn *c, const struct frame *f, const uint8_t *payload)
{
	struct reader r = { payload, payload + f->length, false };
	uint32_t bytes = get_u32(&r);
	if (r.bad || r.at != r.end || bytes > c->in_flight)
		return false;
	c->in_flight -= bytes;
	conn_drained(c);
	return true;
}

/* Runs the complete frames at the start of data; returns how many bytes they took. */
static size_t conn_frames(struct conn *c, const uint8_t *data, size_t size)
{
	size_t used = 0;
	while (!c->dead && !c->blocked && size - used >= FRAME_HEAD) {
		struct frame f;
		memcpy(&f, data + used, sizeof f);
		bool fine = f.length <= FRAME_MAX;
		if (fine && size - used - FRAME_HEAD < f.length)
			break;
		if (fine && c->channel && f.type == FR_ACK)
			fine = on_ack(c, &f, data + used + FRAME_HEAD);
		else if (fine && c->channel && box.role == ROLE_RELAY)
			fine = relay_frame(c, &f, data + used + FRAME_HEAD);
		else if (fine)
			fine = serve_frame(c, &f, data + used + FRAME_HEAD);
		if (!fine && c->channel)
			channel_lost("the other end broke the protocol");
		else if (!fine)
			conn_drop(c);
		else
			used += FRAME_HEAD + f.length;
		if (fine)
			acknowledge(c, &f);
	}
	return used;
}

static void conn_parse_queue(struct conn *c)
{
	size_t used = conn_frames(c, c->in.data + c->in.head, c->in.len);
	if (!c->dead && used)
		buf_skip(&c->in, used);
}

/* One read. False when there is nothing now, or the connection is over. */
bool conn_read(struct conn *c)
{
	ssize_t n = read(c->w.fd, scratch_in, sizeof scratch_in);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	if (n <= 0) {
		if (c->channel)
			channel_lost("the channel was closed");
		else
			conn_drop(c);
		return false;
	}
	size_t used = 0;
	if (!c->in.len)
		used = conn_frames(c, scratch_in, (size_t)n);
	if (!c->dead && used < (size_t)n && !buf_add(&c->in, scratch_in + used, (size_t)n - used))
		conn_drop(c);
	if (!c->dead && !used && c->in.len)
		conn_parse_queue(c);
	conn_watch(c);
	return !c->dead;
}

static void conn_ready(struct watch *w, uint32_t events)
{
	struct conn *c = (struct conn *)((char *)w - offsetof(struct conn, w));
	if (c->out.len && events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) {
		conn_flush(c);
		conn_drained(c);
	}
	if (!c->dead && w->fd >= 0 && !c->blocked && events & (EPOLLIN | EPOLLHUP | EPOLLERR))
		conn_read(c);
}

/* Stops reading c until p has taken its standard input. */
void conn_block(struct conn *c, struct proc *p)
{
	c->blocked = p;
	conn_watch(c);
}

void conn_resume(struct conn *c)
{
	c->blocked = NULL;
	conn_parse_queue(c);
	conn_watch(c);
}

struct conn *conn_new(int fd, bool channel)
{
	struct conn *c = calloc(1, sizeof *c);
	if (!c)
		return NULL;
	c->w = (struct watch){ .fd = fd, .ready = conn_ready };
	c->channel = channel;
	c->next = conns;
	conns = c;
	conn_watch(c);
	return c;
}

/* Gives the channel, which is made without a descriptor and outlives the one it has, a (new) descriptor. */
void conn_open(struct conn *c, int fd)
{
	c->w.fd = fd;
	c->dead = c->swept = c->slow = false;
	c->in_flight = c->unacked = 0;
	conn_watch(c);
}

void conn_uncork(struct conn *c)
{
	c->corked = false;
	conn_flush(c);
}

void conn_send(struct conn *c, uint16_t type, uint16_t flags, uint32_t proc, uint32_t tag, const void *data, size_t size)
{
	struct frame f = { (uint32_t)size, type, flags, proc, tag };
	size_t sent = 0;
	if (c->dead)
		return;
	/* A virtio port takes one message per write, and a message is dear there: header and payload are joined first. */
	if (!c->out.len && !c->corked && !(c->channel && box.role == ROLE_GUEST)) {
		struct iovec v[2] = { { &f, sizeof f }, { (void *)data, size } };
		ssize_t n = writev(c->w.fd, v, 2);
		if (n < 0 && errno != EAGAIN && errno != EINTR)
			return c->channel ? channel_lost("writing to the channel failed") : conn_drop(c);
		sent = n > 0 ? (size_t)n : 0;
	}
	bool queued = true;
	if (sent < sizeof f)
		queued = buf_add(&c->out, (char *)&f + sent, sizeof f - sent);
	size_t done = sent > sizeof f ? sent - sizeof f : 0;
	if (queued && done < size)
		queued = buf_add(&c->out, (const char *)data + done, size - done);
	if (!queued)
		return conn_drop(c);
	if (c->channel && box.role == ROLE_GUEST)
		conn_flush(c);
	if (c->out.len > QUEUE_MAX && !c->channel)
		return conn_drop(c); /* asks and asks and never reads the answers */
	if (c->channel && carries_stream(type))
		c->in_flight += (uint32_t)size;
	if (c->out.len > QUEUE_HIGH || c->in_flight > WINDOW)
		c->slow = true;
	conn_watch(c);
}

void reply(struct conn *c, const struct frame *f, uint32_t proc, const void *data, size_t size)
{
	if (f->tag)
		conn_send(c, FR_OK, 0, proc, f->tag, data, size);
}

void reply_failure(struct conn *c, uint32_t proc, uint32_t tag, const struct failure *f)
{
	uint8_t out[12 + sizeof f->text];
	uint32_t length = (uint32_t)strlen(f->text);
	if (!tag)
		return;
	memcpy(out, &f->index, 4);
	memcpy(out + 4, &f->error, 4);
	memcpy(out + 8, &length, 4);
	memcpy(out + 12, f->text, length);
	conn_send(c, FR_ERROR, 0, proc, tag, out, 12 + length);
}

void reply_error(struct conn *c, const struct frame *f, int error, const char *format, ...)
{
	struct failure failure = { .index = NO_INDEX, .error = error };
	va_list ap;
	va_start(ap, format);
	vsnprintf(failure.text, sizeof failure.text, format, ap);
	va_end(ap);
	reply_failure(c, f->proc, f->tag, &failure);
}

bool conns_flushed(void)
{
	for (struct conn *c = conns; c; c = c->next)
		if (!c->channel && !c->dead && c->out.len)
			return false;
	return true;
}

/* Is a connection open whose owner promised to clean up? One whose owner has died meanwhile does not count. */
bool custody_held(void)
{
	for (struct conn *c = conns; c; c = c->next) {
		struct pollfd p = { .fd = c->w.fd };
		if (c->custody && !c->dead && poll(&p, 1, 0) == 0)
			return true;
	}
	return false;
}

void conns_sweep(void)
{
	for (struct conn **at = &conns; *at;) {
		struct conn *c = *at;
		if (!c->dead) {
			at = &c->next;
			continue;
		}
		if (!c->swept) {
			proc_drop_conn(c);
			relay_forget_conn(c);
			c->swept = true;
		}
		if (c->channel) { /* always there, so that nobody has to ask */
			at = &c->next;
			continue;
		}
		*at = c->next;
		free(c);
	}
}
