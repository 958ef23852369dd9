// Tables whose rows are written over at each reading, so that they are never more than are shown.

export class Table {
    /**
     * `columns` are {label, cell, [number], [mark], [wide], [title]}: `cell(row)` is text, `mark(row)`
     * a word out of this page's own, `wide` leaves the column out on a narrow screen, `sorts` names
     * the column's order for `onSort`.
     */
    constructor(id, columns, { most = 200, none = "none", onSort = null } = {}) {
        this.columns = columns;
        this.most = most;
        this.none = none;
        this.note = document.getElementById(`${id}-more`);
        const table = document.getElementById(id);
        const head = table.createTHead().insertRow();
        this.heads = columns.map((column) => {
            const th = document.createElement("th");
            th.scope = "col";
            th.className = this.classes(column);
            head.append(th);
            if (column.sorts && onSort) {
                const button = document.createElement("button");
                button.type = "button";
                button.textContent = column.label;
                button.addEventListener("click", () => onSort(column.sorts));
                th.append(button);
            } else {
                th.textContent = column.label;
            }
            return th;
        });
        this.body = table.createTBody();
    }

    classes(column) {
        return [column.number && "number", column.wide && "wide"].filter(Boolean).join(" ");
    }

    /** Which column the rows are sorted by. */
    sorted(by, descending) {
        this.columns.forEach((column, number) => {
            if (!column.sorts) return;
            const order = column.sorts !== by ? "none" : descending ? "descending" : "ascending";
            this.heads[number].setAttribute("aria-sort", order);
        });
    }

    /** Show these rows, the first ones if they are too many; `none` is said where there are none. */
    show(rows, none = this.none) {
        const shown = rows.slice(0, this.most);
        while (this.body.rows.length > shown.length) this.body.deleteRow(-1);
        while (this.body.rows.length < shown.length) this.grow();
        shown.forEach((row, number) => {
            this.columns.forEach((column, at) => {
                const cell = this.body.rows[number].cells[at];
                const text = String(column.cell(row) ?? "");
                if (cell.textContent !== text) cell.textContent = text;
                const mark = column.mark?.(row) ?? "";
                if ((cell.dataset.mark ?? "") !== mark) cell.dataset.mark = mark;
                const title = column.title?.(row) ?? "";
                if (cell.title !== title) cell.title = title;
            });
        });
        const left = rows.length - shown.length;
        const more = left > 0 ? `${left.toLocaleString("en")} more: filter to see them` : "";
        const text = rows.length === 0 ? none : more;
        if (this.note.textContent !== text) this.note.textContent = text;
    }

    grow() {
        const row = this.body.insertRow();
        this.columns.forEach((column, at) => {
            const cell = document.createElement(at === 0 ? "th" : "td");
            if (at === 0) cell.scope = "row";
            cell.className = this.classes(column);
            row.append(cell);
        });
    }
}
