// Charts as SVG: areas that lie on each other, or lines. One <path> for each figure, drawn anew.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 1000; // units of the viewBox: the plot is stretched to its place
const HEIGHT = 100;
const GRID = [0, 0.5, 1];

/** The end of an axis: 1, 2 or 5 times a power of ten, and not below `largest`. */
export function axisEnd(largest, least) {
    const wanted = Math.max(largest, least);
    const power = 10 ** Math.floor(Math.log10(wanted));
    // the tolerance: 5 * 10 ** -1 is not always 0.5
    return [1, 2, 5, 10].map((step) => step * power).find((end) => end >= wanted * (1 - 1e-9));
}

/** Figures stacked on each other: for each the upper edges; the first one lies on zero. */
export function stacked(figures) {
    const edges = [];
    let below = new Float64Array(figures[0].length);
    for (const figure of figures) {
        below = figure.map((value, at) => value + below[at]);
        edges.push(below);
    }
    return edges;
}

const round = (value) => Math.round(value * 100) / 100;

/** Stretches without a gap, as [first, behind the last]. */
export function stretches(values) {
    const found = [];
    let first = -1;
    for (let at = 0; at <= values.length; at += 1) {
        const known = at < values.length && Number.isFinite(values[at]);
        if (known && first < 0) first = at;
        if (!known && first >= 0) {
            found.push([first, at]);
            first = -1;
        }
    }
    return found;
}

/** Path data of a line through the values, or with `lower` of the area between the two. */
export function path(values, end, lower = null) {
    const x = (at) => round((at * WIDTH) / (values.length - 1));
    const y = (value) => round(HEIGHT - (Math.min(value, end) / end) * HEIGHT);
    return stretches(values)
        .map(([first, behind]) => {
            const upper = [];
            for (let at = first; at < behind; at += 1) upper.push(`${x(at)} ${y(values[at])}`);
            if (lower === null) return `M${upper.join("L")}`;
            const back = [];
            for (let at = behind - 1; at >= first; at -= 1) back.push(`${x(at)} ${y(lower[at])}`);
            return `M${upper.concat(back).join("L")}Z`;
        })
        .join("");
}

const made = (name, parent, attributes = {}, text = "") => {
    const node = ["svg", "path", "line"].includes(name)
        ? document.createElementNS(SVG, name)
        : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text) node.textContent = text;
    parent.append(node);
    return node;
};

export class Chart {
    /**
     * `figures` are {name, label, kind} from below upwards; `kind` chooses the colour. `format`
     * writes a value, `axis` one of the axis; `least` is the smallest end of the axis, `end` a fixed
     * one. Areas are stacked unless `lines`.
     */
    constructor(parent, { title, figures, format, axis = format, least = 1, end = null, lines = false }) {
        Object.assign(this, { title, figures, format, axis, least, end, lines });
        this.drawn = null; // what was drawn last
        this.at = null; // the part of the width that is looked at; null: the newest
        const figure = made("figure", parent, { class: "chart" });
        const caption = made("figcaption", figure);
        made("h3", caption, {}, title);
        this.keys = figures.map(({ label, kind }) => {
            const key = made("span", caption, { class: `key ${kind}` });
            made("span", key, {}, label);
            return made("output", key);
        });
        this.plot = made("div", figure, { class: "plot" });
        this.svg = made("svg", this.plot, {
            viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
            preserveAspectRatio: "none",
            role: "img",
            tabindex: "0",
            "aria-label": title,
        });
        for (const part of GRID) {
            const y = HEIGHT * (1 - part);
            made("line", this.svg, { class: "grid", x1: 0, x2: WIDTH, y1: y, y2: y });
        }
        this.paths = figures.map(({ kind }) =>
            made("path", this.svg, { class: `${lines ? "line" : "area"} ${kind}` }),
        );
        this.cursor = made("line", this.svg, { class: "cursor", y1: 0, y2: HEIGHT, hidden: "" });
        this.ends = GRID.slice(1).map((part) =>
            made("span", this.plot, { class: part === 1 ? "end" : "end middle" }),
        );
        const time = made("div", figure, { class: "time", "aria-hidden": "true" });
        this.since = made("span", time);
        this.moment = made("span", time);
        this.listen();
    }

    listen() {
        const point = (event) => {
            const box = this.svg.getBoundingClientRect();
            this.look((event.clientX - box.left) / box.width);
        };
        this.svg.addEventListener("pointermove", point);
        this.svg.addEventListener("pointerdown", point);
        this.svg.addEventListener("pointerleave", () => this.look(null));
        this.svg.addEventListener("blur", () => this.look(null));
        this.svg.addEventListener("keydown", (event) => {
            const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
            if (event.key === "Escape") this.look(null);
            if (step === undefined || this.drawn === null) return;
            event.preventDefault();
            const last = this.drawn.values[0].length - 1;
            const by = event.shiftKey ? 10 : 1;
            this.look(Math.min(1, Math.max(0, (this.at ?? 1) + (step * by) / last)));
        });
    }

    /** Show the figures of the moment at this part of the width; null: the newest. */
    look(at) {
        this.at = at === null ? null : Math.min(1, Math.max(0, at));
        this.tell();
    }

    /** `values` has an array for each figure, oldest first; `step` are its seconds. */
    draw(values, step, span) {
        this.drawn = { values, step };
        const edges = this.lines ? values : stacked(values);
        let largest = 0;
        for (const edge of edges) {
            for (const value of edge) if (value > largest) largest = value;
        }
        const end = this.end ?? axisEnd(largest, this.least);
        edges.forEach((edge, number) => {
            const lower = number ? edges[number - 1] : new Float64Array(edge.length);
            this.paths[number].setAttribute("d", path(edge, end, this.lines ? null : lower));
        });
        GRID.slice(1).forEach((part, number) => {
            this.ends[number].textContent = this.axis(end * part);
        });
        this.since.textContent = `${span} ago`;
        this.tell();
    }

    tell() {
        if (this.drawn === null) return;
        const { values, step } = this.drawn;
        const last = values[0].length - 1;
        const at = this.at === null ? last : Math.round(this.at * last);
        // the newest step has only begun, and may know nothing yet
        const value = (one) =>
            this.at === null && !Number.isFinite(one[last]) ? one[last - 1] : one[at];
        const told = values.map((one) => this.format(value(one)));
        told.forEach((text, number) => {
            this.keys[number].textContent = text;
        });
        const back = (last - at) * step;
        const when = new Date(Date.now() - back * 1000);
        this.moment.textContent = this.at === null ? "now" : when.toLocaleTimeString();
        this.cursor.toggleAttribute("hidden", this.at === null);
        const x = (at * WIDTH) / last;
        this.cursor.setAttribute("x1", x);
        this.cursor.setAttribute("x2", x);
        const text = this.figures.map(({ label }, number) => `${label} ${told[number]}`);
        this.svg.setAttribute("aria-label", `${this.title}: ${text.join(", ")}`);
    }
}
