// The view of pathloop.panel.LabelPanel: a plain ES module for anywidget, no build step.
// Python writes the markup (pathloop.panel) and rules on every event; this file shows images, takes keys and clicks,
// and holds each event until Python has said that it is on disk. One Session per widget, shared by all its views.

const AHEAD = 24; // images fetched before they are needed
const TOO_SOON = 200; // ms after an image appears in which a decision must be meant for the one before
const RETRY = 2000; // ms without an answer after which events are sent again and the banner shows
const MOST_UNSAVED = 50; // judgements that may wait for the kernel before the panel stops taking more

const makeId = () =>
  crypto.randomUUID?.() ?? // missing on plain http pages other than localhost
  "10000000-1000-4000-8000-100000000000".replace(/[018]/g, (c) => (c ^ (crypto.getRandomValues(new Uint8Array(1))[0] & (15 >> (c / 4)))).toString(16));
const noMarks = () => ({ failed: [], unsure: [], comment: "" });

class Session {
  constructor(model) {
    this.model = model;
    this.id = makeId();
    this.count = 0;
    this.key = `pathloop:${model.get("queue_id")}`;
    this.pending = new Map(this.readKept().map((event) => [event.uuid, event]));
    this.queue = null; // items to judge, the first one showing; null until Python has answered
    this.history = []; // what can be undone, the latest last
    this.saved = 0;
    this.images = new Map(); // item -> { url, image, cell_type }
    this.asked = new Map(); // item -> when it was asked for
    this.references = new Map(); // cell type -> urls, or null while they are on their way
    this.marks = noMarks();
    this.supersedes = null;
    this.trouble = this.refusal = this.reason = "";
    this.hint = { text: "", warning: false };
    this.sentAt = 0; // 0: nothing under way
    this.pace = [];
    this.views = new Set();
    this.clock = { shown: 0, first: 0, hidden: 0, hiddenSince: 0 };
    this.onHide = () => {
      const now = performance.now();
      if (document.hidden) this.clock.hiddenSince = now;
      else if (this.clock.hiddenSince) {
        this.clock.hidden += now - this.clock.hiddenSince;
        this.clock.hiddenSince = 0;
      }
    };
    document.addEventListener("visibilitychange", this.onHide);
    this.onMessage = (content, buffers) => this.receive(content, buffers);
    model.on("msg:custom", this.onMessage);
    this.hello();
    this.timer = setInterval(() => this.tick(), 500);
  }

  close() {
    clearInterval(this.timer);
    document.removeEventListener("visibilitychange", this.onHide);
    this.model.off("msg:custom", this.onMessage);
    for (const { url } of this.images.values()) URL.revokeObjectURL(url);
    for (const urls of this.references.values()) urls?.forEach((url) => URL.revokeObjectURL(url));
  }

  // ---- keeping events until they are on disk ----
  readKept() {
    try {
      return JSON.parse(sessionStorage.getItem(this.key) ?? "[]");
    } catch {
      return [];
    }
  }

  keep() {
    try {
      sessionStorage.setItem(this.key, JSON.stringify([...this.pending.values()]));
    } catch (error) {
      this.refusal = `This browser cannot keep unsaved judgements (${error.message}).`;
    }
  }

  send(message) {
    try {
      this.model.send(message);
    } catch (error) {
      this.reason = ` (${error.message})`; // tick() says so, if it lasts
    }
  }

  hello() {
    this.sentAt = performance.now();
    this.send({ kind: "hello", events: [...this.pending.values()] });
  }

  flush() {
    if (this.sentAt || !this.pending.size) return; // one message under way at a time keeps events in order
    this.sentAt = performance.now();
    this.send({ kind: "events", events: [...this.pending.values()] });
  }

  tick() {
    if (this.sentAt && performance.now() - this.sentAt > RETRY) {
      this.sentAt = 0;
      const waiting = this.pending.size ? `${this.pending.size} not saved yet, kept in this browser tab: do not close it. ` : "";
      this.trouble = `The kernel does not answer${this.reason}. ${waiting}If it was restarted, run this cell again.`;
      if (this.queue) this.flush();
      else this.hello();
      this.changed();
    } else if (!this.sentAt) this.flush();
    this.want();
  }

