/* Latencies, counted in classes of 64 steps per power of two. */
#include "blast.h"

static unsigned class_of(uint64_t ns)
{
	unsigned row;

	if (ns < STEPS)
		return ns;
	row = 63 - __builtin_clzll(ns) - 5; /* 1 for 64..127, whose steps are 1 ns */
	if (row >= ROWS)
		return ROWS * STEPS - 1;
	return row * STEPS + (ns >> (row - 1)) - STEPS;
}

static double middle_ns(unsigned class)
{
	unsigned row = class / STEPS, step = class % STEPS;
	uint64_t width;

	if (!row)
		return step;
	width = 1ull << (row - 1);
	return (step + STEPS) * width + (width - 1) / 2.0;
}

void note(struct histogram *h, int64_t ns)
{
	if (ns < 0)
		ns = 0;
	h->count[class_of(ns)]++;
	h->total++;
	h->sum += ns;
	if (ns > h->max)
		h->max = ns;
}

/* The smallest class that at least this share of all lies in or below. */
double percentile_us(const struct histogram *h, double share)
{
	uint64_t wanted = share * h->total, seen = 0;

	wanted += wanted < share * h->total; /* rounded up */
	for (unsigned i = 0; i < ROWS * STEPS; i++) {
		seen += h->count[i];
		if (seen && seen >= wanted)
			return (middle_ns(i) < h->max ? middle_ns(i) : h->max) / 1e3;
	}
	return 0;
}

/* As members of the result: `us` and `histogram`. */
void print_latency(const struct histogram *h)
{
	const char *comma = "";

	if (!h || !h->total) {
		printf("\"us\":null,\"histogram\":[]");
		return;
	}
	printf("\"us\":{\"p50\":%.2f,\"p90\":%.2f,\"p99\":%.2f,\"p999\":%.2f,\"max\":%.2f,"
	       "\"mean\":%.2f},\"histogram\":[",
	       percentile_us(h, 0.5), percentile_us(h, 0.9), percentile_us(h, 0.99),
	       percentile_us(h, 0.999), h->max / 1e3, h->sum / h->total / 1e3);
	for (unsigned i = 0; i < ROWS * STEPS; i++) {
		if (!h->count[i])
			continue;
		printf("%s[%.6g,%llu]", comma, middle_ns(i) / 1e3, (unsigned long long)h->count[i]);
		comma = ",";
	}
	putchar(']');
}

/* So that a test can compare it with an exact computation. */
void histogram_of_stdin(void)
{
	static struct histogram h;
	long long ns;

	while (scanf("%lld", &ns) == 1)
		note(&h, ns);
	printf("result {");
	print_latency(&h);
	puts("}");
}
