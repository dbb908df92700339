/* The channel between a relay and its guest. In the relay: requests of many clients are given tags of its own and sent over
 * the one channel; what comes back is checked, because a guest may lie. In a guest: the channel is simply its only client. */
#include "stem.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <time.h>

#define PENDING_MAX 4096
#define STOP_WAIT (10 * NS_PER_S) /* for a guest that was asked to shut down */
#define LOST_WAIT (NS_PER_S)	  /* for a monitor that has closed the channel */

struct pending {
	struct pending *next;
	struct conn *conn; /* NULL: the asker is gone, or the relay itself asked */
	struct proc *proc; /* SPAWN: what will get a number */
	uint32_t proc_id, tag, client_tag;
	uint16_t type;
};

static struct conn *channel;
static struct proc *monitor;
static struct pending *pendings;
static uint32_t pending_count, last_tag;
static bool ready, lost, settled, monitor_over;
static char release[256];
static char reason[300];
static void give_up(struct timer *t);
static struct timer patience = { .fire = give_up };

struct conn *relay_channel(void)
{
	return channel;
}

bool relay_init(int fd)
{
	if (!channel)
		channel = conn_new(fd, true);
	else
		conn_open(channel, fd);
	if (channel)
		channel->corked = box.role == ROLE_RELAY;
	return channel != NULL;
}

bool relay_has_monitor(void)
{
	return monitor != NULL;
}

void relay_set_monitor(struct proc *p)
{
	monitor = p;
}

void relay_forget_monitor(struct proc *p)
{
	if (monitor == p)
		monitor = NULL;
}

void relay_kill(void)
{
	if (monitor && monitor->pidfd >= 0)
		syscall(SYS_pidfd_send_signal, monitor->pidfd, SIGKILL, NULL, 0);
}

static void give_up(struct timer *t)
{
	(void)t;
	relay_kill();
}

/* ---- requests of clients ---- */

static struct pending *pending_new(struct conn *c, const struct frame *f)
{
	struct pending *p = pending_count < PENDING_MAX ? calloc(1, sizeof *p) : NULL;
	if (!p) {
		reply_error(c, f, EAGAIN, "too many requests wait for the guest");
		return NULL;
	}
	do
		last_tag++;
	while (!last_tag);
	*p = (struct pending){ pendings, c, NULL, f->proc, last_tag, f->tag, f->type };
	pendings = p;
	pending_count++;
	return p;
}

static void pending_free(struct pending *p)
{
	for (struct pending **at = &pendings; *at; at = &(*at)->next)
		if (*at == p) {
			*at = p->next;
			break;
		}
	pending_count--;
	free(p);
}

static void gone_error(struct conn *c, const struct frame *f)
{
	reply_error(c, f, ESHUTDOWN, "%s", *reason ? reason : "the guest is gone");
}

/* Queued until READY: the channel's output queue does that, since nothing is written before. */
static struct pending *forward(struct conn *c, const struct frame *f, const void *payload, size_t size, uint16_t flags)
{
	if (lost) {
		gone_error(c, f);
		return NULL;
	}
	if (channel->out.len + size > QUEUE_MAX) {
		reply_error(c, f, ENOBUFS, "the guest does not keep up with requests");
		return NULL;
	}
	struct pending *p = pending_new(c, f);
	if (p)
		conn_send(channel, f->type, flags, f->proc, p->tag, payload, size);
	return p;
}

void relay_hello(struct conn *c, const struct frame *f)
{
	if (lost)
		return gone_error(c, f);
	if (ready)
		return hello_answer(c, f->tag, release);
	pending_new(c, f);
}

static void relay_spawn(struct conn *c, const struct frame *f, const uint8_t *payload)
{
	struct spawn s;
	struct failure failure = { .index = NO_INDEX };
	if (!spawn_parse(payload, f->length, &s, &failure))
		return reply_failure(c, 0, f->tag, &failure);
	if (box.stopping)
		return reply_error(c, f, ESHUTDOWN, "the sandbox is ending");
	struct proc *p = proc_new(f->flags & ~SPAWN_CHANNEL, true);
	autofree uint8_t *record = malloc((size_t)f->length + 16);
	if (!p || !record)
		return reply_error(c, f, ENOMEM, "out of memory");
	int rc = log_open(&p->log, s.log, s.log_keep, false);
	if (rc < 0) {
		reply_error(c, f, -rc, "open log %.*s: %s", (int)s.log.size, s.log.data, strerror(-rc));
		return proc_forget(p);
	}
	p->exit_path = s.exit.size ? span_dup(s.exit) : NULL;
	p->spawner = c;
	p->spawn_tag = f->tag;
	size_t size = spawn_without_paths(payload, f->length, record);
	/* the relay itself is always attached: it keeps the log and has to learn of the end */
	struct pending *q = forward(c, f, record, size, (f->flags & (SPAWN_TTY | SPAWN_STDIN)) | SPAWN_ATTACH);
	if (q)
		q->proc = p;
	else
		proc_forget(p);
}

