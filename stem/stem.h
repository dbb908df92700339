/* stem: executes plans, keeps terminals, logs and exit codes. Declarations shared by its files; docs/stem-protocol.md is
 * the specification.
 *
 *   main.c    roles, daemon start, guest boot        conn.c    one connection: queues and frames
 *   loop.c    epoll, timers, signals, the end         proc.c    one process: streams, waiters, end
 *   proto.c   bytes <-> records, validation           serve.c   requests
 *   relay.c   the channel into a guest                log.c     logs, exit records, OOM counters
 *   spawn.c   from request to child                   ops.c, mount.c, net.c, user.c, path.c   operations (child only)
 *   run.c     one plan without a daemon, and the operations that OCI bundles need beside the others (child only)
 *   builtin.c, tar.c   small programs (child only)
 *
 * Functions that can fail return a negative errno. Everything is single-threaded; only children block. */
#ifndef STEM_H
#define STEM_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define PROTOCOL_VERSION 1u
#define FRAME_HEAD 16u
#define FRAME_MAX (1u << 20)
#define QUEUE_HIGH (256u << 10) /* above: stop reading what fills the queue */
#define QUEUE_LOW (128u << 10)	/* below: go on */
#define QUEUE_MAX (4u << 20)	/* never more than this, whatever the other side does */
#define CHUNK (64u << 10)	/* one read, one OUTPUT frame */
#define WINDOW (1u << 20)	/* bytes of WRITE or OUTPUT on the way over a channel before the next is sent */
#define ENDED_MAX 256		/* ended processes that are remembered */
#define PLACED_MIN 3		/* descriptor numbers that a plan may use; stem's own stay above */
#define PLACED_MAX 99
#define LOCAL_BIT 0x80000000u
#define NO_INDEX 0xffffffffu
#define NS_PER_S 1000000000ull

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the wire format is little-endian");

static inline void close_fd(int *fd)
{
	if (*fd >= 0) {
		int saved = errno;
		close(*fd);
		errno = saved;
		*fd = -1;
	}
}
static inline void free_ptr(void *p)
{
	free(*(void **)p);
}
#define autoclose __attribute__((cleanup(close_fd)))
#define autofree __attribute__((cleanup(free_ptr)))
static inline int take_fd(int *fd)
{
	int taken = *fd;
	*fd = -1;
	return taken;
}
static inline int result(long rc)
{
	return rc < 0 ? -errno : (int)rc;
}

/* ---- proto.c ---- */
enum frame_type {
	FR_HELLO = 1, FR_SPAWN, FR_ATTACH, FR_WRITE, FR_RESIZE, FR_SIGNAL, FR_WAIT, FR_STAT, FR_SHUTDOWN, FR_READ,
	FR_HOLD = 0x10, FR_RELEASE, FR_ACK, FR_OK = 0x81, FR_ERROR, FR_OUTPUT, FR_EXITED, FR_READY,
};
enum {
	HELLO_CUSTODY = 1, SPAWN_ATTACH = 1, SPAWN_TTY = 2, SPAWN_STDIN = 4, SPAWN_MAIN = 8, LOCAL = 16, SPAWN_CHANNEL = 32,
	SPAWN_CONSOLE = 64, WRITE_EOF = 1, SHUTDOWN_FORCE = 1, HOLD_STDIN = 1, HOLD_OUTPUT = 2, OUTPUT_STDERR = 1, EXITED_OOM = 1,
};
enum op_code {
	OP_MOUNT = 1, OP_IMAGE, OP_BIND, OP_MKDIR, OP_TOUCH, OP_SYMLINK, OP_MKNOD, OP_WRITE, OP_UNSHARE, OP_SETNS, OP_JOIN, OP_CLONE,
	OP_ROOT, OP_PIVOT, OP_CHROOT, OP_CHDIR, OP_HOSTNAME, OP_LINK, OP_ADDRESS, OP_ROUTE, OP_RLIMIT, OP_BOUND, OP_USER, OP_CAPS,
	OP_NNP, OP_SECCOMP, OP_MASK, OP_READONLY, OP_TTY, OP_USERNS, OP_IDMAP, OP_ENTER, OP_DEATH, OP_OPEN, OP_TAP, OP_LISTEN,
	OP_CHANNEL, OP_UMASK, OP_SETUID, OP_CHOWN, OP_TIME, OP_EXEC, OP_BUILTIN, OP_SYNC, OP_HOOK, OP_START, OP_NSFD, OP_TREE, OP_PICK,
	OP_ATTR, OP_ATTACH, OP_COPYUP, OP_IDENTITY, OP_CWD, OP_LOOKUP, OP_READY, OP_MOVE, OP_DOMAIN, OP_PERSONALITY, OP_SCHED, OP_IOPRIO,
	OP_KEYRING, OP_DUMPABLE, OP_AFFINITY, OP_INIT, OP_END,
};

