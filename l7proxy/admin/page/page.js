// The status page: asks /stats each second, and writes what it says into the page.
//
// Names come from the policy and from strangers' connections, so all text goes through textContent;
// nothing here makes HTML of it, and the policy of the page's own head forbids inline scripts. The
// page only reads. Nothing it holds grows: arrays of fixed length (history.js), one reading before
// the present one, and table rows that are written over (table.js).

import { Chart } from "./chart.js";
import { bytes, count, duration, flow, often, share } from "./format.js";
import { History } from "./history.js";
import {
    chosen,
    connections,
    endpoints,
    filtered,
    kernelShare,
    present,
    rates,
    stateLevel,
    totals,
} from "./readings.js";
import { Table } from "./table.js";

const EVERY = 1000; // ms between two readings of /stats
const EVERY_LIST = 2000; // ms between two of /connections, which workers have to answer
const PATIENCE = 5000; // ms that an answer may take
const PATIENCE_POLICY = 60000; // thousands of routes take their time
const LISTED = 100; // connections that are asked for
const MINUTE = 60; // readings: what went wrong lately
const FIGURES = ["kernel", "user", "spliced", "relayed", "early", "accepted", "errors"];
const WINDOWS = [
    { label: "5 min", span: "5 min", history: new History(1, 300, FIGURES) },
    { label: "1 h", span: "1 h", history: new History(12, 300, FIGURES) },
    { label: "24 h", span: "24 h", history: new History(288, 300, FIGURES) },
];

const $ = (id) => document.getElementById(id);
const write = (node, text) => {
    if (node.textContent !== text) node.textContent = text;
};

// --- asking

async function ask(path, patience = PATIENCE) {
    const signal = AbortSignal.timeout(patience);
    // not relative to the page's own address: with a password in it, fetch refuses
    const url = new URL(path, location.origin + location.pathname);
    const response = await fetch(url, { signal, cache: "no-store" });
    if (!response.ok) throw new Error(`${path} answered ${response.status}`);
    return response.json();
}

// --- parts of the page

const figures = new Map(
    ["To clients", "To backends", "Moved by the kernel", "Live connections", "New", "Errors"].map(
        (label) => {
            const part = document.createElement("div");
            const term = document.createElement("dt");
            const [main, more] = ["main", "more"].map((name) => {
                const node = document.createElement("dd");
                node.className = name;
                return node;
            });
            term.textContent = label;
            part.append(term, main, more);
            $("figures").append(part);
            return [label, (value, beside) => [write(main, value), write(more, beside)]];
        },
    ),
);

const charts = {
    flow: new Chart($("charts"), {
        title: "Throughput",
        figures: [
            { label: "kernel", kind: "kernel" },
            { label: "user space", kind: "user" },
        ],
        format: flow,
        least: 1000,
    }),
    share: new Chart($("charts"), {
        title: "Moved by the kernel",
        figures: [{ label: "of all bytes", kind: "kernel" }],
        format: share,
        axis: (value) => `${value * 100} %`,
        end: 1,
    }),
    live: new Chart($("charts"), {
        title: "Live connections",
        figures: [
            { label: "spliced", kind: "kernel" },
            { label: "relayed", kind: "user" },
            { label: "no backend yet", kind: "quiet" },
        ],
        format: count,
        least: 10,
    }),
    events: new Chart($("charts"), {
        title: "Connections and errors",
        figures: [
            { label: "new", kind: "kernel" },
            { label: "errors", kind: "bad" },
        ],
        format: often,
        lines: true,
    }),
};