/* True when the request was handled here. The others are the same as on a host. */
bool relay_request(struct conn *c, const struct frame *f, const uint8_t *payload)
{
	struct proc *p = proc_find(f->proc);
	switch (f->type) {
	case FR_SPAWN:
		if (f->flags & LOCAL)
			return false;
		relay_spawn(c, f, payload);
		return true;
	case FR_RESIZE:
	case FR_SIGNAL:
		if (!p || !p->remote || p->state != P_RUNNING)
			return false;
		forward(c, f, payload, f->length, 0);
		return true;
	case FR_READ:
		forward(c, f, payload, f->length, 0);
		return true;
	default:
		return false;
	}
}

/* Sends queued standard input while the guest takes it. */
void relay_write(struct proc *p)
{
	while (p->stdin_queue.len && !p->held_stdin && !channel->slow && ready) {
		size_t n = p->stdin_queue.len < CHUNK ? p->stdin_queue.len : CHUNK;
		bool last = p->stdin_eof && n == p->stdin_queue.len;
		conn_send(channel, FR_WRITE, last ? WRITE_EOF : 0, p->id, 0, p->stdin_queue.data + p->stdin_queue.head, n);
		buf_skip(&p->stdin_queue, n);
		p->eof_sent |= last;
	}
	if (p->stdin_eof && !p->eof_sent && !p->stdin_queue.len && p->state == P_RUNNING) {
		conn_send(channel, FR_WRITE, WRITE_EOF, p->id, 0, NULL, 0);
		p->eof_sent = true;
	}
}

/* The channel has room again. */
void relay_drained(void)
{
	for (struct proc *p = procs; p; p = p->next)
		if (p->remote && p->state == P_RUNNING)
			proc_refill(p);
}

void relay_forget_conn(struct conn *c)
{
	for (struct pending *p = pendings; p; p = p->next)
		if (p->conn == c)
			p->conn = NULL;
}

/* ---- what the guest says; false: it lies ---- */

static bool on_ready(const struct frame *f, const uint8_t *payload)
{
	struct reader r = { payload, payload + f->length, false };
	uint32_t version = get_u32(&r);
	struct span name = get_span(&r);
	get_u64(&r);
	if (ready || r.bad || r.at != r.end || version != PROTOCOL_VERSION || name.size >= sizeof release)
		return false;
	memcpy(release, name.data, name.size);
	release[name.size] = 0;
	ready = true;
	for (struct pending *p = pendings, *next; p; p = next) {
		next = p->next;
		if (p->type != FR_HELLO)
			continue;
		if (p->conn)
			hello_answer(p->conn, p->client_tag, release);
		pending_free(p);
	}
	conn_uncork(channel);
	return true;
}

static bool on_spawned(struct pending *q, const struct frame *f, const uint8_t *payload)
{
	struct reader r = { payload, payload + f->length, false };
	uint32_t id = get_u32(&r), pid = get_u32(&r);
	if (r.bad || !id || id & LOCAL_BIT || proc_find(id))
		return false;
	q->proc->id = id;
	q->proc->pid = (pid_t)pid;
	proc_started(q->proc);
	return true;
}

static bool parse_failure(const struct frame *f, const uint8_t *payload, struct failure *out)
{
	struct reader r = { payload, payload + f->length, false };
	out->index = get_u32(&r);
	out->error = (int32_t)get_u32(&r);
	struct span text = get_span(&r);
	if (r.bad || text.size >= sizeof out->text)
		return false;
	memcpy(out->text, text.data, text.size);
	out->text[text.size] = 0;
	return true;
}

static bool on_answer(const struct frame *f, const uint8_t *payload)
{
	struct pending *q = pendings;
	struct failure failure = { 0 };
	bool fine = true;
	while (q && (q->tag != f->tag || q->type == FR_HELLO))
		q = q->next;
	if (!q || (f->type == FR_ERROR && !parse_failure(f, payload, &failure)))
		return false;
	if (q->type == FR_SPAWN && f->type == FR_OK) {
		fine = on_spawned(q, f, payload);
	} else if (q->type == FR_SPAWN) {
		q->proc->failure = failure;
		proc_start_failed(q->proc);
		proc_forget(q->proc);
	} else if (q->conn && q->client_tag && f->type == FR_OK) {
		conn_send(q->conn, FR_OK, 0, q->proc_id, q->client_tag, payload, f->length);
	} else if (q->conn && f->type == FR_ERROR) {
		reply_failure(q->conn, q->proc_id, q->client_tag, &failure);
	}
	if (fine)
		pending_free(q);
	return fine;
}

