/* slow: responses that never end, read steadily and slowly.
 *
 * The reader is the one thing that is slow, so a proxy's memory for it is what the proxy lets pile
 * up. Each reader takes what it is due of its rate every 50 ms, never more: a reader that pauses and
 * then gulps would open its window now and then, and show another machine's behaviour.
 */
#include "blast.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PERIOD_NS = SECOND / 20 };

struct reader {
	int fd;                      /* -1: failed */
	unsigned number;
	uint64_t got;                /* of the body */
	int64_t moved;               /* the last progress */
};

static char scratch[CHUNK];

static void fail(struct reader *r)
{
	close(r->fd);
	r->fd = -1;
}

static int wait_for(struct reader *r, short what, int64_t deadline)
{
	struct pollfd p = { r->fd, what, 0 };
	int64_t left = deadline - now_ns();

	return poll(&p, 1, left > 0 ? left / 1000000 + 1 : 0) == 1;
}

/* Connects, asks, and reads the head and no byte more. */
static void ask(struct reader *r, const struct options *o, const char *request)
{
	int64_t deadline = now_ns() + (int64_t)(o->timeout * SECOND);
	char text[HEAD];
	struct head head;
	size_t used = 0;
	ssize_t n;

	r->fd = dial(&o->to, r->number, o->rcvbuf);
	if (r->fd < 0 || !wait_for(r, POLLOUT, deadline) ||
	    send(r->fd, request, strlen(request), MSG_NOSIGNAL) < 0) {
		complain(E_CONNECT, "reader %u: %s", r->number, strerror(errno));
		fail(r);
		return;
	}
	do {
		if (!wait_for(r, POLLIN, deadline)) {
			complain(E_TIMEOUT, "reader %u: no reply", r->number);
			fail(r);
			return;
		}
		n = recv(r->fd, text + used, 1, 0); /* there are few, and heads are short */
		if (n <= 0) {
			complain(n ? E_RESET : E_SHORT, "reader %u: no reply", r->number);
			fail(r);
			return;
		}
	} while (++used < HEAD && (used < 4 || memcmp(text + used - 4, "\r\n\r\n", 4)));
	if (!read_head(text, used, &head) || head.status != 200) {
		complain(E_STATUS, "reader %u: %.*s", r->number, used < 60 ? (int)used : 60, text);
		fail(r);
		return;
	}
	if (head.length != (int64_t)ENDLESS) {
		complain(E_SHORT, "reader %u: a reply of %lld bytes (-1: not told)", r->number,
			 (long long)head.length);
		fail(r);
	}
}

/* What is due of its rate. */
static void sip(struct reader *r, uint64_t due, int64_t now, int64_t longest)
{
	while (r->got < due) {
		size_t room = due - r->got < CHUNK ? due - r->got : CHUNK;
		ssize_t n = recv(r->fd, scratch, room, 0);

		if (n < 0 && errno == EAGAIN) {
			if (now - r->moved <= longest)
				return;
			complain(E_TIMEOUT, "reader %u: stuck after %llu bytes", r->number,
				 (unsigned long long)r->got);
		} else if (n <= 0) {
			complain(n ? E_RESET : E_SHORT, "reader %u: ended after %llu bytes", r->number,
				 (unsigned long long)r->got);
		} else if (!sampled(scratch, n, r->got)) {
			complain(E_CORRUPT, "reader %u: other bytes than sent after %llu bytes", r->number,
				 (unsigned long long)r->got);
		} else {
			r->got += n;
			r->moved = now;
			totals.bytes += n;
			continue;
		}
		fail(r);
		return;
	}
}

/* Reads until `until`; the rate counts from t0. */
static void read_steadily(struct reader *readers, const struct options *o, int64_t t0, int64_t until)
{
	struct timespec pause = { 0, 0 };

	for (;;) {
		int64_t now = now_ns();
		uint64_t due = (now - t0) / 1e9 * o->bytes_per_second;

		for (unsigned i = 0; i < o->connections; i++)
			if (readers[i].fd >= 0)
				sip(&readers[i], due, now, o->timeout * SECOND);
		if (now >= until)
			return;
		pause.tv_nsec = until - now < PERIOD_NS ? until - now : PERIOD_NS;
		nanosleep(&pause, NULL);
	}
}

void slow(const struct options *o)
{
	struct reader *readers = calloc(o->connections, sizeof *readers);
	struct outcome found = { .seconds = o->seconds };
	static const char request[] = "GET " ENDLESS_PATH " HTTP/1.1\r\nHost: loadtest\r\n\r\n";
	int64_t t0, begin, end, cpu;
	uint64_t bytes;

	if (!readers)
		die("calloc");
	for (unsigned i = 0; i < o->connections; i++) {
		readers[i].number = i;
		ask(&readers[i], o, request);
	}
	t0 = now_ns();
	for (unsigned i = 0; i < o->connections; i++)
		readers[i].moved = t0;
	begin = t0 + (int64_t)(o->warmup * SECOND);
	end = begin + (int64_t)(o->seconds * SECOND);
	read_steadily(readers, o, t0, begin);
	bytes = totals.bytes;
	cpu = thread_ns();
	mark("begin", now_ns());
	read_steadily(readers, o, t0, end);
	mark("end", now_ns());
	found.bytes = totals.bytes - bytes;
	if (o->seconds > 0)
		found.busy = (thread_ns() - cpu) / (o->seconds * SECOND);
	for (unsigned i = 0; i < o->connections; i++)
		totals.alive += readers[i].fd >= 0;
	wait_for_driver();
	report(&found);
}
