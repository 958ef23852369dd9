/* load and hold: exchanges on many connections, as fast as they are answered or at a given rate.
 *
 * An exchange is: bytes to send (a head, then a body of the pattern) and bytes that must come back.
 * What these are is in `plan`, the same for all connections; where a connection is in its exchange
 * is in its `conn`.
 *
 * The open loop, and coordinated omission: arrival i is planned for t0 + i / rate, whatever happened
 * to those before it. It takes a free connection, or waits for one; its latency counts from the
 * planned moment in either case. Nothing is queued: since arrivals are planned in order and taken in
 * order, the queue is the interval between the next one to take and the clock. Those which wait at the
 * end are sent in the 1 % of its time after it, as connections become free: a queue as short as that is
 * of a moment's delay. What is left then is `unsent`: the rate was above what can be had.
 * Those under way at the end are waited for (and time out), so that each that was due is told:
 * done, an error, or unsent.
 *
 * Waiting for the planned moment is epoll_pwait2 with a timer slack of 1 ns. In a virtual machine
 * that still wakes up 20 to 60 us late from an idle processor, as much as a fast proxy takes. So the
 * timer is set earlier by what three of four wake-ups are late (learnt, at most 100 us), and the rest
 * is polled away; but only where arrivals are at least four times that apart. More often than that,
 * polling would take the processor that the contender needs, and the loop is mostly awake anyway.
 * What remains is in the latency of every contender alike, and told as the lag.
 */
#include "blast.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
	AT_ONCE = 64,             /* connections dialled at once: below every listener's backlog */
	TURNS = 16,               /* calls in a row for one connection */
	MOST_EARLY = 100000,      /* ns; see above */
	TICK = SECOND / 50,       /* how often timeouts are looked for, and the broken are redialled */
};

enum state {
	NONE,                     /* no socket (yet, or because each exchange has its own) */
	CONNECTING,
	HANDSHAKE,                /* the upgrade to WebSocket */
	IDLE,
	BUSY,                     /* in an exchange */
	BROKEN,                   /* to be dialled again at the next tick */
	DEAD,                     /* held, and lost */
};

struct conn {
	int fd;
	unsigned number;
	uint8_t state, held, queued, watching_out;
	uint8_t in_head;          /* of an HTTP reply */
	uint16_t used;            /* of `head` */
	unsigned round;
	unsigned offset;          /* where its message lies in the pattern */
	uint64_t sent, to_send;   /* of head and body */
	uint64_t got;             /* of the body of the reply */
	int64_t planned;          /* when the exchange should have begun */
	int64_t idle_since, moved; /* moved: the last progress, for the timeout */
	char head[HEAD];
};

/* How a connection goes on. */
enum pace {
	REST,                     /* not at all */
	CONNECT,                  /* until it is connected */
	ONCE,                     /* one exchange */
	CLOSED_LOOP,
	OPEN_LOOP,
};

static struct plan plan;
static const struct options *asked;
static enum pace pace;
static int ep;
static int64_t loop_now;          /* the clock when the events at hand were taken */

static unsigned turn;             /* of the targets, for connections per exchange */

static struct {                   /* CONNECT and ONCE: a whole set, AT_ONCE at a time */
	unsigned under_way, finished;
} walk;

static struct {                   /* OPEN_LOOP: connections that wait for an arrival */
	struct conn **ring;
	unsigned size, first, count;
	int64_t t0, begin, end;   /* begin and end as planned */
	uint64_t taken;
} arrivals;

static int measuring;             /* CLOSED_LOOP: between begin and end */
static uint64_t measured;         /* exchanges */
static struct histogram latency, lag;
static char scratch[CHUNK];

static void on_idle(struct conn *c, int64_t now);
static void start(struct conn *c, int64_t planned);

/* ---- a connection --------------------------------------------------------------------------- */

/* Level-triggered: what is not read now is told again. */
static void watch(struct conn *c, int out)
{
	struct epoll_event ev = { EPOLLIN | (out ? EPOLLOUT : 0), { .ptr = c } };

	if (c->watching_out == out)
		return;
	if (epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &ev) < 0)
		die("epoll_ctl");
	c->watching_out = out;
}