const tables = {
    backends: new Table("backends", [
        { label: "Backend", cell: (row) => row.backend, mark: (row) => (row.again ? "again" : "") },
        { label: "Endpoint", cell: (row) => named(row) },
        { label: "State", cell: (row) => row.state, mark: (row) => stateLevel(row.state) },
        { label: "Live", number: true, cell: (row) => count(row.connections) },
        { label: "New", number: true, wide: true, cell: (row) => often(row.rate) },
        { label: "Failed", number: true, wide: true, cell: (row) => count(row.failures) },
        { label: "Weight", number: true, wide: true, cell: (row) => count(row.weight) },
        { label: "Why", cell: (row) => row.why },
    ]),
    connections: new Table(
        "connections",
        [
            { label: "Client", cell: (row) => row.client },
            { label: "Route", wide: true, cell: (row) => row.route },
            { label: "Endpoint", wide: true, cell: (row) => row.endpoint },
            {
                label: "State",
                cell: (row) => row.state,
                mark: (row) => ({ kernel: "kernel", relay: "user" })[row.way] ?? "",
                title: (row) => ({ kernel: "the kernel moves it", relay: "user space moves it" })[row.way] ?? "",
            },
            { label: "Rate", number: true, sorts: "rate", cell: (row) => flow(row.rate) },
            { label: "Bytes", number: true, sorts: "bytes", cell: (row) => bytes(row.all) },
            { label: "Kernel", number: true, wide: true, cell: (row) => share(row.bytes.kernel / row.all) },
            { label: "Age", number: true, wide: true, sorts: "age", cell: (row) => duration(row.age_seconds) },
            { label: "Idle", number: true, wide: true, sorts: "idle", cell: (row) => duration(row.idle_seconds) },
        ],
        { most: LISTED, none: "no connection lives now", onSort: sortBy },
    ),
    listeners: new Table("listeners", [
        { label: "Listener", cell: (row) => row.name },
        { label: "Protocol", cell: (row) => row.protocol },
        { label: "Address", cell: (row) => row.address },
        { label: "Live", number: true, cell: (row) => count(row.active) },
    ]),
    routes: new Table("routes", [
        { label: "Route", cell: (row) => row.name },
        { label: "Listeners", cell: (row) => row.listeners.join(", ") },
        { label: "Splice", cell: (row) => row.splice },
        { label: "Because", wide: true, cell: (row) => row.why },
        { label: "Defined at", cell: (row) => `${row.file}:${row.line}` },
    ]),
    errors: new Table(
        "errors",
        [
            { label: "Reason", cell: (row) => row.reason },
            {
                label: "Last minute",
                number: true,
                cell: (row) => count(row.lately),
                mark: (row) => (row.lately > 0 ? "lately" : ""),
            },
            { label: "Since the start", number: true, cell: (row) => count(row.total) },
        ],
        { none: "nothing since the start" },
    ),
};

const named = (row) => (row.name ? `${row.address} (${row.name})` : row.address);

// --- what is shown now

const state = {
    paused: false,
    window: WINDOWS[0],
    reading: null, // {stats, at}: the newest
    rates: null,
    endpoints: [],
    routes: { generation: -1, rows: [], asking: false },
    errors: [], // of the last minute, oldest first
    listed: { rows: [], total: 0, seen: new Map(), failed: "", silent: 0, at: -Infinity },
    sort: { by: "rate", descending: true },
    lost: null, // {since, why}: nobody answers
};

function showCondition() {
    const section = $("condition");
    const stats = state.reading?.stats;
    let level = stats?.condition?.is ?? "unknown";
    let title = {
        good: "Healthy",
        impaired: "Works, but not all of it",
        failing: "Failing",
        draining: "Draining: no new connections",
    }[level];
    let problems = stats?.condition?.problems ?? [];
    const more = stats?.condition?.more ?? 0;
    if (more > 0) problems = [...problems, { what: `and ${count(more)} more`, why: "" }];
    if (state.lost !== null) {
        level = "lost";
        title = "No answer";
        const since = new Date(state.lost.since).toLocaleTimeString();
        problems = [{ what: `since ${since}; what stands below is from before`, why: state.lost.why }];
    }
    section.dataset.level = level;
    write(section.querySelector("h2"), title ?? "Asking …");
    const list = section.querySelector("ul");
    while (list.children.length > problems.length) list.lastChild.remove();
    while (list.children.length < problems.length) {
        const item = document.createElement("li");
        item.append(document.createElement("b"), document.createElement("span"));
        list.append(item);
    }
    problems.forEach(({ what, why }, number) => {
        const [first, second] = list.children[number].children;
        write(first, what);
        write(second, why);
    });
    const mark = { good: "", unknown: "" }[level] ?? "! ";
    document.title = `${mark}l7proxy: ${(title ?? "asking").toLowerCase()}`;
}

