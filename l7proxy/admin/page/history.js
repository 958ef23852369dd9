// What the charts show: averages over steps of time, in arrays that never grow.
//
// A reading tells a rate since the one before, which may be a second old, or an hour when the
// browser put the page to sleep. So a rate is laid over every step that its interval touches, each
// by the seconds it covers: what happened meanwhile is shown as its average, which is all that is
// known. A step that nothing covers is NaN, and a gap in the chart.

export class History {
    /** `length` steps of `step` seconds, for the figures of these names. */
    constructor(step, length, names) {
        this.step = step;
        this.length = length;
        this.names = names;
        this.latest = -1; // number of the newest step, counted from time 0
        this.covered = new Float64Array(length); // seconds of each step that are known
        this.sums = new Map(names.map((name) => [name, new Float64Array(length)]));
    }

    /** `figures` held from second `from` until second `until`. */
    add(from, until, figures) {
        if (!(until > from)) return;
        this.advance(Math.floor(until / this.step));
        const oldest = this.latest - this.length + 1;
        const first = Math.max(oldest, Math.floor(from / this.step), 0);
        for (let step = first; step <= this.latest; step += 1) {
            const begin = Math.max(from, step * this.step);
            const seconds = Math.min(until, (step + 1) * this.step) - begin;
            if (seconds <= 0) continue;
            const at = step % this.length;
            this.covered[at] += seconds;
            for (const name of this.names) {
                this.sums.get(name)[at] += (figures[name] ?? 0) * seconds;
            }
        }
    }

    /** Time went on: the steps until this one are new, and empty. */
    advance(step) {
        if (step <= this.latest) return;
        const first = Math.max(this.latest + 1, step - this.length + 1);
        for (let fresh = first; fresh <= step; fresh += 1) {
            const at = fresh % this.length;
            this.covered[at] = 0;
            for (const sum of this.sums.values()) sum[at] = 0;
        }
        this.latest = step;
    }

    /** The averages of one figure, oldest first; NaN where nothing is known. */
    read(name) {
        const sums = this.sums.get(name);
        const found = new Float64Array(this.length).fill(NaN);
        for (let back = 0; back < this.length; back += 1) {
            const step = this.latest - back;
            if (step < 0) break;
            const at = step % this.length;
            if (this.covered[at] > 0) found[this.length - 1 - back] = sums[at] / this.covered[at];
        }
        return found;
    }
}