/* Ends a part of the walk, which goes on from the loop: a row of failures must not recurse. */
static void walked(void)
{
	walk.under_way--;
	walk.finished++;
}

static void hang_up(struct conn *c, int abort)
{
	struct linger now = { 1, 0 };

	if (c->fd < 0)
		return;
	if (abort)
		setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
	close(c->fd);
	c->fd = -1;
}

/* After complain(). The arrival, if it had one, is spent. */
static void fail(struct conn *c)
{
	int was_idle = c->state == IDLE;

	hang_up(c, 1);
	c->state = c->held ? DEAD : BROKEN;
	if ((pace == CONNECT || pace == ONCE) && !was_idle)
		walked();
}

static void connect_to(struct conn *c, unsigned which)
{
	struct epoll_event ev = { EPOLLIN | EPOLLOUT, { .ptr = c } };

	c->moved = loop_now;
	c->state = CONNECTING;
	c->fd = dial(&asked->to, which, asked->rcvbuf);
	if (c->fd < 0) {
		complain(E_CONNECT, "connection %u: %s", c->number, strerror(errno));
		fail(c);
		return;
	}
	if (epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &ev) < 0)
		die("epoll_ctl");
	c->watching_out = 1;
}

/* Sends as much as there is room for. */
static void write_on(struct conn *c)
{
	size_t head = c->state == HANDSHAKE ? plan.handshake_length : plan.head_length;
	const char *text = c->state == HANDSHAKE ? plan.handshake : plan.head;

	for (int i = 0; i < TURNS && c->sent < c->to_send; i++) {
		struct iovec part[2];
		struct msghdr message = { .msg_iov = part };
		uint64_t at = c->sent > head ? c->sent - head : 0, left = c->to_send - head - at;
		ssize_t n;

		if (c->sent < head)
			part[message.msg_iovlen++] =
				(struct iovec){ (char *)text + c->sent, head - c->sent };
		if (left)
			part[message.msg_iovlen++] = (struct iovec){
				(char *)plan.body + (plan.http ? at % PERIOD : c->offset + at),
				left < WRITE ? left : WRITE
			};
		if (message.msg_iovlen == 1)
			n = send(c->fd, part->iov_base, part->iov_len, MSG_NOSIGNAL);
		else
			n = sendmsg(c->fd, &message, MSG_NOSIGNAL);
		if (n < 0) {
			if (errno == EAGAIN)
				break;
			complain(E_RESET, "connection %u: sending: %s", c->number, strerror(errno));
			fail(c);
			return;
		}
		c->moved = loop_now;
		if (plan.kind == PUT || plan.kind == SINK) {
			uint64_t done = c->sent + n > head ? c->sent + n - head : 0;

			totals.bytes += done - at;
		}
		c->sent += n;
	}
	watch(c, c->sent < c->to_send);
}

/* The exchange that was planned for this moment begins, with its own connection where it needs one. */
static void begin_sending(struct conn *c)
{
	c->state = BUSY;
	c->used = 0;
	c->got = 0;
	c->in_head = plan.http;
	c->sent = 0;
	c->to_send = plan.head_length + plan.body_length;
	if (!plan.http) /* another message each time, so that one of others or of before is seen */
		c->offset = (c->number * 9973 + c->round++ * 331) % PERIOD & ~3u;
	c->moved = loop_now;
	write_on(c);
}

static void start(struct conn *c, int64_t planned)
{
	c->planned = planned;
	if (plan.close)
		connect_to(c, turn++);
	else
		begin_sending(c);
}

static void on_connected(struct conn *c)
{
	int error = 0;
	socklen_t size = sizeof error;

	if (getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0 || error) {
		complain(E_CONNECT, "connection %u: %s", c->number, strerror(error));
		fail(c);
	} else if (plan.close) {
		begin_sending(c);
	} else if (plan.kind == WS) {
		c->state = HANDSHAKE;
		c->used = 0;
		c->sent = 0;
		c->to_send = plan.handshake_length;
		write_on(c);
	} else {
		watch(c, 0);
		on_idle(c, loop_now);
	}
}