  receive(content, buffers) {
    if (content.kind === "images") {
      content.items.forEach((item, i) => this.addImage(item, buffers[i]));
    } else if (content.kind === "references") {
      this.references.set(content.cell_type, buffers.map((bytes) => URL.createObjectURL(new Blob([bytes], { type: "image/png" }))));
    } else if (content.kind === "trouble") {
      this.trouble = content.text;
    } else if (content.kind === "saved" || content.kind === "state") {
      this.acknowledge(content);
    }
    this.changed();
  }

  acknowledge({ kind, saved_ids, refused, trouble, saved, queue, history }) {
    this.sentAt = 0;
    for (const uuid of saved_ids) this.pending.delete(uuid);
    for (const { uuid, why } of refused) {
      this.pending.delete(uuid);
      this.refusal = `One entry was refused and is not saved: ${why}`;
    }
    this.keep();
    this.trouble = trouble;
    this.reason = "";
    this.saved = saved;
    if (kind === "state") this.restart(queue, history);
    else if (refused.length) this.hello();
    else if (!trouble) this.flush();
    this.want();
  }

  restart(queue, history) {
    // Python's list is the truth, plus what it has not yet heard of.
    const showing = this.queue?.[0];
    for (const { kind, uuid, item, supersedes, ...rest } of this.pending.values()) {
      queue = queue.filter((other) => other !== item);
      if (kind === "undo") {
        queue.unshift(item);
        history = history.filter((entry) => entry.uuid !== supersedes);
      } else {
        if (kind === "skip") queue.push(item);
        history.push({ uuid, kind, item, failed: [], unsure: [], ...rest });
      }
    }
    const stays = queue.includes(showing);
    this.queue = stays ? [showing, ...queue.filter((item) => item !== showing)] : queue;
    this.history = history;
    if (!stays) this.begin(noMarks(), null);
  }

  // ---- images ----
  want() {
    if (!this.queue) return;
    const now = performance.now();
    const near = [...this.history.slice(-8).map((entry) => entry.item), ...this.queue.slice(0, AHEAD)];
    const missing = near.filter((item) => !this.images.has(item) && now - (this.asked.get(item) ?? -1e9) > 4000);
    if (missing.length && (missing.length >= AHEAD / 2 || !this.images.has(this.queue[Math.min(AHEAD / 2, this.queue.length - 1)]) || !this.images.has(this.queue[0]))) {
      missing.forEach((item) => this.asked.set(item, now));
      this.send({ kind: "images", items: missing });
    }
    for (const [item, { url }] of this.images) {
      if (this.images.size <= 4 * AHEAD) break;
      if (near.includes(item)) continue;
      URL.revokeObjectURL(url);
      this.images.delete(item);
    }
    const type = this.current?.cell_type;
    if (type && this.model.get("has_references") && !this.references.has(type)) {
      this.references.set(type, null);
      this.send({ kind: "references", cell_type: type });
    }
  }

  addImage({ item, image, cell_type }, bytes) {
    if (this.images.has(item)) return;
    const url = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
    const decoded = new Image(); // decoded now, so that showing it later costs nothing
    decoded.src = url;
    decoded.decode().catch(() => {});
    this.images.set(item, { url, image, cell_type, decoded });
    this.asked.delete(item);
  }

  get current() {
    return this.queue?.length ? this.images.get(this.queue[0]) : undefined;
  }

  // ---- what a person does ----
  begin(marks, supersedes) {
    this.marks = marks;
    this.supersedes = supersedes;
    this.clock = { shown: 0, first: 0, hidden: 0, hiddenSince: document.hidden ? performance.now() : 0 };
    this.hint = { text: "", warning: false };
    for (const view of this.views) delete view.root.dataset.shown;
  }

  say(text, warning = true) {
    this.hint = { text, warning };
    this.changed();
  }

  painted() {
    if (!this.clock.shown) this.clock.shown = performance.now();
    for (const view of this.views) view.root.dataset.shown = this.clock.shown; // for tests, which must not be too quick either
  }

  touch() {
    if (!this.clock.first) this.clock.first = performance.now();
  }