static bool too_much_queued(const struct proc *p)
{
	for (struct waiter *w = p->waiters; w; w = w->next)
		if (w->attach && w->conn->out.len > QUEUE_MAX - CHUNK)
			return true;
	return false;
}

static bool on_process_frame(struct proc *p, const struct frame *f, const uint8_t *payload)
{
	struct reader r = { payload, payload + f->length, false };
	if (!p || !p->remote || p->state != P_RUNNING)
		return false;
	if (f->type == FR_OUTPUT) {
		if (f->length > CHUNK || too_much_queued(p))
			return false;
		proc_output(p, f->flags & OUTPUT_STDERR ? 2 : 1, payload, f->length);
	} else if (f->type == FR_EXITED) {
		uint32_t code = get_u32(&r), signal = get_u32(&r);
		uint64_t end = get_u64(&r);
		if (r.bad || code > 255)
			return false;
		proc_ended(p, code, signal, f->flags & EXITED_OOM, end);
	} else if (f->flags & HOLD_STDIN) {
		p->held_stdin = f->type == FR_HOLD;
		proc_refill(p);
	}
	return true;
}

bool relay_frame(struct conn *c, const struct frame *f, const uint8_t *payload)
{
	(void)c;
	if (!ready)
		return f->type == FR_READY && on_ready(f, payload);
	switch (f->type) {
	case FR_OK:
	case FR_ERROR:
		return on_answer(f, payload);
	case FR_OUTPUT:
	case FR_EXITED:
	case FR_HOLD:
	case FR_RELEASE:
		return on_process_frame(proc_find(f->proc), f, payload);
	default:
		return false;
	}
}

/* ---- the end ---- */

/* The channel is unusable. Clients hear of it when the monitor has been reaped: then the reason is known. */
void channel_lost(const char *why)
{
	if (box.role == ROLE_GUEST)
		return guest_channel_lost();
	if (lost)
		return;
	lost = true;
	snprintf(reason, sizeof reason, "the guest is gone: %s", why);
	conn_drop(channel);
	timer_set(&patience, strstr(why, "closed") ? LOST_WAIT : 1);
}

void relay_monitor_ended(struct proc *p)
{
	(void)p;
	monitor_over = true;
}

/* What ran in the guest did not end by itself: DIR/lost tells whoever finds the exit records why. */
static void leave_reason(void)
{
	autoclose int fd = open("lost", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
	if (fd >= 0)
		dprintf(fd, "%s\n", reason);
}

/* Everything that waits for the guest is answered, everything that ran in it has ended. */
static void settle(void)
{
	for (struct proc *p = procs; p && !box.stopping; p = p->next)
		if (p->remote && p->state == P_RUNNING) {
			leave_reason();
			break;
		}
	for (struct pending *q = pendings, *next; q; q = next) {
		struct frame f = { .proc = q->proc_id, .tag = q->client_tag };
		next = q->next;
		if (q->conn)
			gone_error(q->conn, &f);
		if (q->proc) {
			q->proc->spawner = NULL;
			proc_forget(q->proc);
		}
		pending_free(q);
	}
	for (struct proc *p = procs; p; p = p->next)
		if (p->remote && p->state == P_RUNNING)
			proc_ended(p, 137, 9, false, clock_ns(CLOCK_REALTIME));
}

/* Called once per turn of the loop, where nobody walks over a list. */
void relay_tick(void)
{
	size_t used;
	if (settled || !(monitor_over || (lost && !monitor)))
		return;
	while (!lost && conn_read(channel)) /* what the guest said before the end is still in the socket */
		;
	if (!lost)
		channel_lost("its monitor has ended");
	used = strlen(reason);
	if (monitor && monitor->signal)
		snprintf(reason + used, sizeof reason - used, " (the monitor was killed by signal %u)", monitor->signal);
	else if (monitor)
		snprintf(reason + used, sizeof reason - used, " (the monitor exited with code %u)", monitor->code);
	timer_clear(&patience);
	settled = true;
	settle();
}

/* Asks the guest to go (it syncs its disks); one that cannot be asked, or does not go, is killed with its monitor. */
void relay_stop(void)
{
	struct proc *p;
	for (p = procs; p; p = p->next)
		if (!p->remote && p != monitor && p->pidfd >= 0)
			syscall(SYS_pidfd_send_signal, p->pidfd, SIGKILL, NULL, 0);
	if (!monitor && !lost)
		return channel_lost("the sandbox was shut down");
	if (lost || !ready)
		return relay_kill();
	conn_send(channel, FR_SHUTDOWN, 0, 0, 0, NULL, 0);
	timer_set(&patience, STOP_WAIT);
}

/* A relay whose monitor has ended has nothing left to relay. */
bool relay_over(void)
{
	return settled && conns_flushed();
}
