/* Logs, exit records, OOM counters. A full disk loses log records, nothing else. */
#include "stem.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>

#define LOG_HEAD 13 /* u64 time, u8 stream, u32 length */
#define SCAN_MAX (64u << 20) /* larger logs are not mended: it would take too long */

/* A writer that was killed in the middle of a write has left half a record, which would make everything behind it unreadable. */
static void log_mend(struct log *l)
{
	uint8_t head[LOG_HEAD];
	uint64_t at = 0, next;
	uint32_t length;
	autoclose int fd = open(l->path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NOFOLLOW);
	for (; at + LOG_HEAD <= l->size; at = next) {
		if (pread(fd, head, LOG_HEAD, (off_t)at) != LOG_HEAD)
			return;
		memcpy(&length, head + 9, 4);
		next = at + LOG_HEAD + length;
		if (next > l->size)
			break;
	}
	if (at < l->size && ftruncate(l->fd, (off_t)at) == 0)
		l->size = at;
}

static int log_start(struct log *l)
{
	struct stat st;
	l->fd = open(l->path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY | O_NOFOLLOW, 0640);
	if (l->fd < 0 || fstat(l->fd, &st) < 0)
		return -errno;
	l->size = (uint64_t)st.st_size;
	if (!l->plain && l->size && l->size <= SCAN_MAX)
		log_mend(l);
	return 0;
}

int log_open(struct log *l, struct span path, struct log_keep keep, bool plain)
{
	*l = (struct log){ .fd = -1, .keep = keep, .plain = plain };
	if (!path.size)
		return 0;
	l->path = span_dup(path);
	return l->path ? log_start(l) : -ENOMEM;
}

/* Compresses a rotated log in the background; without gzip it stays as it is. */
static pid_t log_compress(const char *path)
{
	pid_t pid = clone_process(0, NULL);
	if (pid != 0)
		return pid < 0 ? 0 : pid;
	reset_signals();
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	execlp("gzip", "gzip", "-fq", path, (char *)NULL);
	_exit(127);
}

/* log.1 becomes log.2 and so on, the oldest goes. A file that is being compressed keeps its name until that is done. */
static void log_rotate(struct log *l)
{
	unsigned kept = l->keep.files ? l->keep.files - 1u : 1u;
	size_t size = strlen(l->path) + 16;
	autofree char *from = malloc(size), *to = malloc(size);
	if (!from || !to || (l->compressor > 0 && kill(l->compressor, 0) == 0))
		return;
	l->compressor = 0;
	for (unsigned i = kept; i > 1; i--)
		for (int packed = 0; packed < 2; packed++) {
			snprintf(from, size, "%s.%u%s", l->path, i - 1, packed ? ".gz" : "");
			snprintf(to, size, "%s.%u%s", l->path, i, packed ? ".gz" : "");
			if (rename(from, to) < 0 && errno == ENOENT)
				unlink(to); /* it may be there in the other form */
		}
	snprintf(to, size, "%s.1", l->path);
	if ((kept ? rename(l->path, to) : unlink(l->path)) < 0)
		return;
	close_fd(&l->fd);
	log_start(l);
	if (kept && l->keep.compress)
		l->compressor = log_compress(to);
}

void log_write(struct log *l, uint8_t stream, const void *data, size_t n)
{
	uint8_t head[LOG_HEAD];
	uint64_t now = clock_ns(CLOCK_REALTIME);
	uint32_t length = (uint32_t)n;
	if (!l->path)
		return;
	if (l->keep.limit && l->size && l->size + LOG_HEAD + n > l->keep.limit)
		log_rotate(l);
	if (l->fd < 0 && log_start(l) < 0)
		return;
	memcpy(head, &now, 8);
	head[8] = stream;
	memcpy(head + 9, &length, 4);
	struct iovec v[2] = { { head, LOG_HEAD }, { (void *)data, n } };
	ssize_t want = (ssize_t)n + (l->plain ? 0 : LOG_HEAD);
	ssize_t done = l->plain ? write(l->fd, data, n) : writev(l->fd, v, 2);
	if (done == want)
		l->size += (uint64_t)done;
	else if (done > 0 && ftruncate(l->fd, (off_t)l->size) < 0) /* half a record would make the rest unreadable */
		close_fd(&l->fd);
}

void log_close(struct log *l)
{
	close_fd(&l->fd);
	free(l->path);
	l->path = NULL;
}

/* Old or new, never half: temporary name, rename. Not synced: it must outlive processes, and after a power cut no process is left
 * whose code it could tell; an empty record reads like none. */
int exit_record(const char *path, uint32_t code, uint32_t signal, bool oom, uint64_t time_ns)
{
	char line[80];
	int n = snprintf(line, sizeof line, "%u %u %d %llu\n", code, signal, oom, (unsigned long long)time_ns);
	autofree char *temporary = malloc(strlen(path) + 5);
	if (!temporary)
		return -ENOMEM;
	strcat(strcpy(temporary, path), ".tmp");
	autoclose int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
	if (fd < 0 || write(fd, line, (size_t)n) != n || rename(temporary, path) < 0) {
		int error = errno;
		if (fd >= 0)
			unlink(temporary);
		return -error;
	}
	return 0;
}

/* N of a line "oom_kill N" in a cgroup or vmstat file; -1 when there is none. */
int64_t oom_count(const char *path)
{
	static char text[CHUNK];
	int n = path ? file_read(path, text, sizeof text - 1) : -1;
	if (n < 0)
		return -1;
	text[n] = 0;
	for (char *line = text; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (!strncmp(line, "oom_kill ", 9))
			return (int64_t)strtoull(line + 9, NULL, 10);
	}
	return -1;
}