struct frame {
	uint32_t length;
	uint16_t type, flags;
	uint32_t proc, tag;
};
_Static_assert(sizeof(struct frame) == FRAME_HEAD, "a frame header is laid out as on the wire");

struct reader {
	const uint8_t *at, *end;
	bool bad;
};
struct span {
	const uint8_t *data;
	uint32_t size;
};
/* What is kept of a log: bytes in one file (0: no limit), files in all (0: two), whether rotated ones are compressed. */
struct log_keep {
	uint64_t limit : 48;
	uint8_t files;
	bool compress;
};
struct spawn {
	struct span log, exit, oom;
	struct log_keep log_keep;
	uint64_t clone;
	uint16_t rows, columns;
	uint32_t count;
	struct reader ops;
};
/* What goes into an ERROR answer. */
struct failure {
	uint32_t index;
	int32_t error;
	char text[400];
};
struct arg {
	char *s; /* NUL-terminated */
	uint32_t n;
	uint64_t i;
};
struct op {
	uint16_t code, count;
	struct arg *args;
};
struct op_kind {
	const char *name, *args, *text;
};

uint16_t get_u16(struct reader *r);
uint32_t get_u32(struct reader *r);
uint64_t get_u64(struct reader *r);
struct span get_span(struct reader *r);
char *span_dup(struct span s);
bool spawn_parse(const uint8_t *data, size_t size, struct spawn *s, struct failure *f);
bool op_next(struct reader *r, struct op *op);
const struct op_kind *op_kind(uint16_t code);
void op_describe(const struct op *op, char *out, size_t size);
size_t spawn_without_paths(const uint8_t *data, size_t size, uint8_t *out);
__attribute__((format(printf, 4, 5))) void fail_with(struct failure *f, uint32_t index, int error, const char *format, ...);

struct buf {
	uint8_t *data;
	size_t head, len, cap;
};
bool buf_add(struct buf *b, const void *data, size_t n);
void buf_skip(struct buf *b, size_t n);
void buf_free(struct buf *b);

/* ---- loop.c ---- */
enum role { ROLE_HOST = 1, ROLE_GUEST, ROLE_RELAY };
struct watch {
	int fd;
	uint32_t events;
	void (*ready)(struct watch *w, uint32_t events);
};
struct timer {
	struct timer *next;
	uint64_t at;
	void (*fire)(struct timer *t);
};
struct sandbox {
	enum role role;
	bool is_init;	   /* PID 1 of a guest, not a test of it */
	bool main_ended;   /* the process with flag MAIN has ended */
	bool stopping;	   /* the daemon is on its way out */
	bool hurry;	   /* SHUTDOWN or SIGTERM: do not wait for slow readers */
	bool finished;	   /* leave the loop */
	char **command;	   /* what to start at the end, or NULL */
	int root;	   /* root directory of the main process, -1 = none: keeps its file system mounted (see let_go) */
	int last;	   /* descriptor that is closed after all others, -1 = none */
	struct watch listener;
};
extern struct sandbox box;
extern uint8_t scratch_in[CHUNK], scratch_out[CHUNK];

void loop_init(void);
void loop_run(void);
int watch_set(struct watch *w, uint32_t events);
void watch_close(struct watch *w);
void timer_set(struct timer *t, uint64_t delay_ns);
void timer_clear(struct timer *t);
uint64_t clock_ns(int clock);
void stop_sandbox(bool hurry);
void signals_init(void);

