/* blast: the load of the load test, and the origin that it runs against.
 *
 *   blast origin [http=HOST:PORT,...] [echo=HOST:PORT,...]       serve until killed (origin.c)
 *   blast load to=HOST:PORT,... kind=get|put|stream|sink|echo|ws connections=N ...      (load.c)
 *   blast hold to=... connections=N [on=M rate=R] ...            idle connections       (load.c)
 *   blast slow to=... connections=N bytes_per_second=B ...       steady slow readers    (slow.c)
 *   blast histogram                                 for tests: nanoseconds on stdin (histogram.c)
 *
 * Options are NAME=VALUE; blast.py documents them, and what is said on stdout: a line `begin {...}`
 * and a line `end {...}` at which the driver takes its readings (and closes our stdin when it has
 * them: until then the process is there to be read), then a line `result {...}`.
 *
 * Facts that shaped it:
 * - Load, origin and contender share the processors of one machine, so what blast uses is taken
 *   from what is measured. One thread each, epoll, no allocation and as few calls as can be per
 *   exchange, one buffer that stays in the cache, bodies sent from a static pattern.
 * - A proxy that loses, doubles or swaps bytes is worth no figure. So lengths are always checked,
 *   echoes are compared whole, and of large bodies the first and last KiB of every read: the
 *   pattern has a prime period, so whatever shifts the stream shows in the next sample.
 * - Every error is counted by its kind and the load goes on. The driver throws such a run away.
 */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum {
	CHUNK = 128 * 1024,  /* per read: stays in the L2 cache */
	WRITE = 512 * 1024,  /* per write: the reader is woken up less often, which is half the cost */
	PERIOD = 65521,      /* of the pattern: a prime, no multiple of any segment or page */
	SAMPLE = 1024,       /* compared at both ends of a read of a large body */
	HEAD = 1024,         /* the most a head of a reply may have */
	BATCH = 256,         /* events per epoll_wait */
	MAX_TARGETS = 16,
	SECOND = 1000000000, /* ns */
};

/* 1 PiB: nobody reaches the end of it. A body without a length would be another thing to each: some
 * proxies pass it on until the connection ends, others put it into chunks. */
#define ENDLESS (1ull << 50)
#define ENDLESS_PATH "/bytes/1125899906842624"

/* Of the WebSocket handshake: the key of RFC 6455 section 1.3, and the answer that it gives there. */
#define WS_KEY "dGhlIHNhbXBsZSBub25jZQ=="
#define WS_ACCEPT "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

enum kind { GET, PUT, STREAM, SINK, ECHO_, WS };
enum error { E_CONNECT, E_RESET, E_SHORT, E_STATUS, E_TIMEOUT, E_CORRUPT, ERRORS };

struct targets {
	struct sockaddr_in at[MAX_TARGETS];
	unsigned count;
};

struct options {
	struct targets to, http, echo;
	enum kind kind;
	const char *path;            /* "": the one of its kind */
	uint64_t size;               /* bytes of an upload or of a message */
	unsigned connections, on;
	int close;
	int rcvbuf;
	double rate, warmup, seconds, timeout, bytes_per_second;
};

/* What an exchange is, the same on all connections. */
struct plan {
	enum kind kind;
	int http, close;
	int pattern;                 /* the reply's body is the pattern, else "ok\n" or the message */
	char head[512];              /* what it begins with: a request's head, or a frame's */
	size_t head_length;
	char handshake[768];         /* WebSocket */
	size_t handshake_length;
	char echo_head[4];           /* what the frame that comes back begins with */
	size_t echo_head_length;
	const char *body;            /* the pattern, masked for WebSocket */
	uint64_t body_length, reply_length;
};

/* Latencies in ns, log-linear: 64 steps per power of two, so the middle of a class is within 0.8 %
 * of what was noted, from 64 ns to 36 minutes. */
enum { STEPS = 64, ROWS = 36 };

struct histogram {
	uint64_t count[ROWS * STEPS];
	uint64_t total;
	int64_t max;
	double sum;
};

/* What the three loads count, from the start; the driver gets differences by `begin` and `end`. */
struct totals {
	uint64_t done, bytes, errors[ERRORS];
	uint64_t reopened, alive, unsent;
};

/* What is printed as `result`, beside the totals. */
struct outcome {
	uint64_t done, bytes;        /* between begin and end */
	double seconds, busy;
	const struct histogram *latency, *lag;
};

struct head {
	int status;
	int64_t length;              /* Content-Length; -1: none */
	int accepted;                /* has the answer to WS_KEY */
};

extern char pattern[PERIOD + WRITE];
extern struct totals totals;

void die(const char *what) __attribute__((noreturn));
int64_t now_ns(void);
int64_t thread_ns(void);
void fill_pattern(void);

/* The pattern from position `at` of a body on, WRITE bytes of it. */
static inline const char *pattern_at(uint64_t at)
{
	return pattern + at % PERIOD;
}

/* Whether n <= CHUNK bytes at position `at` of a body are, where looked at, those of the pattern. */
int sampled(const char *data, size_t n, uint64_t at);

/* A non-blocking socket that is connecting to the turn-th target; -1 with errno. */
int dial(const struct targets *to, unsigned turn, int rcvbuf);

/* The complete head of a reply in `text` (n bytes, ending with the empty line): 0 if it is none. */
int read_head(const char *text, size_t n, struct head *head);

/* Counts an error; the first one's words become the result's `complaint`. */
void complain(enum error kind, const char *format, ...) __attribute__((format(printf, 2, 3)));

uint64_t all_errors(void);
void mark(const char *word, int64_t at);
void wait_for_driver(void);
void report(const struct outcome *outcome);

void make_plan(struct plan *plan, const struct options *options);

void note(struct histogram *h, int64_t ns);
double percentile_us(const struct histogram *h, double share);
void print_latency(const struct histogram *h);
void histogram_of_stdin(void);

void origin(const struct options *options) __attribute__((noreturn));
void load(const struct options *options);
void hold(const struct options *options);
void slow(const struct options *options);
