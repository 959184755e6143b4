// A page of images of one cell type: mark those that will not do, then go on.

class GridSession extends Session {
  blank() {
    return { rejected: [], doubted: [], before: {}, comment: "" };
  }

  restored(_last, group) {
    const of = (verdict) => group.filter((entry) => entry.verdict === verdict).map((entry) => entry.item);
    const before = Object.fromEntries(group.map((entry) => [entry.item, entry.uuid]));
    return { ...this.blank(), rejected: of("implausible"), doubted: of("unsure"), before };
  }

  // One cell type until it is done, then the next.
  pageOf(queue) {
    const of = (group) => queue.filter((place) => this.groups.get(place) === group);
    const page = of(this.group);
    return (page.length ? page : of(this.groups.get(queue[0]))).slice(0, this.options.per_page);
  }

  choosePage() {
    const page = this.pageOf(this.queue);
    this.group = this.groups.get(page[0]);
    return page;
  }

  takeBack(group) {
    this.group = this.groups.get(group[0].item);
    super.takeBack(group);
  }

  ahead() {
    return this.imageBytes ? 2 * this.options.per_page : this.options.per_page;
  }

  upcoming() {
    if (!this.imageBytes) return []; // the first page comes first
    const showing = new Set(this.page);
    return this.pageOf(this.queue.filter((place) => !showing.has(place)));
  }

  get quickest() {
    return this.options.dwell; // a page needs longer than an image
  }

  toggle(place, state) {
    if (!this.complete || this.retired || place === undefined) return;
    this.touch();
    const { draft } = this;
    const was = draft[state].includes(place);
    for (const list of ["rejected", "doubted"]) draft[list] = draft[list].filter((other) => other !== place);
    if (!was) draft[state].push(place);
    this.say("", false);
  }

  submit() {
    if (!this.ready()) return;
    const { rejected, doubted, before } = this.draft;
    const verdict = (item) => (rejected.includes(item) ? "implausible" : doubted.includes(item) ? "unsure" : "plausible");
    this.record("review", this.page.map((item) => ({ item, verdict: verdict(item), supersedes: before[item] ?? null })));
    this.advance("review");
  }
}

class GridView extends View {
  act(action) {
    const { session } = this;
    const move = { left: -1, right: 1, up: -this.columns(), down: this.columns() }[action];
    if (move) this.moveTo(this.cursor + move);
    else if (action === "reject") session.toggle(session.page[this.cursor], "rejected");
    else if (action === "doubt") session.toggle(session.page[this.cursor], "doubted");
    else if (action === "submit") session.submit();
    else return super.act(action);
    return true;
  }

  onButton(button) {
    if (button.dataset.do !== "tile") return false;
    this.cursor = Number(button.dataset.number);
    this.session.toggle(this.session.page[this.cursor], "rejected");
    return true;
  }

  columns() {
    return getComputedStyle(this.parts.tiles).gridTemplateColumns.split(" ").length;
  }

  moveTo(cursor) {
    this.cursor = Math.min(Math.max(cursor, 0), this.session.page.length - 1);
    this.draw();
    this.parts.tiles.children[this.cursor]?.scrollIntoView({ block: "nearest" });
  }

  makeTiles(count) {
    const tiles = this.parts.tiles;
    while (tiles.children.length > count) tiles.lastChild.remove();
    while (tiles.children.length < count) {
      const tile = Object.assign(document.createElement("button"), { type: "button", className: "pathloop-tile", tabIndex: -1 });
      Object.assign(tile.dataset, { do: "tile", number: tiles.children.length });
      tile.innerHTML = '<canvas width="1" height="1"></canvas><span aria-hidden="true"></span>';
      tiles.appendChild(tile);
    }
  }

  drawPage() {
    const { session } = this;
    const { page, draft, images } = session;
    if (this.showing !== page) {
      this.showing = page;
      this.cursor = 0;
      this.makeTiles(page.length);
    }
    page.forEach((place, i) => {
      const tile = this.parts.tiles.children[i];
      const state = draft.rejected.includes(place) ? "rejected" : draft.doubted.includes(place) ? "doubted" : "";
      this.paint(tile.firstChild, images.get(place).bitmaps[0], "");
      tile.className = `pathloop-tile ${state && `is-${state}`} ${i === this.cursor ? "is-here" : ""}`;
      tile.lastChild.textContent = { rejected: "✗", doubted: "?" }[state] ?? "";
      tile.setAttribute("aria-pressed", Boolean(state));
      tile.setAttribute("aria-label", `Image ${i + 1}${state && `, ${state}`}`);
    });
    const type = session.current.cell_type;
    this.write("cell_type", type);
    this.drawReferences(type);
    this.write("marked", `${draft.rejected.length} of ${page.length} rejected${draft.doubted.length ? `, ${draft.doubted.length} unsure` : ""}`);
    const here = page[this.cursor];
    const word = draft.rejected.includes(here) ? "rejected" : draft.doubted.includes(here) ? "unsure" : "fine";
    this.write("live", `Image ${this.cursor + 1} of ${page.length}, ${type}: ${word}`);
  }

  announcement() {
    return this.parts.live.textContent;
  }
}