static void on_complete(struct conn *c)
{
	int64_t now = now_ns();
	int counts = pace == CLOSED_LOOP ? measuring :
		     c->planned >= arrivals.begin && c->planned < arrivals.end;

	totals.done++;
	if (!plan.http)
		totals.bytes += plan.body_length;
	if (counts && pace != ONCE) {
		measured++;
		note(&latency, now - c->planned);
	}
	if (plan.close) {
		hang_up(c, 0);
		c->state = NONE;
	}
	if (pace == ONCE) {
		totals.alive++;
		c->state = IDLE;
		walked();
		return;
	}
	on_idle(c, now);
}

/* ---- what comes back ------------------------------------------------------------------------ */

/* A message is compared whole: its frame's head, then the payload as it was sent. */
static int same_message(const struct conn *c, const char *data, size_t n)
{
	size_t at = c->got, head = plan.echo_head_length, in_head = 0;

	if (at < head) {
		in_head = n < head - at ? n : head - at;
		if (memcmp(data, plan.echo_head + at, in_head))
			return 0;
	}
	return !memcmp(data + in_head, pattern + c->offset + at + in_head - head, n - in_head);
}

static int as_expected(const struct conn *c, const char *data, size_t n)
{
	if (!plan.http)
		return same_message(c, data, n);
	if (plan.pattern)
		return sampled(data, n, c->got);
	return !memcmp(data, &"ok\n"[c->got], n);
}

/* Part of the body; 0 when the exchange is over (or failed). */
static int take_body(struct conn *c, const char *data, size_t n)
{
	if (c->got + n > plan.reply_length) {
		complain(E_CORRUPT, "connection %u: more than the %llu bytes due", c->number,
			 (unsigned long long)plan.reply_length);
		fail(c);
		return 0;
	}
	if (!as_expected(c, data, n)) {
		complain(E_CORRUPT, "connection %u: other bytes than sent, at %llu to %llu", c->number,
			 (unsigned long long)c->got, (unsigned long long)(c->got + n));
		fail(c);
		return 0;
	}
	c->got += n;
	c->moved = loop_now;
	if (plan.kind == GET || plan.kind == STREAM)
		totals.bytes += n;
	if (c->got < plan.reply_length || plan.close)
		return 1;
	if (c->sent < c->to_send) {
		complain(E_SHORT, "connection %u: answered before all was sent", c->number);
		fail(c);
		return 0;
	}
	on_complete(c);
	return 0;
}

/* A head is as it should be; 0 when the exchange is over (or failed, or was the handshake). */
static int take_reply(struct conn *c, const struct head *head, size_t size)
{
	size_t rest = c->used - size;

	if (plan.kind == SINK) {
		complain(E_SHORT, "connection %u: answered before all was sent", c->number);
	} else if (head->length != (int64_t)plan.reply_length) {
		complain(E_SHORT, "connection %u: a reply of %lld bytes (-1: not told) for %llu",
			 c->number, (long long)head->length, (unsigned long long)plan.reply_length);
	} else {
		c->in_head = 0;
		return !rest && plan.reply_length ? 1 : take_body(c, c->head + size, rest);
	}
	fail(c);
	return 0;
}

/* `n` more bytes of a head; 0 as above. */
static int take_head(struct conn *c, size_t n)
{
	size_t from = c->used > 3 ? c->used - 3 : 0, size;
	int wanted = c->state == HANDSHAKE ? 101 : 200;
	struct head head = { .status = 0 };
	char *end;

	c->used += n;
	c->moved = loop_now;
	end = memmem(c->head + from, c->used - from, "\r\n\r\n", 4);
	if (!end && c->used < HEAD)
		return 1;
	size = end ? end + 4 - c->head : HEAD;
	if (!end || !read_head(c->head, size, &head) || head.status != wanted ||
	    (c->state == HANDSHAKE && (!head.accepted || c->used > size))) {
		complain(head.status == 422 ? E_CORRUPT : E_STATUS, "connection %u: %.*s", c->number,
			 c->used < 60 ? c->used : 60, c->head);
		fail(c);
		return 0;
	}
	if (c->state == BUSY)
		return take_reply(c, &head, size);
	on_idle(c, loop_now);
	return 0;
}

