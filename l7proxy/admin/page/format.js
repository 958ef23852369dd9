// Numbers as an operator reads them. Pure: values in, text out.

const UNITS = ["B", "kB", "MB", "GB", "TB", "PB"];
export const NOTHING = "–"; // not known, or not defined: the share of no bytes

/** Three significant digits, thousands of 1000: 0 B, 999 B, 1.23 kB, 45.6 MB, 789 GB. */
export function bytes(value) {
    if (!Number.isFinite(value)) return NOTHING;
    let unit = 0;
    let left = Math.max(0, value);
    while (unit < UNITS.length - 1 && left >= 999.5) {
        left /= 1000;
        unit += 1;
    }
    const digits = unit === 0 || left >= 99.95 ? 0 : left >= 9.995 ? 1 : 2;
    return `${left.toFixed(digits)} ${UNITS[unit]}`;
}

/** Bytes in a second. */
export function flow(value) {
    return Number.isFinite(value) ? `${bytes(value)}/s` : NOTHING;
}

/** A whole number with its thousands apart: 12,345. */
export function count(value) {
    if (!Number.isFinite(value)) return NOTHING;
    return Math.round(value).toString().replace(/\B(?=(\d{3})+$)/g, ",");
}

/** Events in a second: 0/s, 0.25/s, 3.4/s, 120/s. */
export function often(value) {
    if (!Number.isFinite(value)) return NOTHING;
    if (value === 0) return "0/s";
    if (value < 0.01) return "<0.01/s";
    return `${value < 1 ? value.toFixed(2) : value < 100 ? value.toFixed(1) : count(value)}/s`;
}

/** A share between 0 and 1 in percent; 100 % and 0 % are said only where nothing is missing. */
export function share(value) {
    if (!Number.isFinite(value)) return NOTHING;
    if (value === 0 || value === 1) return `${value * 100} %`;
    const percent = Math.min(99.9, Math.max(0.1, value * 100));
    return `${percent.toFixed(1)} %`;
}

/** Seconds in the two units that matter: 0.2s, 7s, 3m 12s, 5h 02m, 12d 4h. */
export function duration(seconds) {
    if (!Number.isFinite(seconds)) return NOTHING;
    if (seconds < 9.95) return `${Math.max(0, seconds).toFixed(1)}s`;
    const whole = Math.floor(seconds);
    if (whole < 60) return `${whole}s`;
    const two = (value) => String(value).padStart(2, "0");
    if (whole < 3600) return `${Math.floor(whole / 60)}m ${two(whole % 60)}s`;
    if (whole < 86400) return `${Math.floor(whole / 3600)}h ${two(Math.floor(whole / 60) % 60)}m`;
    return `${Math.floor(whole / 86400)}d ${Math.floor(whole / 3600) % 24}h`;
}
