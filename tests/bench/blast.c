/* blast: the load that wrk does not make, and the origin that it runs against.
 *
 *   blast origin HOST PORT                            serve until killed
 *   blast download HOST PORT WARMUP SECONDS           one endless response, read as fast as it comes
 *   blast upload HOST PORT WARMUP SECONDS             one endless request body
 *   blast connect HOST PORT CONCURRENCY WARMUP SECONDS    a connection per request
 *   blast hold HOST PORT COUNT                        COUNT idle connections after one request each
 *
 * Facts that shaped it:
 * - Both ends must be cheaper than any contender, or the bench measures them. So: one thread, epoll
 *   where there are many connections, blocking calls where there is one, 128 KiB per call, bytes
 *   neither made nor hashed. (Exactness is proved by the test-suite, not here.)
 * - The driver takes CPU readings when a line "begin" and a line "end" appear on stdout, and closes
 *   stdin once it has them: the process must still be there to be read, so it waits for that.
 * - A loopback destination is dialled from 127.0.0.2 to 127.0.0.17 in turn, so that ports which
 *   TIME_WAIT holds do not run out (4-tuples are distinct per source address).
 *   IP_BIND_ADDRESS_NO_PORT leaves the choice of the port to connect(), which knows the 4-tuple.
 * - Every byte that must not happen is counted: a response that is short, not "200", or that ends
 *   with a reset is an error, and the driver throws a run with errors away.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CHUNK = 128 * 1024, HEAD = 2048, BATCH = 256, SOURCES = 16 };

static char chunk[CHUNK];
static const char OK_REPLY[] = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n";
static const char ENDLESS_REPLY[] =
	"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nConnection: close\r\n\r\n";
static const char SMALL_REQUEST[] = "GET / HTTP/1.1\r\nHost: bench\r\n\r\n";
static const char CLOSE_REQUEST[] = "GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n";
static const char DOWNLOAD_REQUEST[] =
	"GET /source HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n";
static const char UPLOAD_REQUEST[] = /* 1 PiB: nobody reaches the end of it */
	"POST /sink HTTP/1.1\r\nHost: bench\r\nContent-Length: 1125899906842624\r\n\r\n";