/* ---- conn.c ---- */
struct conn {
	struct watch w;
	struct conn *next;
	struct buf in, out;
	struct proc *blocked; /* not read until this process has taken its stdin */
	uint32_t in_flight, unacked; /* of a channel: bytes that the other end has not acknowledged; that we have not */
	bool channel, custody, slow;
	bool corked; /* nothing is written yet: the guest is not ready */
	bool dead, swept;
};
extern struct conn *conns;
struct conn *conn_new(int fd, bool channel);
void conn_send(struct conn *c, uint16_t type, uint16_t flags, uint32_t proc, uint32_t tag, const void *data, size_t size);
void conn_drop(struct conn *c);
void conn_block(struct conn *c, struct proc *p);
void conn_resume(struct conn *c);
bool conn_read(struct conn *c);
void conn_open(struct conn *c, int fd);
void conn_uncork(struct conn *c);
bool conns_flushed(void);
bool custody_held(void);
void conns_sweep(void);
void reply(struct conn *c, const struct frame *f, uint32_t proc, const void *data, size_t size);
__attribute__((format(printf, 4, 5))) void reply_error(struct conn *c, const struct frame *f, int error, const char *format, ...);
void reply_failure(struct conn *c, uint32_t proc, uint32_t tag, const struct failure *f);

/* ---- log.c ---- */
struct log {
	int fd;
	char *path;
	uint64_t size;
	struct log_keep keep;
	pid_t compressor;
	bool plain;
};
int log_open(struct log *l, struct span path, struct log_keep keep, bool plain);
void log_write(struct log *l, uint8_t stream, const void *data, size_t n);
void log_close(struct log *l);
int exit_record(const char *path, uint32_t code, uint32_t signal, bool oom, uint64_t time_ns);
int64_t oom_count(const char *path);

/* ---- proc.c ---- */
enum proc_state { P_STARTING, P_RUNNING, P_ENDING, P_ENDED };
struct waiter {
	struct waiter *next;
	struct conn *conn;
	uint32_t tag;
	bool attach;
};
struct proc {
	struct proc *next;
	uint32_t id;
	pid_t pid;
	int pidfd;
	enum proc_state state;
	uint16_t flags;
	bool remote;   /* runs in the guest; this is the relay's picture of it */
	bool cloning;  /* the present pid will be replaced (operation CLONE) */
	bool exec_seen;
	bool stalled;  /* its output is not read (or, remote: held) */
	bool held_output, held_stdin; /* what the other end of the channel asked for */
	bool told_stdin; /* we asked the other end of the channel to hold stdin */
	bool oom, stdin_eof, eof_sent;
	uint32_t code, signal;
	uint64_t end_ns;
	size_t left[2]; /* bytes that were in the pipes when the process ended */
	struct watch out[2], in, status;
	int channel;   /* of a monitor whose plan is not complete yet */
	struct buf stdin_queue;
	struct timer grace;
	struct log log;
	char *exit_path, *oom_path;
	int64_t oom_before;
	struct waiter *waiters;
	struct conn *spawner; /* who waits for the answer to SPAWN */
	uint32_t spawn_tag;
	uint16_t rows, columns;
	struct failure failure;
	bool failed;
};
extern struct proc *procs;
struct proc *proc_new(uint16_t flags, bool remote);
struct proc *proc_find(uint32_t id);
void proc_number(struct proc *p, uint32_t id);
uint32_t proc_next_id(void);
void proc_forget(struct proc *p);
void proc_output(struct proc *p, uint8_t stream, const void *data, size_t n);
void proc_flow(struct proc *p);
void proc_write(struct proc *p, struct conn *c, const void *data, size_t n, bool eof);
void proc_pump(struct proc *p);
void proc_refill(struct proc *p);
void proc_ended(struct proc *p, uint32_t code, uint32_t signal, bool oom, uint64_t end_ns);
void proc_add_waiter(struct proc *p, struct conn *c, uint32_t tag, bool attach);
void proc_drop_conn(struct conn *c);
void proc_started(struct proc *p);
void proc_start_failed(struct proc *p);
void procs_kill_all(void);
void procs_settle(void);
void procs_trim(void);
int procs_alive(void);
void reap_children(void);
void send_exited(struct conn *c, const struct proc *p, uint32_t tag);

/* ---- spawn.c ---- */
int spawn_local(struct proc *p, const struct spawn *s, struct failure *f);
void spawn_status_drain(void);

/* ---- serve.c ---- */
bool serve_frame(struct conn *c, const struct frame *f, const uint8_t *payload);
void on_accept(struct watch *w, uint32_t events);
void spawn_request(struct conn *c, const struct frame *f, const uint8_t *payload);
void hello_answer(struct conn *c, uint32_t tag, const char *release);
int file_read(const char *path, void *out, size_t size);