static void on_end_of_stream(struct conn *c)
{
	if (c->state == BUSY && plan.close && !c->in_head && c->got == plan.reply_length) {
		on_complete(c);
	} else if (c->state == IDLE && !c->held) { /* as a server may; it is told, but no error */
		totals.reopened++;
		hang_up(c, 0);
		c->state = BROKEN;
	} else {
		complain(E_SHORT, "connection %u: %s after %llu bytes of a reply", c->number,
			 c->state == IDLE ? "was held and ended" : "ended", (unsigned long long)c->got);
		fail(c);
	}
}

static void read_on(struct conn *c)
{
	for (int i = 0; i < TURNS; i++) {
		int in_head = c->state == HANDSHAKE || (c->state == BUSY && c->in_head);
		size_t room = in_head ? HEAD - c->used : CHUNK;
		ssize_t n = recv(c->fd, in_head ? c->head + c->used : scratch, room, 0);

		if (n < 0) {
			if (errno == EAGAIN)
				return;
			complain(E_RESET, "connection %u: %s", c->number, strerror(errno));
			fail(c);
			return;
		}
		if (n == 0) {
			on_end_of_stream(c);
			return;
		}
		if (c->state == IDLE) {
			complain(E_CORRUPT, "connection %u: %zd bytes that were not asked for",
				 c->number, n);
			fail(c);
			return;
		}
		if (in_head ? !take_head(c, n) : !take_body(c, scratch, n))
			return;
		/* A short read was all there is, except for the end of a stream. */
		if ((size_t)n < room && !plan.close)
			return;
	}
}

static void on_event(struct conn *c, uint32_t events)
{
	if (c->state == CONNECTING) {
		on_connected(c);
		return;
	}
	if (events & EPOLLOUT && c->fd >= 0)
		write_on(c);
	if (events & (EPOLLIN | EPOLLHUP | EPOLLERR) && c->fd >= 0)
		read_on(c);
}

/* ---- when they begin ------------------------------------------------------------------------ */

static int64_t planned(uint64_t arrival)
{
	return arrivals.t0 + (int64_t)(arrival * (SECOND / asked->rate));
}

/* How many arrivals are planned before t. */
static uint64_t due_before(int64_t t)
{
	uint64_t n = t > arrivals.t0 ? (t - arrivals.t0) / (SECOND / asked->rate) : 0;

	while (planned(n) < t)
		n++;
	while (n && planned(n - 1) >= t)
		n--;
	return n;
}

/* A connection is in the ring at most once; one that broke since is left out when its turn comes. */
static void queue(struct conn *c)
{
	if (c->queued)
		return;
	c->queued = 1;
	arrivals.ring[(arrivals.first + arrivals.count++) % arrivals.size] = c;
}

/* First come, first served, so that all connections are in use even at a low rate. */
static void dispatch(int64_t now)
{
	while (arrivals.count) {
		int64_t when = planned(arrivals.taken);
		struct conn *c;

		if (when > now || when >= arrivals.end)
			return;
		c = arrivals.ring[arrivals.first];
		arrivals.first = (arrivals.first + 1) % arrivals.size;
		arrivals.count--;
		c->queued = 0;
		if (c->state != (plan.close ? NONE : IDLE))
			continue;
		arrivals.taken++;
		if (when >= c->idle_since && when >= arrivals.begin)
			note(&lag, now - when);
		start(c, when);
	}
}

static void on_idle(struct conn *c, int64_t now)
{
	c->state = plan.close ? NONE : IDLE;
	c->idle_since = now;
	switch (pace) {
	case REST:
		break;
	case CONNECT:
		walked();
		break;
	case ONCE:
	case CLOSED_LOOP:
		start(c, now);
		break;
	case OPEN_LOOP:
		queue(c);
		dispatch(now);
		break;
	}
}