static void die(const char *what)
{
	fprintf(stderr, "blast: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static struct sockaddr_in address(const char *host, const char *port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(atoi(port)) };

	if (inet_pton(AF_INET, host, &a.sin_addr) != 1) {
		fprintf(stderr, "blast: not an IPv4 address: %s\n", host);
		exit(2);
	}
	return a;
}

static void no_delay(int fd)
{
	int one = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

/* A socket that is connecting (or connected) to `to`; -1 with errno. */
static int dial(const struct sockaddr_in *to, int flags, unsigned turn)
{
	struct sockaddr_in from = { .sin_family = AF_INET };
	int one = 1, fd = socket(AF_INET, SOCK_STREAM | flags, 0);

	if (fd < 0)
		return -1;
	if ((ntohl(to->sin_addr.s_addr) >> 24) == 127) {
		from.sin_addr.s_addr = htonl(0x7f000002u + turn % SOURCES);
		setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
		if (bind(fd, (struct sockaddr *)&from, sizeof from) < 0)
			goto fail;
	}
	no_delay(fd);
	if (connect(fd, (const struct sockaddr *)to, sizeof *to) == 0 || errno == EINPROGRESS)
		return fd;
fail:
	one = errno;
	close(fd);
	errno = one;
	return -1;
}

/* Tell the driver, then wait until it has taken its readings (it closes our stdin). */
static void wait_for_driver(void)
{
	char c;

	fflush(stdout);
	while (read(0, &c, 1) > 0)
		;
}

static void mark(const char *name, int64_t at, uint64_t done, uint64_t errors)
{
	printf("%s ns=%lld done=%llu errors=%llu\n", name, (long long)at, (unsigned long long)done,
	       (unsigned long long)errors);
	fflush(stdout);
}

/* ---- origin ------------------------------------------------------------------------------- */

enum mode { READING, SOURCE, SINK };

struct served {
	int fd;
	enum mode mode;
	unsigned used;
	char head[HEAD];
};

static void drop(struct served *c)
{
	close(c->fd);
	free(c);
}

/* Answers the complete heads in the buffer; 0 when the connection is to be dropped. */
static int answer(struct served *c, int ep)
{
	char *end;

	while (c->mode == READING && (end = memmem(c->head, c->used, "\r\n\r\n", 4))) {
		unsigned head = end + 4 - c->head;
		int closing = memmem(c->head, head, "onnection: close", 16) != NULL;

		if (!strncmp(c->head, "GET /source ", 12)) {
			struct epoll_event ev = { EPOLLOUT | EPOLLRDHUP, { .ptr = c } };

			c->mode = SOURCE;
			if (send(c->fd, ENDLESS_REPLY, sizeof ENDLESS_REPLY - 1, MSG_NOSIGNAL) < 0)
				return 0;
			return epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &ev) == 0;
		}
		if (!strncmp(c->head, "POST /sink ", 11)) {
			c->mode = SINK;
			return 1;
		}
		if (send(c->fd, OK_REPLY, sizeof OK_REPLY - 1, MSG_NOSIGNAL) < 0 || closing)
			return 0;
		c->used -= head;
		memmove(c->head, c->head + head, c->used);
	}
	return c->used < HEAD;
}

static int serve(struct served *c, int ep, uint32_t events)
{
	ssize_t n;

	if (c->mode == SOURCE) {
		if (events & (EPOLLRDHUP | EPOLLERR | EPOLLHUP))
			return 0;
		while ((n = send(c->fd, chunk, CHUNK, MSG_NOSIGNAL)) > 0)
			;
		return errno == EAGAIN;
	}
	if (c->mode == SINK) {
		/* bounded, so that one stream does not starve the others */
		for (int i = 0; i < 64; i++) {
			n = recv(c->fd, chunk, CHUNK, 0);
			if (n <= 0)
				return n < 0 && errno == EAGAIN;
		}
		return 1;
	}
	n = recv(c->fd, c->head + c->used, HEAD - c->used, 0);
	if (n <= 0)
		return n < 0 && errno == EAGAIN;
	c->used += n;
	return answer(c, ep);
}

static void origin(const char *host, const char *port)
{
	struct sockaddr_in a = address(host, port);
	struct epoll_event ev = { .events = EPOLLIN }, ready[BATCH];
	int one = 1, ep = epoll_create1(EPOLL_CLOEXEC);
	int door = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);

	setsockopt(door, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(door, (struct sockaddr *)&a, sizeof a) < 0 || listen(door, 4096) < 0)
		die("listen");
	if (epoll_ctl(ep, EPOLL_CTL_ADD, door, &ev) < 0)
		die("epoll_ctl");
	puts("ready");
	fflush(stdout);
	for (;;) {
		int n = epoll_wait(ep, ready, BATCH, -1);

		for (int i = 0; i < n; i++) {
			struct served *c = ready[i].data.ptr;
			int fd;

			if (c) {
				if (!serve(c, ep, ready[i].events))
					drop(c);
				continue;
			}
			while ((fd = accept4(door, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
				struct epoll_event in = { .events = EPOLLIN };

				no_delay(fd);
				c = malloc(sizeof *c);
				if (!c)
					die("malloc");
				c->fd = fd;
				c->mode = READING;
				c->used = 0;
				in.data.ptr = c;
				if (epoll_ctl(ep, EPOLL_CTL_ADD, fd, &in) < 0)
					die("epoll_ctl");
			}
			if (errno != EAGAIN && errno != ECONNABORTED)
				die("accept");
		}
	}
}

/* ---- one bulk stream ---------------------------------------------------------------------- */

static void bulk(int upload, const char *host, const char *port, double warmup, double seconds)
{
	struct sockaddr_in to = address(host, port);
	const char *request = upload ? UPLOAD_REQUEST : DOWNLOAD_REQUEST;
	int64_t begin, end, t;
	uint64_t done = 0;
	int begun = 0, fd = dial(&to, 0, 0);
	ssize_t n;

	if (fd < 0)
		die("connect");
	if (send(fd, request, strlen(request), MSG_NOSIGNAL) < 0)
		die("send");
	if (!upload) {
		n = recv(fd, chunk, CHUNK, 0);
		if (n < 12 || memcmp(chunk, "HTTP/1.1 200", 12)) {
			fprintf(stderr, "blast: not a 200\n");
			exit(1);
		}
	}
	begin = now_ns() + (int64_t)(warmup * 1e9);
	end = begin + (int64_t)(seconds * 1e9);
	for (;;) {
		n = upload ? send(fd, chunk, CHUNK, MSG_NOSIGNAL) : recv(fd, chunk, CHUNK, 0);
		if (n <= 0)
			die(n ? "stream" : "stream ended early");
		done += n;
		t = now_ns();
		if (!begun && t >= begin) {
			mark("begin", t, done, 0);
			begun = 1;
		} else if (t >= end) {
			break;
		}
	}
	/* Cut before it is told: the contender would work on while the driver takes its readings. */
	close(fd);
	mark("end", t, done, 0);
	wait_for_driver();
}

/* ---- a connection per request ------------------------------------------------------------- */

struct slot {
	int fd;
	int sent;
	unsigned used;
	int64_t began;
	char reply[HEAD];
};

/* Latencies in a log-linear histogram: 64 steps per power of two, so within 1.6 %. */
enum { STEPS = 64, ROWS = 40 };
static uint64_t histogram[ROWS * STEPS];

static void note_latency(int64_t ns)
{
	uint64_t us = ns > 0 ? ns / 1000 : 0;
	int row = us < STEPS ? 0 : 63 - __builtin_clzll(us) - 5;

	histogram[row * STEPS + (row ? (us >> (row - 1)) - STEPS : us)]++;
}

static double percentile(double share)
{
	uint64_t total = 0, seen = 0;

	for (int i = 0; i < ROWS * STEPS; i++)
		total += histogram[i];
	for (int i = 0; i < ROWS * STEPS; i++) {
		seen += histogram[i];
		if (total && seen >= share * total) {
			int row = i / STEPS, step = i % STEPS;

			return row ? (double)((uint64_t)(step + STEPS) << (row - 1)) : step;
		}
	}
	return 0;
}

static void open_slot(struct slot *s, int ep, const struct sockaddr_in *to, unsigned turn)
{
	struct epoll_event ev = { EPOLLOUT, { .ptr = s } };

	s->began = now_ns();
	s->used = 0;
	s->sent = 0;
	s->fd = dial(to, SOCK_NONBLOCK, turn);
	if (s->fd < 0)
		die("connect"); /* out of ports or descriptors: the run is void */
	if (epoll_ctl(ep, EPOLL_CTL_ADD, s->fd, &ev) < 0)
		die("epoll_ctl");
}

/* 0: go on, 1: complete, -1: an error. Complete means: 200, and a clean end of stream. */
static int step(struct slot *s, int ep)
{
	ssize_t n;

	if (!s->sent) {
		struct epoll_event in = { EPOLLIN, { .ptr = s } };

		n = send(s->fd, CLOSE_REQUEST, sizeof CLOSE_REQUEST - 1, MSG_NOSIGNAL);
		if (n != sizeof CLOSE_REQUEST - 1)
			return -1;
		s->sent = 1;
		return epoll_ctl(ep, EPOLL_CTL_MOD, s->fd, &in);
	}
	for (;;) {
		if (s->used == HEAD)
			return -1;
		n = recv(s->fd, s->reply + s->used, HEAD - s->used, 0);
		if (n < 0)
			return errno == EAGAIN ? 0 : -1;
		if (n == 0)
			return s->used > 12 && !memcmp(s->reply, "HTTP/1.1 200", 12) &&
			       !memcmp(s->reply + s->used - 3, "ok\n", 3) ? 1 : -1;
		s->used += n;
	}
}

static void connects(const char *host, const char *port, int concurrency, double warmup,
		     double seconds)
{
	struct sockaddr_in to = address(host, port);
	struct slot *slots = calloc(concurrency, sizeof *slots);
	struct epoll_event ready[BATCH];
	int64_t begin = now_ns() + (int64_t)(warmup * 1e9), end = begin + (int64_t)(seconds * 1e9), t;
	uint64_t done = 0, errors = 0;
	unsigned turn = 0;
	int begun = 0, ep = epoll_create1(EPOLL_CLOEXEC);

	if (!slots || ep < 0)
		die("setup");
	for (int i = 0; i < concurrency; i++)
		open_slot(&slots[i], ep, &to, turn++);
	for (;;) {
		int n = epoll_wait(ep, ready, BATCH, 1000);

		t = now_ns();
		for (int i = 0; i < n; i++) {
			struct slot *s = ready[i].data.ptr;
			int outcome = step(s, ep);

			if (!outcome)
				continue;
			if (outcome > 0) {
				done++;
				if (begun)
					note_latency(now_ns() - s->began);
			} else {
				errors++;
			}
			close(s->fd);
			open_slot(s, ep, &to, turn++);
		}
		if (!begun && t >= begin) {
			mark("begin", t, done, errors);
			begun = 1;
		} else if (t >= end) {
			mark("end", t, done, errors);
			break;
		}
	}
	printf("latency p50_us=%.0f p99_us=%.0f\n", percentile(0.50), percentile(0.99));
	wait_for_driver();
}

/* ---- idle connections --------------------------------------------------------------------- */

/* Polls until `fd` has answered one small request; a stuck connection is an error, not a hang. */
static void exchange(int fd)
{
	struct pollfd p = { fd, POLLIN, 0 };
	unsigned used = 0;
	char reply[HEAD];
	ssize_t n;

	if (send(fd, SMALL_REQUEST, sizeof SMALL_REQUEST - 1, MSG_NOSIGNAL) < 0)
		die("send");
	for (;;) {
		if (poll(&p, 1, 10000) != 1)
			die("no answer on a held connection");
		n = recv(fd, reply + used, HEAD - used, 0);
		if (n <= 0)
			die("held connection");
		used += n;
		if (used >= 15 && !memcmp(reply + used - 3, "ok\n", 3))
			break;
	}
	if (memcmp(reply, "HTTP/1.1 200", 12)) {
		fprintf(stderr, "blast: not a 200\n");
		exit(1);
	}
}

static void hold(const char *host, const char *port, int count)
{
	struct sockaddr_in to = address(host, port);
	int *fds = calloc(count, sizeof *fds);

	for (int i = 0; i < count; i++) {
		fds[i] = dial(&to, 0, i);
		if (fds[i] < 0)
			die("connect");
		exchange(fds[i]);
	}
	mark("held", now_ns(), count, 0);
	wait_for_driver();
	for (int i = 0; i < count; i++) /* idle, not dead: each must still answer */
		exchange(fds[i]);
	mark("alive", now_ns(), count, 0);
}

int main(int argc, char **argv)
{
	const char *verb = argc > 3 ? argv[1] : "";

	signal(SIGPIPE, SIG_IGN);
	memset(chunk, 'x', CHUNK);
	if (!strcmp(verb, "origin") && argc == 4)
		origin(argv[2], argv[3]);
	else if ((!strcmp(verb, "download") || !strcmp(verb, "upload")) && argc == 6)
		bulk(verb[0] == 'u', argv[2], argv[3], atof(argv[4]), atof(argv[5]));
	else if (!strcmp(verb, "connect") && argc == 7)
		connects(argv[2], argv[3], atoi(argv[4]), atof(argv[5]), atof(argv[6]));
	else if (!strcmp(verb, "hold") && argc == 5)
		hold(argv[2], argv[3], atoi(argv[4]));
	else
		return fprintf(stderr, "usage: see the head of blast.c\n"), 2;
	return 0;
}