function showFigures() {
    const now = state.rates;
    const { stats } = state.reading;
    const live = present(stats);
    const workers = `${stats.workers.running} of ${stats.workers.configured} workers`;
    write(
        $("about"),
        `${location.host} · ${stats.version} · up ${duration(stats.uptime_seconds)} · ${workers}` +
            ` · ${stats.datapath} · policy ${stats.policy.generation}, ${stats.policy.source}`,
    );
    $("about").title = stats.datapath_reason;
    const all = totals(stats);
    figures.get("To clients")(flow(now?.toClient), `${bytes(all.toClient)} in all`);
    figures.get("To backends")(flow(now?.toBackend), `${bytes(all.toBackend)} in all`);
    figures.get("Moved by the kernel")(
        share(now ? kernelShare(now) : NaN),
        `${share(kernelShare(all))} in all`,
    );
    figures.get("Live connections")(
        count(live.active),
        `${count(live.relayed)} relayed`,
    );
    figures.get("New")(often(now?.accepted), `${count(all.accepted)} in all`);
    figures.get("Errors")(often(now?.errors), `${count(all.errors)} in all`);
}

function showCharts() {
    const { history, span } = state.window;
    const read = Object.fromEntries(FIGURES.map((name) => [name, history.read(name)]));
    const { kernel, user } = read;
    const parts = kernel.map((value, at) => kernelShare({ kernel: value, user: user[at] }));
    charts.flow.draw([kernel, user], history.step, span);
    charts.share.draw([parts], history.step, span);
    charts.live.draw([read.spliced, read.relayed, read.early], history.step, span);
    charts.events.draw([read.accepted, read.errors], history.step, span);
}

const noneOf = (text) => (text.trim() ? "nothing is like that" : undefined);

function showBackends() {
    const text = $("backends-filter").value;
    const rows = filtered(state.endpoints, text, (row) => [
        row.backend,
        named(row),
        row.state,
        row.why,
    ]);
    rows.forEach((row, number) => {
        row.again = number > 0 && rows[number - 1].backend === row.backend;
    });
    tables.backends.show(rows, noneOf(text));
}

function showListeners() {
    const listeners = Object.entries(state.reading.stats.listeners);
    tables.listeners.show(listeners.map(([name, one]) => ({ name, ...one })));
}

function showRoutes() {
    const text = $("routes-filter").value;
    const rows = filtered(state.routes.rows, text, (row) => [
        row.name,
        ...row.listeners,
        row.splice,
        row.file,
    ]);
    tables.routes.show(rows, noneOf(text));
}

function showErrors() {
    const now = state.reading.stats.errors;
    const before = state.errors[0] ?? now;
    const rows = Object.entries(now)
        .filter(([, total]) => total > 0)
        .map(([reason, total]) => ({ reason, total, lately: total - (before[reason] ?? 0) }));
    rows.sort((one, other) => other.lately - one.lately || other.total - one.total);
    tables.errors.show(rows);
}

function showConnections() {
    const { by, descending } = state.sort;
    const value = {
        rate: (row) => row.rate,
        bytes: (row) => row.all,
        age: (row) => row.age_seconds,
        idle: (row) => row.idle_seconds,
    }[by];
    const rank = (row) => (Number.isFinite(value(row)) ? value(row) : -1);
    const { rows, total, failed, silent } = state.listed;
    const text = $("connections-filter").value;
    const { words } = chosen(text);
    const found = filtered(rows, words, (row) => [
        row.client,
        row.listener,
        row.route,
        row.backend,
        row.endpoint,
        row.state,
    ]).sort((one, other) => (descending ? rank(other) - rank(one) : rank(one) - rank(other)));
    tables.connections.sorted(by, descending);
    tables.connections.show(found, noneOf(text));
    const most = listedBy(by);
    if (failed) write($("connections-more"), failed);
    else if (silent > 0) write($("connections-more"), `workers that did not answer: ${silent}`);
    else if (total > rows.length) {
        const hint = "choose others with route:NAME, backend:NAME, client:ADDRESS, way:relay …";
        const told = `${rows.length} of ${count(total)}, those with most ${most}; ${hint}`;
        write($("connections-more"), told);
    }
}

