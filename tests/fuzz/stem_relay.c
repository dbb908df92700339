/* libFuzzer: a relay between clients and a guest that says anything, in any order. The state of relay.c is reset by including it. */
#include "../../stem/relay.c"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
void guest_channel_lost(void)
{
	abort(); /* only guests do that */
}

static int client_end = -1, guest_end = -1;
static struct conn *client;

static int pair(int *other)
{
	int fds[2];
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) < 0)
		abort();
	*other = fds[1];
	return fds[0];
}

static void drain(int fd)
{
	static char sink[1 << 16];
	while (read(fd, sink, sizeof sink) > 0)
		;
}

static void begin(void)
{
	static bool once;
	if (!once) {
		once = true;
		loop_init();
		box.role = ROLE_RELAY;
	}
	channel = NULL;
	relay_init(-1);
	conn_open(channel, pair(&guest_end));
	client = conn_new(pair(&client_end), false);
}

/* Everything goes, through the same functions as at the end of a daemon. */
static void finish(void)
{
	channel_lost("the test is over");
	relay_tick();
	timer_clear(&patience);
	while (procs)
		proc_forget(procs);
	if (client && !client->dead)
		conn_drop(client);
	conns_sweep();
	if (pendings || pending_count || conns != channel || channel->next)
		abort(); /* something was forgotten */
	free(channel);
	conns = channel = NULL;
	close_fd(&guest_end);
	close_fd(&client_end);
	ready = lost = settled = monitor_over = false;
	last_tag = 0;
	reason[0] = release[0] = 0;
	box.main_ended = box.stopping = box.hurry = box.finished = false;
}

static void client_spawn(uint16_t flags)
{
	/* empty paths, no clone flags, one operation: EXEC 1 "x" */
	static const uint8_t record[] = { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
					  1, 0, 0, 0, 42, 0, 2, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 'x' };
	struct frame f = { sizeof record, FR_SPAWN, (uint16_t)(flags & (SPAWN_ATTACH | SPAWN_TTY | SPAWN_STDIN | SPAWN_MAIN)), 0, 7 };
	serve_frame(client, &f, record);
}

static void step(uint8_t what, uint8_t proc, uint8_t tag, const uint8_t *payload, uint32_t size)
{
	static const uint16_t requests[] = { FR_HELLO, FR_ATTACH, FR_WRITE, FR_RESIZE, FR_SIGNAL, FR_WAIT, FR_STAT, FR_READ };
	static const uint16_t answers[] = { FR_OK, FR_ERROR, FR_OUTPUT, FR_EXITED, FR_HOLD, FR_RELEASE, FR_READY, 0x99 };
	struct frame f = { size, 0, tag & 3, proc & 7, tag };
	if (what < 96) {
		if (!client->dead && !client->blocked) {
			f.type = requests[what % 8];
			serve_frame(client, &f, payload);
		}
	} else if (what < 128) {
		if (!client->dead)
			client_spawn(tag);
	} else if (what < 240) {
		f.type = answers[what % 8];
		if (!lost && !relay_frame(channel, &f, payload))
			channel_lost("the other end broke the protocol");
	} else if (what < 248) {
		drain(client_end);
		drain(guest_end);
		if (!client->dead)
			client->w.ready(&client->w, EPOLLOUT);
		if (!lost)
			channel->w.ready(&channel->w, EPOLLOUT);
	} else {
		conn_drop(client);
		conns_sweep();
		close_fd(&client_end);
		client = conn_new(pair(&client_end), false);
	}
	relay_tick();
	if (client->dead) {
		conns_sweep();
		close_fd(&client_end);
		client = conn_new(pair(&client_end), false);
	}
	procs_trim();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	begin();
	while (size >= 4) {
		uint32_t n = data[3];
		if (n >= 250) /* large payloads too, made of what is there */
			n = (n - 249) * 3000;
		if (n > size - 4)
			n = (uint32_t)size - 4;
		step(data[0], data[1], data[2], data + 4, n);
		data += 4 + n;
		size -= 4 + n;
	}
	finish();
	return 0;
}