  ready() {
    if (!this.current || !this.clock.shown) return false;
    if (this.pending.size >= MOST_UNSAVED) this.say(`${this.pending.size} judgements wait for the kernel: no more until it answers.`);
    else if (performance.now() - this.clock.shown < TOO_SOON) this.say("That was too quick to have seen this image: nothing was recorded.");
    else return true;
    return false;
  }

  mark(name, state) {
    if (!this.current) return;
    this.touch();
    const was = this.marks[state].includes(name);
    for (const list of ["failed", "unsure"]) this.marks[list] = this.marks[list].filter((other) => other !== name);
    if (!was) this.marks[state].push(name);
    this.say("", false);
  }

  decide(verdict) {
    if (!this.ready()) return;
    const { failed, unsure } = this.marks;
    const against = verdict === "plausible" ? [...failed, ...unsure] : verdict === "unsure" ? failed : [];
    if (against.length) {
      this.say(`Marked: ${against.join(", ").replaceAll("_", " ")}. Clear the mark, or decide ${failed.length ? "implausible" : "unsure"}.`);
      return;
    }
    const event = this.add({ kind: "review", verdict, failed, unsure, supersedes: this.supersedes });
    this.pace = [...this.pace.slice(-19), event.seconds];
    this.history.push({ uuid: event.uuid, kind: "review", item: this.queue.shift(), failed, unsure, comment: this.marks.comment, verdict });
    this.begin(noMarks(), null);
    this.changed();
  }

  skip() {
    if (!this.ready()) return;
    const event = this.add({ kind: "skip" });
    const item = this.queue.shift();
    this.queue.push(item);
    this.history.push({ uuid: event.uuid, kind: "skip", item, ...this.marks });
    this.begin(noMarks(), null);
    this.say(this.queue[0] === item ? "This is the only image left." : "Skipped: it comes back at the end.", false);
  }

  undo() {
    const entry = this.history[this.history.length - 1];
    const shown = entry && this.images.get(entry.item);
    if (!shown) {
      this.say(entry ? "That image is still on its way: press Backspace again." : "There is nothing to undo.");
      return;
    }
    this.history.pop();
    this.queue = [entry.item, ...this.queue.filter((item) => item !== entry.item)];
    this.add({ kind: "undo", supersedes: entry.uuid });
    this.begin({ failed: [...entry.failed], unsure: [...entry.unsure], comment: entry.comment ?? "" }, entry.kind === "review" ? entry.uuid : null);
    this.say(`Taken back${entry.verdict ? `: it was ${entry.verdict}` : ""}. Judge it again.`, false);
  }

  add(event) {
    const now = performance.now();
    const seconds = (ms) => Math.round(Math.max(ms, 0)) / 1000;
    const { image, cell_type } = this.current;
    const whole = { uuid: makeId(), session: this.id, client_seq: this.count++, item: this.queue[0], image, shown_as: cell_type, ...event };
    if (event.kind !== "undo") {
      whole.comment = this.marks.comment.trim() || null;
      whole.seconds = seconds(now - this.clock.shown - this.clock.hidden);
      whole.first_seconds = seconds((this.clock.first || now) - this.clock.shown);
      whole.hidden_seconds = seconds(this.clock.hidden);
    }
    this.pending.set(whole.uuid, whole);
    this.keep();
    this.flush();
    return whole;
  }

  changed() {
    this.want();
    for (const view of this.views) view.draw();
  }
}

class View {
  constructor(session, el) {
    this.session = session;
    this.zoom = 1;
    const root = document.createElement("div");
    root.className = "pathloop-panel is-pixelated";
    root.tabIndex = 0;
    root.dataset.lmSuppressShortcuts = "true"; // else JupyterLab takes b, x, a, c ... as notebook commands
    root.setAttribute("role", "region");
    root.setAttribute("aria-label", "Labelling panel. Press h for its keys");
    root.innerHTML = session.model.get("skeleton");
    el.appendChild(root);
    this.root = root;
    this.part = (name) => root.querySelector(`[data-part="${name}"]`);
    this.part("image").addEventListener("load", () => requestAnimationFrame(() => session.painted()));
    this.part("comment").addEventListener("input", (event) => {
      session.touch();
      session.marks.comment = event.target.value;
    });
    this.part("banner").addEventListener("click", () => {
      session.refusal = "";
      this.draw();
    });
    this.part("frame").addEventListener("pointermove", (event) => this.pan(event));
    root.addEventListener("keydown", (event) => this.onKey(event));
    root.addEventListener("click", (event) => this.onClick(event));
    for (const name of ["focusin", "focusout"]) root.addEventListener(name, () => setTimeout(() => this.drawKeys()));
    this.draw();
    this.drawKeys();
  }