/** What the admin server is asked to sort by: of its orders the one that is nearest. */
const listedBy = (by) => (by === "age" || by === "idle" ? by : "bytes");

function sortBy(by) {
    const same = state.sort.by === by;
    state.sort = { by, descending: same ? !state.sort.descending : true };
    showConnections();
    state.listed.at = -Infinity; // another order may bring others
}

// --- what is read

function takeStats(stats, at) {
    const before = state.reading;
    const seconds = before === null ? 0 : (at - before.at) / 1000;
    state.rates = before === null ? null : rates(before.stats, stats, seconds);
    if (state.rates === null) state.errors = []; // the first reading, or of another process
    for (const { history } of WINDOWS) {
        history.advance(Math.floor(at / 1000 / history.step));
        if (state.rates !== null) history.add(before.at / 1000, at / 1000, state.rates);
    }
    const old = state.rates === null ? null : before.stats.backends;
    state.endpoints = endpoints(stats.backends, old, seconds);
    state.errors = [...state.errors, stats.errors].slice(-MINUTE - 1);
    state.reading = { stats, at };
}

async function takeRoutes() {
    const { generation } = state.reading.stats.policy;
    if (state.routes.generation === generation || state.routes.asking) return;
    state.routes.asking = true;
    try {
        const policy = await ask("policy", PATIENCE_POLICY);
        state.routes = { generation, rows: policy.routes, asking: false };
        showRoutes();
    } catch (error) {
        state.routes.asking = false; // the next reading tries again
        write($("routes-more"), String(error.message ?? error));
    }
}

async function takeConnections() {
    const now = Date.now();
    if (now - state.listed.at < EVERY_LIST - 100) return;
    state.listed.at = now;
    const { by } = state.sort;
    const { fields } = chosen($("connections-filter").value);
    const query = new URLSearchParams({ ...fields, limit: LISTED, sort: listedBy(by) });
    const found = await ask(`connections?${query}`);
    const { rows, seen } = connections(found.connections, state.listed.seen, Date.now() / 1000);
    const silent = found.silent_workers?.length ?? 0;
    state.listed = { rows, seen, total: found.total, failed: "", silent, at: now };
    showConnections();
}

let isLiveSeen = true; // the table of connections is on the screen
new IntersectionObserver((entries) => {
    isLiveSeen = entries.at(-1).isIntersecting;
}).observe($("live"));

async function once() {
    try {
        takeStats(await ask("stats"), Date.now());
        state.lost = null;
    } catch (error) {
        // Rates go on from the last reading; if it was another process, they begin anew.
        state.lost ??= { since: Date.now(), why: String(error.message ?? error) };
        showCondition();
        return;
    }
    if (document.hidden) return; // charts fill up all the same; nobody sees the rest
    showCondition();
    showFigures();
    showCharts();
    showBackends();
    showListeners();
    showErrors();
    takeRoutes(); // nothing waits for it
    if (isLiveSeen) {
        await takeConnections().catch((error) => {
            state.listed.failed = String(error.message ?? error);
            showConnections();
        });
    }
}

async function forever() {
    const begun = performance.now();
    if (!state.paused) await once();
    setTimeout(forever, Math.max(100, EVERY - (performance.now() - begun)));
}

// --- what a person does

WINDOWS.forEach((one) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = one.label;
    button.setAttribute("aria-pressed", one === state.window);
    button.addEventListener("click", () => {
        state.window = one;
        for (const other of $("windows").children) {
            other.setAttribute("aria-pressed", other === button);
        }
        showCharts();
    });
    $("windows").append(button);
});

$("pause").addEventListener("click", () => {
    state.paused = !state.paused;
    $("pause").setAttribute("aria-pressed", state.paused);
    write($("pause"), state.paused ? "Go on" : "Pause");
});
$("backends-filter").addEventListener("input", showBackends);
$("routes-filter").addEventListener("input", showRoutes);
$("connections-filter").addEventListener("input", () => {
    showConnections();
    state.listed.at = -Infinity;
});

forever();