static int under_way(const struct conn *c)
{
	return c->state == CONNECTING || c->state == HANDSHAKE || c->state == BUSY;
}

static void time_out(struct conn *c)
{
	if (c->state == CONNECTING)
		complain(E_CONNECT, "connection %u: not connected in time", c->number);
	else
		complain(E_TIMEOUT, "connection %u: stuck at %llu sent, %llu received", c->number,
			 (unsigned long long)c->sent, (unsigned long long)c->got);
	fail(c);
}

static void tick(struct conn *set, unsigned count)
{
	int64_t longest = asked->timeout * SECOND;

	for (struct conn *c = set; c < set + count; c++) {
		if (under_way(c)) {
			if (loop_now - c->moved > longest)
				time_out(c);
		} else if (c->state == BROKEN && (pace == OPEN_LOOP || pace == CLOSED_LOOP)) {
			if (plan.close)
				on_idle(c, loop_now);
			else
				connect_to(c, c->number);
		}
	}
}

/* What a timer's wake-up is late, three times of four. */
static int64_t usually_late;

static void learn(int64_t late)
{
	usually_late += late > usually_late ? 1500 : -500; /* ns; 3 : 1 is what makes it three of four */
	if (usually_late < 0)
		usually_late = 0;
	if (usually_late > MOST_EARLY)
		usually_late = MOST_EARLY;
}

/* Waits for what comes first: an event, the next arrival, a tick, `until`. */
static void step(struct conn *set, unsigned count, int64_t until)
{
	static int64_t next_tick;
	struct epoll_event ready[BATCH];
	struct timespec wait = { 0, 0 };
	int64_t ns, early = 0;
	int n;

	loop_now = now_ns();
	if (loop_now >= next_tick) {
		tick(set, count);
		next_tick = loop_now + TICK;
	}
	if (pace == OPEN_LOOP) {
		dispatch(loop_now);
		if (arrivals.count && planned(arrivals.taken) < until) {
			until = planned(arrivals.taken);
			if (SECOND / asked->rate > 4 * usually_late)
				early = usually_late;
		}
	}
	if (next_tick < until)
		until = next_tick;
	ns = until - early - now_ns();
	if (ns > 0)
		wait.tv_nsec = ns; /* a tick is less than a second */
	n = epoll_pwait2(ep, ready, BATCH, &wait, NULL);
	if (n < 0 && errno != EINTR)
		die("epoll_pwait2");
	loop_now = now_ns();
	if (!n && ns > 0)
		learn(loop_now - (until - early));
	for (int i = 0; i < n; i++)
		on_event(ready[i].data.ptr, ready[i].events);
}

/* Takes each of the set through CONNECT or ONCE, in so much time for all that one which is stuck
 * does not hold up the run. */
static void walk_through(struct conn *set, unsigned count, enum pace how)
{
	int64_t deadline = now_ns() + (int64_t)((asked->timeout + count / 500) * SECOND);
	unsigned next = 0;

	loop_now = now_ns();
	pace = how;
	walk.under_way = walk.finished = 0;
	while (walk.finished < count && loop_now < deadline) {
		while (next < count && walk.under_way < AT_ONCE) {
			struct conn *c = &set[next++];

			walk.under_way++;
			if (c->state == NONE)
				connect_to(c, c->number);
			else if (c->state == IDLE)
				start(c, loop_now);
			else
				walked();
		}
		if (walk.finished < count)
			step(set, next, deadline);
	}
	pace = REST;
	for (struct conn *c = set; c < set + count; c++)
		if (under_way(c) || (c >= set + next && c->state != DEAD))
			time_out(c);
}

/* ---- the runs ------------------------------------------------------------------------------- */

static struct conn *make_set(unsigned count, unsigned first, int held)
{
	struct conn *set = calloc(count ? count : 1, sizeof *set);

	if (!set)
		die("calloc");
	for (unsigned i = 0; i < count; i++) {
		set[i].fd = -1;
		set[i].number = first + i;
		set[i].held = held;
	}
	return set;
}