/* ---- relay.c ---- */
struct conn *relay_channel(void);
bool relay_init(int channel);
bool relay_request(struct conn *c, const struct frame *f, const uint8_t *payload);
bool relay_frame(struct conn *c, const struct frame *f, const uint8_t *payload);
void channel_lost(const char *why);
void relay_monitor_ended(struct proc *monitor);
bool relay_has_monitor(void);
void relay_set_monitor(struct proc *p);
void relay_forget_monitor(struct proc *p);
void relay_write(struct proc *p);
void relay_forget_conn(struct conn *c);
void relay_drained(void);
void relay_hello(struct conn *c, const struct frame *f);
void relay_kill(void);
void relay_stop(void);
void relay_tick(void);
bool relay_over(void);

/* ---- guest boot (main.c) ---- */
void guest_reboot(void);
void guest_channel_lost(void);

/* ---- child side ---- */
struct child {
	int status;   /* to stem */
	int root;     /* `%/`, -1 = none */
	int userns;   /* kept by USERNS */
	int channel;  /* the guest's end */
	bool inside;  /* the root directory is the container's: /proc may be anything */
	bool umask_set;
	uint64_t placed[2];
	uint64_t death;
	const char *home;
	const char *detail; /* replaces strerror in the text of a failure */
	int *kept;    /* numbered descriptors: of the command line, and what TREE and PICK have opened */
	uint32_t kept_count;
	uint64_t init; /* number of stem's own program among them, plus 1; 0 = EXEC leaves no init behind */
	char *answer; /* to the last SYNC: texts, one after the other, each with its NUL */
	size_t answer_size;
	char *program; /* what LOOKUP has found */
	volatile uint8_t *flag; /* first byte of the shared record: set when the listener has been fetched */
	bool ready;   /* nothing but EXEC is left to do */
	uint16_t rows, columns;
	uint32_t index;
};
enum status_kind { STATUS_ERROR = 1, STATUS_TTY, STATUS_CLONING, STATUS_CLONED, STATUS_EXEC, STATUS_SYNC, STATUS_START, STATUS_LISTENER };
struct status {
	uint32_t kind;
	struct failure failure;
};
void status_send(struct child *c, enum status_kind kind, const struct failure *f, int fd);
_Noreturn void plan_run(struct child *c, struct reader ops, uint32_t count);
int place_fd(struct child *c, int fd, uint64_t number);
void close_others(const struct child *c);
pid_t clone_process(uint64_t flags, int *pidfd);
void reset_signals(void);

bool in_root(const char *path);
int path_open(const struct child *c, const char *path, int flags, mode_t mode);
int path_make(const struct child *c, const char *path, bool directory, mode_t mode);
int path_parent(const struct child *c, const char *path, char **last);
int open_in(int dir, const char *path, int flags, mode_t mode, uint64_t resolve);
int make_in(int dir, uint64_t resolve, const char *path, bool directory, mode_t mode);
int read_all(int fd, size_t max, char **out, size_t *size);

int op_mount(struct child *c, struct op *op);
int op_image(struct child *c, struct op *op);
int op_bind(struct child *c, struct op *op);
int op_pivot(struct child *c, struct op *op);
int op_mask(struct child *c, struct op *op);
int op_readonly(struct child *c, struct op *op);
int op_userns(struct child *c, struct op *op);
int op_idmap(struct child *c, struct op *op);
int bind_fd(int source, int target);
int op_link(struct child *c, struct op *op);
int op_address(struct child *c, struct op *op);
int op_route(struct child *c, struct op *op);
int link_up(const char *name, uint32_t mtu);
int op_user(struct child *c, struct op *op);
int op_identity(struct child *c, struct op *op);
int become_root(void);
void open_streams(void);
int ready_to_exec(struct child *c);
int open_target(const struct child *c, const char *target);
int clone_tree(int fd, bool recursive);
int move_tree(int tree, int target);
bool same_file(int a, int b);

/* ---- run.c ---- */
int run_main(int argc, char **argv);
extern int (*const run_table[OP_END])(struct child *, struct op *);
int listener_handed_over(struct child *c, int fd);
int find_program(struct child *c, const char *name, const char *path, char **found);
#define INIT_NAME "nacre-init"
int kept_fd(const struct child *c, uint64_t number);
_Noreturn void init_main(pid_t child);
_Noreturn void builtin_run(int count, struct arg *argv);
int tar_get(const char *path, bool names);
int tar_put(const char *path);

#endif