  onKey(event) {
    if (event.target.tagName === "INPUT") {
      if (event.key === "Enter" || event.key === "Escape") {
        this.root.focus({ preventScroll: true });
        event.preventDefault();
      }
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.tagName === "BUTTON" && (event.key === " " || event.key === "Enter")) return; // the button's own keys
    const digit = /^(?:Digit|Numpad)([1-9])$/.exec(event.code)?.[1];
    const action = { a: "plausible", x: "implausible", u: "unsure", " ": "skip", Backspace: "undo", Enter: "next", c: "comment", z: "zoom", s: "smooth", r: "references", h: "help", "?": "help", Escape: "leave" }[
      event.key.length === 1 ? event.key.toLowerCase() : event.key
    ];
    if (!digit && !action) return;
    event.preventDefault();
    if (event.repeat) return;
    if (digit) {
      const name = this.part("rows").children[digit - 1]?.dataset.name;
      if (name) this.session.mark(name, event.shiftKey ? "unsure" : "failed");
    } else this.act(action);
  }

  onClick(event) {
    const button = event.target.closest("[data-do]");
    if (button) {
      const row = button.closest("[data-name]");
      if (row) this.session.mark(row.dataset.name, button.dataset.do);
      else this.act(button.dataset.do);
    }
    if (event.target.tagName !== "INPUT" && event.detail) this.focusUnlessComment(button);
  }

  focusUnlessComment(button) {
    if (button?.dataset.do !== "comment") this.root.focus({ preventScroll: true });
  }

  act(action) {
    const session = this.session;
    if (["plausible", "implausible", "unsure"].includes(action)) session.decide(action);
    else if (action === "next") {
      if (session.marks.failed.length || session.marks.unsure.length) session.decide(session.marks.failed.length ? "implausible" : "unsure");
      else session.say("Nothing is marked: press a when every criterion is met.");
    } else if (action === "skip") session.skip();
    else if (action === "undo") session.undo();
    else if (action === "comment") this.part("comment").focus();
    else if (action === "smooth") this.root.classList.toggle("is-pixelated");
    else if (action === "zoom") this.setZoom({ 1: 2, 2: 4, 4: 1 }[this.zoom]);
    else if (action === "references") this.part("references").hidden = !this.part("references").hidden || !session.model.get("has_references");
    else if (action === "help") this.part("help").hidden = !this.part("help").hidden;
    else if (action === "leave") this.root.blur();
    this.drawTools();
  }

  setZoom(zoom) {
    this.zoom = zoom;
    this.part("image").style.transform = zoom === 1 ? "" : `scale(${zoom})`;
    this.part("frame").classList.toggle("is-zoomed", zoom > 1);
    const scale = this.part("scale");
    if (scale) scale.style.width = `${scale.dataset.percent * zoom}%`;
  }

  pan(event) {
    if (this.zoom === 1) return;
    const box = this.part("frame").getBoundingClientRect();
    const percent = (at, start, size) => (100 * (at - start)) / size;
    this.part("image").style.transformOrigin = `${percent(event.clientX, box.left, box.width)}% ${percent(event.clientY, box.top, box.height)}%`;
  }

  // Room for the longest checklist, so that the buttons below do not move from one type to the next.
  reserve() {
    const list = this.part("rows");
    if (this.reservedFor === list.clientWidth) return;
    this.reservedFor = list.clientWidth;
    list.style.minHeight = "";
    const heights = Object.values(this.session.model.get("rows")).map((rows) => {
      list.innerHTML = rows;
      return list.offsetHeight;
    });
    list.style.minHeight = `${Math.max(0, ...heights)}px`;
  }

