/* The event loop: epoll, timers, SIGCHLD and the end of the daemon. One event per wait, so that no handler can meet an object
 * that an earlier handler of the same batch has freed. */
#include "stem.h"

#include <signal.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <time.h>

struct sandbox box = { .listener = { .fd = -1 }, .root = -1, .last = -1 };
uint8_t scratch_in[CHUNK], scratch_out[CHUNK];
static int epoll_fd = -1;
static struct timer *timers;
static struct watch signal_watch = { .fd = -1 };

uint64_t clock_ns(int clock)
{
	struct timespec t;
	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

void loop_init(void)
{
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (epoll_fd < 0)
		abort();
}

int watch_set(struct watch *w, uint32_t events)
{
	if (w->fd < 0 || w->events == events)
		return 0;
	int what = !w->events ? EPOLL_CTL_ADD : events ? EPOLL_CTL_MOD : EPOLL_CTL_DEL;
	struct epoll_event event = { .events = events, .data.ptr = w };
	if (epoll_ctl(epoll_fd, what, w->fd, &event) < 0)
		return -errno;
	w->events = events;
	return 0;
}

void watch_close(struct watch *w)
{
	watch_set(w, 0);
	close_fd(&w->fd);
}

void timer_clear(struct timer *t)
{
	for (struct timer **at = &timers; *at; at = &(*at)->next)
		if (*at == t) {
			*at = t->next;
			break;
		}
	t->at = 0;
}

void timer_set(struct timer *t, uint64_t delay_ns)
{
	timer_clear(t);
	t->at = clock_ns(CLOCK_MONOTONIC) + delay_ns;
	t->next = timers;
	timers = t;
}

/* Fires what is due; returns the milliseconds until the next timer, -1 = none, 0 when some have fired, whose consequences come first. */
static int timers_run(void)
{
	uint64_t now = timers ? clock_ns(CLOCK_MONOTONIC) : 0, next = UINT64_MAX;
	bool fired = false;
	for (struct timer *t = timers; t;) {
		if (t->at <= now) {
			timer_clear(t);
			t->fire(t);
			t = timers; /* the list may have changed */
			fired = true;
			continue;
		}
		if (t->at < next)
			next = t->at;
		t = t->next;
	}
	if (fired)
		return 0;
	return next == UINT64_MAX ? -1 : (int)((next - now) / 1000000 + 1);
}

static void on_signal(struct watch *w, uint32_t events)
{
	(void)events;
	struct signalfd_siginfo info;
	while (read(w->fd, &info, sizeof info) == sizeof info)
		if (info.ssi_signo == SIGCHLD)
			reap_children();
		else if (!box.is_init)
			stop_sandbox(true);
}

/* SIGCHLD and SIGTERM become events; a broken pipe is an error code like any other. */
void signals_init(void)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_SETMASK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	signal_watch.fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	signal_watch.ready = on_signal;
	if (signal_watch.fd < 0 || watch_set(&signal_watch, EPOLLIN) < 0)
		abort();
}

/* Begins the end: everything that runs is killed, the loop is left when all of it is reaped. */
void stop_sandbox(bool hurry)
{
	box.hurry |= hurry;
	if (hurry)
		procs_settle();
	if (box.stopping)
		return;
	box.stopping = true;
	watch_close(&box.listener);
	if (box.role == ROLE_RELAY)
		relay_stop();
	else
		procs_kill_all();
}

#define CUSTODY_NS (NS_PER_S / 20)
static struct timer alone;

static void on_alone(struct timer *t)
{
	(void)t; /* the end is considered after every event */
}

/* COMMAND starts an engine, which costs more than a short container. Whoever has started one and is about to wait for it gets the time
 * to say that it will clean up. */
static bool custodian_may_come(void)
{
	if (box.role != ROLE_HOST || !box.command || custody_held())
		return false;
	if (!alone.fire) {
		alone.fire = on_alone;
		timer_set(&alone, CUSTODY_NS);
	}
	return alone.at;
}

/* The conditions of docs/stem-protocol.md, "Roles": when may the daemon go? */
static void consider_the_end(void)
{
	if (box.role == ROLE_RELAY)
		relay_tick();
	if (box.main_ended && box.role != ROLE_GUEST && conns_flushed() && !custodian_may_come())
		stop_sandbox(false);
	if (box.role == ROLE_RELAY && relay_over())
		stop_sandbox(false);
	if (box.stopping && !procs_alive() && (box.hurry || conns_flushed()))
		box.finished = true;
}

void loop_run(void)
{
	while (!box.finished) {
		struct epoll_event event;
		int n = epoll_wait(epoll_fd, &event, 1, timers_run());
		if (n == 1) {
			struct watch *w = event.data.ptr;
			w->ready(w, event.events);
		}
		conns_sweep();
		procs_trim();
		consider_the_end();
	}
}
