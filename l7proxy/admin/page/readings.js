// What two readings of /stats say together. Pure: objects in, objects out.

const sum = (parts) => Object.values(parts ?? {}).reduce((total, part) => total + part, 0);

/** The totals of one reading of /stats, flat. Bytes go by the side that they come from. */
export function totals(stats) {
    const { redirected, relayed } = stats.bytes;
    return {
        uptime: stats.uptime_seconds,
        kernel: sum(redirected),
        user: sum(relayed),
        toClient: redirected.from_backend + relayed.from_backend,
        toBackend: redirected.from_client + relayed.from_client,
        accepted: stats.connections.accepted,
        errors: sum(stats.errors),
    };
}

/**
 * Rates in a second between two readings that were taken `seconds` apart, and what lives now.
 *
 * null where the two do not belong together: another process answered, or no time went by.
 */
export function rates(before, after, seconds) {
    const [old, now] = [totals(before), totals(after)];
    if (!(seconds > 0) || Object.keys(now).some((name) => now[name] < old[name])) return null;
    const found = {};
    for (const name of ["kernel", "user", "toClient", "toBackend", "accepted", "errors"]) {
        found[name] = (now[name] - old[name]) / seconds;
    }
    return { ...found, ...present(after) };
}

/** Connections that live now, by who moves their bytes; `early` have no backend yet. */
export function present(stats) {
    const { spliced, relayed } = stats.pairs;
    const active = stats.connections.active;
    return { active, spliced, relayed, early: Math.max(0, active - spliced - relayed) };
}

/** The kernel's part of all bytes; NaN when none flowed. */
export const kernelShare = ({ kernel, user }) => kernel / (kernel + user);

/** Endpoints as rows, the ill ones first; otherwise in the policy's order. */
export function endpoints(backends, before, seconds) {
    const rows = [];
    for (const [backend, group] of Object.entries(backends ?? {})) {
        for (const name of group.unresolved ?? []) {
            rows.push({ backend, address: name, state: "unresolved", why: "no address is known" });
        }
        for (const one of group.endpoints) {
            const old = before?.[backend]?.endpoints.find((other) => other.address === one.address);
            const grown = old ? one.accepted - old.accepted : NaN;
            const why = one.why ?? (one.seconds > 0 ? `back in ${Math.ceil(one.seconds)} s` : "");
            rows.push({
                ...one,
                backend,
                why: group.panic && !why ? "taken all the same: too few are healthy" : why,
                rate: seconds > 0 && grown >= 0 ? grown / seconds : NaN,
            });
        }
    }
    const illness = (row) => ({ bad: 0, warning: 1 })[stateLevel(row.state)] ?? 2;
    return rows.sort((one, other) => illness(one) - illness(other)); // stable
}

const STATES = {
    up: "good",
    unchecked: "good",
    starting: "warning",
    drained: "quiet",
    ejected: "bad",
    down: "bad",
    unresolved: "bad",
};

/** How grave an endpoint's state is: good, quiet, warning, bad. */
export const stateLevel = (state) => STATES[state] ?? "quiet";

/**
 * Connections as rows with their present rate. `rates` maps an id to the bytes and the time of the
 * reading before; what is returned takes its place, so connections that ended are forgotten.
 */
export function connections(listed, before, now) {
    const seen = new Map();
    const rows = listed.map((one) => {
        const all = one.bytes.to_client + one.bytes.to_backend;
        const old = before.get(one.id);
        seen.set(one.id, { all, now });
        const known = old !== undefined && now > old.now && all >= old.all;
        return { ...one, all, rate: known ? (all - old.all) / (now - old.now) : NaN };
    });
    return { rows, seen };
}

const FIELDS = ["client", "listener", "route", "backend", "endpoint", "state", "way"];

/**
 * What stands in a filter: `route:api` is for the proxy to choose by, exactly; every other word is
 * for `filtered`.
 */
export function chosen(text) {
    const fields = {};
    const words = [];
    for (const word of text.split(/\s+/).filter(Boolean)) {
        const at = word.indexOf(":");
        const name = word.slice(0, at);
        if (FIELDS.includes(name) && at + 1 < word.length) fields[name] = word.slice(at + 1);
        else words.push(word);
    }
    return { fields, words: words.join(" ") };
}

/** The rows in which every word of `text` occurs somewhere. */
export function filtered(rows, text, parts) {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    if (words.length === 0) return rows;
    return rows.filter((row) => {
        const all = parts(row).join(" ").toLowerCase();
        return words.every((word) => all.includes(word));
    });
}