/* What waits from the warm-up must not make those wait that count. */
static void forget_warmup(void)
{
	uint64_t first = pace == OPEN_LOOP ? due_before(arrivals.begin) : 0;

	if (arrivals.taken < first)
		arrivals.taken = first;
}

static void finish_open_loop(struct conn *set, unsigned count)
{
	int64_t last = arrivals.end + (arrivals.end - arrivals.begin) / 100;
	int64_t deadline = now_ns() + (int64_t)((asked->timeout + 1) * SECOND);
	uint64_t due = due_before(arrivals.end);
	unsigned left;

	while (arrivals.taken < due && now_ns() < last)
		step(set, count, last);
	pace = REST;
	totals.unsent = due - arrivals.taken;
	do {
		left = 0;
		for (unsigned i = 0; i < count; i++)
			left += under_way(&set[i]);
		if (left)
			step(set, count, deadline);
	} while (left && loop_now < deadline);
}

/* The load, with its two marks. */
static struct outcome run(struct conn *set, unsigned count)
{
	int heavy = plan.reply_length > CHUNK || plan.body_length > CHUNK;
	int64_t begun = 0, ended, cpu = 0;
	uint64_t bytes = 0;
	struct outcome found = { .latency = &latency, .lag = &lag };

	arrivals.ring = calloc(count + 1, sizeof *arrivals.ring);
	if (!arrivals.ring)
		die("calloc");
	arrivals.size = count + 1;
	arrivals.t0 = loop_now = now_ns();
	arrivals.begin = arrivals.t0 + (int64_t)(asked->warmup * SECOND);
	arrivals.end = arrivals.begin + (int64_t)(asked->seconds * SECOND);
	pace = asked->rate > 0 ? OPEN_LOOP : CLOSED_LOOP;
	for (unsigned i = 0; i < count; i++)
		if (set[i].state == (plan.close ? NONE : IDLE))
			on_idle(&set[i], loop_now);
	for (;;) {
		ended = now_ns();
		if (!begun && ended >= arrivals.begin) {
			begun = ended;
			cpu = thread_ns();
			bytes = totals.bytes;
			measuring = 1;
			forget_warmup();
			mark("begin", begun);
		}
		if (ended >= arrivals.end)
			break;
		step(set, count, begun ? arrivals.end : arrivals.begin);
	}
	measuring = 0;
	found.busy = ended > begun ? (double)(thread_ns() - cpu) / (ended - begun) : 0;
	found.bytes = totals.bytes - bytes;
	/* What is large is cut before it is told: the contender would work on while the driver takes
	 * its readings. */
	for (unsigned i = 0; i < count && pace == CLOSED_LOOP && heavy; i++)
		hang_up(&set[i], 1);
	mark("end", ended);
	found.seconds = (ended - begun) / 1e9;
	if (pace == OPEN_LOOP) {
		found.seconds = asked->seconds;
		finish_open_loop(set, count);
	}
	pace = REST;
	found.done = measured;
	return found;
}

static void set_up(const struct options *options)
{
	asked = options;
	make_plan(&plan, options);
	ep = epoll_create1(EPOLL_CLOEXEC);
	if (ep < 0)
		die("epoll_create1");
}

void load(const struct options *options)
{
	struct conn *set = make_set(options->connections, 0, 0);
	struct outcome found;

	set_up(options);
	if (!options->close)
		walk_through(set, options->connections, CONNECT);
	found = run(set, options->connections);
	wait_for_driver();
	report(&found);
}

void hold(const struct options *options)
{
	struct conn *held = make_set(options->connections, 0, 1);
	struct conn *set = make_set(options->on, options->connections, 0);
	struct outcome found;

	set_up(options);
	walk_through(held, options->connections, ONCE);
	walk_through(set, options->on, CONNECT);
	found = run(set, options->on);
	wait_for_driver();
	totals.alive = 0; /* idle, not dead: each must still answer */
	walk_through(held, options->connections, ONCE);
	report(&found);
}
