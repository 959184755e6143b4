// One image and the checklist of its cell type: marks, then a verdict.

class LabelSession extends Session {
  blank() {
    return { failed: [], unsure: [], comment: "" };
  }

  restored(entry) {
    return { failed: [...(entry.failed ?? [])], unsure: [...(entry.unsure ?? [])], comment: entry.comment ?? "" };
  }

  mark(name, state) {
    if (!this.complete || this.retired) return;
    this.touch();
    const { draft } = this;
    const was = draft[state].includes(name);
    for (const list of ["failed", "unsure"]) draft[list] = draft[list].filter((other) => other !== name);
    if (!was) draft[state].push(name);
    this.say("", false);
  }

  // Why the marks forbid a verdict; empty when they do not.
  objection(verdict) {
    const { failed, unsure } = this.draft;
    const against = verdict === "plausible" ? [...failed, ...unsure] : verdict === "unsure" ? failed : [];
    return against.length && `Marked: ${against.join(", ").replaceAll("_", " ")}. Clear the mark, or decide ${failed.length ? "implausible" : "unsure"}.`;
  }

  decide(verdict) {
    if (!this.ready()) return;
    const objection = this.objection(verdict);
    if (objection) return this.say(objection);
    const { failed, unsure } = this.draft;
    this.record("review", [{ item: this.page[0], verdict, failed, unsure, supersedes: this.supersedes }]);
    this.advance("review");
  }
}

class LabelView extends View {
  onDigit(digit, shift) {
    const name = this.parts.rows.children[digit - 1]?.dataset.name;
    if (name) this.session.mark(name, shift ? "unsure" : "failed");
  }

  onButton(button) {
    const row = button.closest("[data-name]");
    if (row) this.session.mark(row.dataset.name, button.dataset.do);
    return Boolean(row);
  }

  act(action) {
    const { session } = this;
    const { failed, unsure } = session.draft;
    if (["plausible", "implausible", "unsure"].includes(action)) session.decide(action);
    else if (action === "next" && (failed.length || unsure.length)) session.decide(failed.length ? "implausible" : "unsure");
    else if (action === "next") session.say("Nothing is marked: press a when every criterion is met.");
    else return super.act(action);
    return true;
  }

  // Room for the longest checklist, so that the buttons below do not move from one type to the next.
  reserve(width) {
    const list = this.parts.rows;
    if (!width || this.reservedFor === width) return;
    this.reservedFor = width;
    list.style.minHeight = "";
    const heights = Object.values(this.session.model.get("rows")).map((rows) => {
      list.innerHTML = rows;
      return list.offsetHeight;
    });
    list.style.minHeight = `${Math.max(0, ...heights)}px`;
    this.type = null;
    this.draw();
  }

  drawType(type) {
    if (!this.watch) {
      this.watch = new ResizeObserver(([{ contentRect }]) => this.reserve(Math.round(contentRect.width)));
      this.watch.observe(this.parts.rows);
    }
    if (this.type === type) return;
    this.type = type;
    this.write("cell_type", type);
    this.parts.rows.innerHTML = this.session.model.get("rows")[type] ?? "";
  }

  drawMarks() {
    const { draft } = this.session;
    for (const line of this.parts.rows.children) {
      for (const state of ["failed", "unsure"]) {
        const on = draft[state].includes(line.dataset.name);
        line.classList.toggle(`is-${state}`, on);
        line.querySelector(`[data-do="${state}"]`).setAttribute("aria-pressed", on);
      }
    }
    const next = draft.failed.length ? "implausible" : draft.unsure.length ? "unsure" : "";
    for (const name of ["plausible", "implausible", "unsure"]) {
      const button = this.root.querySelector(`.pathloop-verdicts [data-do="${name}"]`);
      button.classList.toggle("is-next", name === next);
      button.setAttribute("aria-disabled", Boolean(this.session.objection(name)));
    }
  }

  drawPage() {
    const { current } = this.session;
    this.paint(this.parts.image, current.bitmaps[0], `Cell to judge, meant to be: ${current.cell_type}`);
    this.drawType(current.cell_type);
    this.drawReferences(current.cell_type);
    this.drawMarks();
  }

  announcement() {
    return `${super.announcement()}: ${this.session.current.cell_type}`;
  }
}