  drawKeys() {
    const live = this.root.contains(document.activeElement);
    this.part("keys").textContent = live ? "Keys are live · h for help" : "Click here to use the keys";
  }

  drawTools() {
    const pressed = (name, on) => this.root.querySelector(`.pathloop-tools [data-do="${name}"]`)?.setAttribute("aria-pressed", on);
    this.part("smooth_label").textContent = this.root.classList.contains("is-pixelated") ? "Pixels" : "Smooth";
    this.part("zoom_label").textContent = `${this.zoom}×`;
    pressed("zoom", this.zoom > 1);
    pressed("smooth", !this.root.classList.contains("is-pixelated"));
    pressed("references", !this.part("references").hidden);
  }

  draw() {
    const { session } = this;
    const { current, queue, marks, pending } = session;
    const total = session.model.get("total");
    const judged = total - (queue?.length ?? total);
    const banner = [session.trouble, session.refusal].filter(Boolean).join(" ");
    this.part("banner").hidden = !banner;
    this.root.classList.toggle("is-troubled", Boolean(banner));
    if (this.part("banner").textContent !== banner) this.part("banner").textContent = banner;
    this.part("judged").textContent = judged;
    this.part("saved").textContent = session.saved;
    this.part("unsaved").textContent = pending.size ? ` · ${pending.size} on the way` : "";
    this.part("bar").style.width = `${(100 * judged) / Math.max(total, 1)}%`;
    this.part("bar").parentElement.setAttribute("aria-valuenow", judged);
    if (session.pace.length > 2) {
      const each = session.pace.reduce((a, b) => a + b) / session.pace.length;
      this.part("pace").textContent = `${(60 / Math.max(each, 0.1)).toFixed(1)} a minute · about ${Math.max(1, Math.round((each * queue.length) / 60))} min left`;
    }
    const note = !queue ? "Asking the kernel for the images …" : !queue.length ? `All ${total} images are judged. Thank you.` : !current ? "The image is on its way …" : "";
    this.part("note").hidden = !note;
    this.part("note").textContent = note;
    if (current && this.part("image").getAttribute("src") !== current.url) {
      this.part("image").src = current.url;
      this.part("image").alt = `Cell to judge, meant to be: ${current.cell_type}`;
      this.part("image").style.transformOrigin = "50% 50%";
    } else if (current) requestAnimationFrame(() => session.painted());
    const type = current?.cell_type ?? "";
    if (this.part("cell_type").textContent !== type) {
      this.part("cell_type").textContent = type;
      this.reserve();
      this.part("rows").innerHTML = session.model.get("rows")[type] ?? "";
      this.part("reference_type").textContent = type;
    }
    const urls = session.references.get(type) ?? [];
    const row = this.part("reference_images");
    if (row.dataset.showing !== urls.join()) {
      row.dataset.showing = urls.join();
      row.replaceChildren(...urls.map((url) => Object.assign(new Image(), { src: url, alt: `Real ${type}` })));
    }
    for (const line of this.part("rows").children) {
      for (const state of ["failed", "unsure"]) {
        const on = marks[state].includes(line.dataset.name);
        line.classList.toggle(`is-${state}`, on);
        line.querySelector(`[data-do="${state}"]`).setAttribute("aria-pressed", on);
      }
    }
    if (this.part("comment").value !== marks.comment) this.part("comment").value = marks.comment;
    const next = marks.failed.length ? "implausible" : marks.unsure.length ? "unsure" : "";
    for (const name of ["plausible", "implausible", "unsure"]) {
      const button = this.root.querySelector(`.pathloop-verdicts [data-do="${name}"]`);
      button.classList.toggle("is-next", name === next);
      button.setAttribute("aria-disabled", Boolean((name === "plausible" && next) || (name === "unsure" && next === "implausible")));
    }
    this.part("hint").classList.toggle("is-warning", session.hint.warning);
    if (this.part("hint").textContent !== session.hint.text) this.part("hint").textContent = session.hint.text;
  }
}

export default () => {
  let session;
  return {
    initialize({ model }) {
      session = new Session(model);
      return () => session.close();
    },
    render({ el }) {
      const view = new View(session, el);
      session.views.add(view);
      return () => session.views.delete(view);
    },
  };
};
