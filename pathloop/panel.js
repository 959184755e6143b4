// The common half of pathloop's panels: a plain ES module for anywidget, no build step. Python (pathloop.panel) writes the
// markup and rules on every event; this file shows images, takes keys and clicks, and holds each event until Python has
// said that it is on disk. panel_label.js and its neighbours add what one kind of panel does; Python joins the files.
// One Session per widget, shared by all views of it.

const RETRY = 2000; // ms without an answer after which events are sent again and the banner shows
const MOST_UNSAVED = 200; // judgements that may wait for the kernel before the panel stops taking more
const PER_MESSAGE = 60; // events sent at once
const KEPT_BEHIND = 60; // images kept for undo
const HEARTBEAT = 10000; // ms of silence after which the kernel is asked whether it is there

const makeId = () =>
  crypto.randomUUID?.() ?? // missing on plain http pages other than localhost
  "10000000-1000-4000-8000-100000000000".replace(/[018]/g, (c) => (c ^ (crypto.getRandomValues(new Uint8Array(1))[0] & (15 >> (c / 4)))).toString(16));
const isTyping = (element) => /^(INPUT|TEXTAREA|SELECT)$/.test(element.tagName) || element.isContentEditable;
const openSessions = (globalThis.pathloopSessions ??= new Map()); // queue -> the one session on this page that works on it

class Session {
  constructor(model) {
    this.model = model;
    this.options = model.get("options");
    this.id = makeId();
    this.count = 0;
    this.key = `pathloop:${model.get("queue_id")}`;
    this.pending = new Map(this.readKept().map((event) => [event.uuid, event]));
    this.queue = null; // places of the items to judge; null until Python has answered
    this.page = []; // places on screen
    this.groups = new Map(); // place -> what it may share a page with
    this.history = []; // what can be undone, the latest last
    this.judged = this.total = this.saved = 0;
    this.images = new Map(); // place -> { key, cell_type, bitmaps, ... }
    this.imageBytes = 0; // of a usual image
    this.askedAt = 0; // 0: no images under way
    this.references = new Map(); // cell type -> bitmaps, or null while they are on their way
    this.draft = this.blank();
    this.supersedes = null;
    this.trouble = this.refusal = this.reason = "";
    this.hint = { text: "", warning: false };
    this.sentAt = 0; // 0: no events under way
    this.wait = RETRY;
    this.heardAt = performance.now();
    this.retired = false;
    this.pace = [];
    this.views = new Set();
    this.clock = { shown: 0, first: 0, hidden: 0, hiddenSince: 0 };
    this.onHide = () => this.countHidden();
    this.onLeave = (event) => {
      if (this.pending.size && this.trouble) event.preventDefault(); // closing the tab would lose what the kernel has not got
    };
    document.addEventListener("visibilitychange", this.onHide);
    window.addEventListener("beforeunload", this.onLeave);
    this.onMessage = (content, buffers) => this.receive(content, buffers);
    model.on("msg:custom", this.onMessage);
    this.takeOver();
    this.hello();
    this.timer = setInterval(() => this.tick(), 250);
  }

  // The same work opened again on this page, as after a restart of the kernel: this session goes on, the old one ends.
  takeOver() {
    const old = openSessions.get(this.key);
    if (old) {
      for (const [uuid, event] of old.pending) this.pending.set(uuid, event);
      old.close();
      old.retired = true;
      old.trouble = old.refusal = "";
      old.changed();
    }
    openSessions.set(this.key, this);
    this.keep();
  }

  close() {
    clearInterval(this.timer);
    document.removeEventListener("visibilitychange", this.onHide);
    window.removeEventListener("beforeunload", this.onLeave);
    this.model.off("msg:custom", this.onMessage);
    if (openSessions.get(this.key) === this) openSessions.delete(this.key);
    for (const { bitmaps } of this.images.values()) bitmaps.forEach((bitmap) => bitmap.close());
    this.images.clear();
  }

  countHidden() {
    const now = performance.now();
    if (document.hidden) this.clock.hiddenSince = now;
    else if (this.clock.hiddenSince) {
      this.clock.hidden += now - this.clock.hiddenSince;
      this.clock.hiddenSince = 0;
    }
  }

  tell(what, detail) {
    for (const view of this.views) view.root.dispatchEvent(new CustomEvent(`pathloop:${what}`, { detail, bubbles: true }));
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
      this.refusal = `This browser cannot keep unsaved judgements (${error.message}): do not reload until all are saved.`;
    }
  }

  send(message) {
    try {
      this.model.send(message);
    } catch (error) {
      this.reason = ` (${error.message})`; // tick() says so, if it lasts
    }
  }

  sendEvents(kind) {
    this.sentAt = performance.now();
    this.send({ kind, events: [...this.pending.values()].slice(0, PER_MESSAGE) });
  }

  hello() {
    this.sendEvents("hello");
  }

  flush() {
    if (!this.sentAt && this.pending.size) this.sendEvents("events"); // one message under way at a time keeps events in order
  }

  tick() {
    const now = performance.now();
    if (this.sentAt && now - this.sentAt > this.wait) {
      this.wait = Math.min(1.5 * this.wait, 4500); // a busy kernel must not find a pile of copies
      this.trouble = this.silence();
      if (this.queue) this.sendEvents(this.pending.size ? "events" : "beat");
      else this.hello();
      this.changed();
    } else if (!this.sentAt && this.pending.size) this.flush();
    else if (!this.sentAt && this.queue && now - this.heardAt > HEARTBEAT) this.sendEvents("beat");
    this.want();
  }

  silence() {
    const waiting = this.pending.size ? `${this.pending.size} not saved yet, kept in this browser tab: do not close it. ` : "Nothing is unsaved. ";
    return `The kernel does not answer${this.reason}. ${waiting}If it was restarted, run this cell again.`;
  }

  receive(content, buffers) {
    this.heardAt = performance.now();
    if (content.kind === "images") this.addImages(content.items, buffers);
    else if (content.kind === "references") this.addReferences(content.cell_type, buffers);
    else if (content.kind === "trouble") {
      this.trouble = content.text;
      this.changed();
    } else {
      this.acknowledge(content);
      this.changed();
    }
  }

  acknowledge({ kind, saved_ids, refused, trouble, saved, more, groups, total, ...state }) {
    this.sentAt = 0;
    this.wait = RETRY;
    for (const uuid of saved_ids) this.pending.delete(uuid);
    for (const { uuid, why } of refused) {
      this.pending.delete(uuid);
      this.refusal = `One entry was refused and is not saved: ${why}`;
    }
    if (saved_ids.length || refused.length) this.keep();
    this.trouble = trouble;
    this.reason = "";
    this.saved = saved;
    this.total = total;
    for (const [place, group] of groups) this.groups.set(place, group);
    if (kind === "state") this.restart(state);
    else if (refused.length) this.hello();
    else if (this.queue) this.addWork(more);
    if (saved_ids.length) this.tell("saved", { uuids: saved_ids });
    if (!trouble) this.flush();
  }

  addWork(more) {
    if (!more.length) return;
    const known = new Set([...this.queue, ...this.history.map((entry) => entry.item)]);
    this.queue.push(...more.filter((item) => !known.has(item)));
    if (!this.page.length && this.queue.length) this.begin(this.blank(), null);
  }

  // Python's list is the truth, plus what it has not yet heard of.
  restart({ queue, history, judged }) {
    const known = new Set(history.map((entry) => entry.uuid));
    for (const { kind, uuid, item, supersedes, ...rest } of this.pending.values()) {
      if (known.has(uuid)) continue;
      queue = queue.filter((other) => other !== item);
      if (kind === "undo") {
        queue.unshift(item);
        judged -= this.finishes(history.filter((entry) => entry.uuid === supersedes));
        history = history.filter((entry) => entry.uuid !== supersedes);
      } else {
        const entry = { uuid, kind, item, supersedes, group: uuid, ...rest };
        judged += this.finishes([entry]);
        if (!this.finishes([entry])) queue.push(item);
        history.push(entry);
      }
    }
    const first = this.images.size === 0;
    const left = new Set(queue);
    const stays = this.page.length > 0 && this.page.every((item) => left.has(item));
    const showing = new Set(stays ? this.page : []);
    this.queue = stays ? [...this.page, ...queue.filter((item) => !showing.has(item))] : queue;
    this.history = history;
    this.judged = judged;
    if (!stays) this.begin(this.blank(), null);
    if (first) this.send({ kind: "warm" }); // a second message early on: from then on labels are stored while a cell runs
  }

  // ---- images ----
  ahead() {
    if (!this.imageBytes) return 8; // the first few come first
    return Math.max(12, Math.min(64, Math.round(4e6 / this.imageBytes)));
  }

  want() {
    if (!this.queue || this.retired) return;
    const now = performance.now();
    const ahead = this.ahead();
    const near = new Set([...this.page, ...this.upcoming(ahead), ...this.history.slice(-4).map((entry) => entry.item)]);
    const missing = [...near].filter((item) => !this.images.has(item));
    const urgent = missing.length >= ahead / 3 || this.page.some((item) => !this.images.has(item)) || this.images.size < ahead;
    if (missing.length && urgent && now - this.askedAt > 3000) {
      this.askedAt = now;
      this.send({ kind: "images", items: missing });
    }
    for (const [item, { bitmaps }] of this.images) {
      if (this.images.size <= near.size + KEPT_BEHIND) break;
      if (near.has(item)) continue;
      bitmaps.forEach((bitmap) => bitmap.close());
      this.images.delete(item);
    }
    const type = this.current?.cell_type;
    if (type && this.options.references && !this.references.has(type)) {
      this.references.set(type, null);
      this.send({ kind: "references", cell_type: type });
    }
  }

  upcoming(count) {
    return this.queue.slice(0, count);
  }

  decode(bytes) {
    return createImageBitmap(new Blob([bytes], { type: "image/png" })); // decoded ahead, so that showing it costs nothing
  }

  async addImages(items, buffers) {
    let at = 0;
    const files = items.map(({ files: count }) => buffers.slice(at, (at += count)));
    const decoded = await Promise.all(files.map((of) => Promise.all(of.map((bytes) => this.decode(bytes)))));
    items.forEach((item, i) => this.images.has(item.item) || this.images.set(item.item, { ...item, bitmaps: decoded[i] }));
    if (buffers.length) this.imageBytes = buffers.reduce((sum, bytes) => sum + bytes.byteLength, 0) / items.length;
    this.askedAt = 0;
    this.changed();
  }

  async addReferences(type, buffers) {
    this.references.set(type, await Promise.all(buffers.map((bytes) => this.decode(bytes))));
    this.changed();
  }

  get current() {
    return this.images.get(this.page[0]);
  }

  get complete() {
    return this.page.length > 0 && this.page.every((item) => this.images.has(item));
  }

  // ---- what a person does ----
  blank() {
    return { comment: "" };
  }

  restored(entry) {
    return { ...this.blank(), comment: entry.comment ?? "" };
  }

  // Whether entries of one group finish their items: 1 or 0.
  finishes(entries) {
    return Number(entries.length > 0 && entries[0].kind !== "skip");
  }

  choosePage() {
    return this.queue.slice(0, 1);
  }

  begin(draft, supersedes) {
    this.page = this.choosePage();
    this.draft = draft;
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
    if (!this.complete || this.clock.shown) return;
    this.clock.shown = performance.now();
    for (const view of this.views) view.root.dataset.shown = this.clock.shown;
    this.tell("shown", { keys: this.page.map((item) => this.images.get(item).key) });
  }

  touch() {
    if (!this.clock.first) this.clock.first = performance.now();
  }

  get quickest() {
    return this.options.quickest;
  }

  ready() {
    if (this.retired || !this.complete || !this.clock.shown) return false;
    if (this.pending.size >= MOST_UNSAVED) this.say(`${this.pending.size} judgements wait for the kernel: no more until it answers.`);
    else if (performance.now() - this.clock.shown < this.quickest) this.say("That was too quick to have seen this image: nothing was recorded.");
    else return true;
    return false;
  }

  // Entries for one or more items, undone together.
  record(kind, entries, group = makeId()) {
    const made = entries.map(({ item, ...content }) => {
      const event = this.makeEvent(item, kind, { ...this.times(entries.length), ...content });
      this.history.push({ ...event, group });
      return event;
    });
    if (kind !== "undo") this.pace = [...this.pace, ...made.map((event) => event.seconds)].slice(-20 * Math.max(1, made.length));
    this.keep();
    this.flush();
    this.tell("decided", { events: made });
    return made;
  }

  advance(kind) {
    const done = new Set(this.page);
    const skipped = kind === "skip" ? this.page : [];
    this.queue = [...this.queue.filter((item) => !done.has(item)), ...skipped];
    if (kind !== "skip") this.judged += done.size;
    this.begin(this.blank(), null);
    this.changed();
  }

  makeEvent(item, kind, content) {
    const { key } = this.images.get(item);
    const event = { uuid: makeId(), session: this.id, client_seq: this.count++, kind, item, key, ...content };
    this.pending.set(event.uuid, event);
    return event;
  }

  times(share) {
    const now = performance.now();
    const seconds = (ms) => Math.round(Math.max(ms, 0) / share) / 1000;
    return {
      comment: this.draft.comment.trim() || null,
      seconds: seconds(now - this.clock.shown - this.clock.hidden),
      first_seconds: seconds((this.clock.first || now) - this.clock.shown),
      hidden_seconds: seconds(this.clock.hidden),
    };
  }

  skip(reason) {
    if (!this.ready()) return;
    this.record("skip", this.page.map((item) => ({ item, comment: reason || this.draft.comment.trim() || null })));
    const only = this.queue.length === this.page.length;
    this.advance("skip");
    this.say(only ? "This is the only image left." : "Skipped: it comes back at the end.", false);
  }

  undo() {
    if (this.retired) return;
    const last = this.history[this.history.length - 1];
    const group = last ? this.history.filter((entry) => entry.group === last.group) : [];
    if (!group.length || group.some((entry) => !this.images.has(entry.item))) {
      if (!last && this.judged > 0 && !this.sentAt) this.hello(); // Python tells of the last few hundred at a time
      if (last && !this.askedAt) this.send({ kind: "images", items: group.map((entry) => entry.item) });
      this.say(last || this.judged ? "That image is still on its way: press again." : "There is nothing to undo.");
      return;
    }
    this.takeBack(group);
    this.say(`Taken back${last.verdict ? `: it was ${last.verdict}` : ""}. Judge again.`, false);
  }

  takeBack(group) {
    this.history = this.history.filter((entry) => !group.includes(entry));
    const places = [...new Set(group.map((entry) => entry.item))];
    const back = new Set(places);
    for (const entry of [...group].reverse()) this.makeEvent(entry.item, "undo", { supersedes: entry.uuid });
    this.keep();
    this.flush();
    this.queue = [...places, ...this.queue.filter((item) => !back.has(item))];
    this.judged -= this.finishes(group) * places.length;
    const last = group[group.length - 1];
    this.begin(this.restored(last, group), last.kind === "skip" ? null : last.uuid);
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
    this.origin = [50, 50]; // percent
    this.asking = false; // whether a reason for skipping is asked
    const root = document.createElement("div");
    root.className = `pathloop-panel is-${session.options.view}`;
    root.tabIndex = 0;
    root.dataset.lmSuppressShortcuts = "true"; // else JupyterLab takes b, x, a, c ... as notebook commands
    root.setAttribute("role", "application"); // screen readers let its keys through
    root.setAttribute("aria-label", `${session.options.title}. Press h for its keys, Escape to leave`);
    root.innerHTML = session.model.get("skeleton");
    el.appendChild(root);
    this.root = root;
    root.classList.toggle("is-pixelated", this.preference("smooth") === "no");
    this.parts = Object.fromEntries([...root.querySelectorAll("[data-part]")].map((node) => [node.dataset.part, node]));
    root.addEventListener("keydown", (event) => this.onKey(event));
    root.addEventListener("click", (event) => this.onClick(event));
    root.addEventListener("input", (event) => {
      if (event.target === this.parts.comment) session.draft.comment = event.target.value;
    });
    root.addEventListener("focusin", () => this.drawFocus());
    root.addEventListener("focusout", () => setTimeout(() => this.drawFocus()));
    this.parts.frame?.addEventListener("pointermove", (event) => this.follow(event));
    this.drawFocus();
    this.drawTools();
    this.draw();
  }

  preference(name, value) {
    try {
      if (value !== undefined) localStorage.setItem(`pathloop:${name}`, value);
      return localStorage.getItem(`pathloop:${name}`);
    } catch {
      return null;
    }
  }

  // ---- keys and clicks ----
  onKey(event) {
    event.stopPropagation(); // never a notebook command
    if (isTyping(event.target)) {
      if (event.key === "Enter" || event.key === "Escape") {
        this.root.focus({ preventScroll: true });
        event.preventDefault();
      }
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.tagName === "BUTTON" && (event.key === " " || event.key === "Enter")) return; // the button's own keys
    const digit = Number(/^(?:Digit|Numpad)([1-9])$/.exec(event.code)?.[1] ?? 0);
    const action = this.session.options.keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!digit && !action) return;
    if (event.repeat && !/^Arrow/.test(event.key)) return event.preventDefault();
    const handled = this.asking ? this.answerReason(digit, action) : digit ? this.onDigit(digit, event.shiftKey) : this.act(action);
    if (handled !== false) event.preventDefault();
  }

  onClick(event) {
    const button = event.target.closest("[data-do]");
    if (button?.dataset.do === "reason") this.answerReason(Number(button.dataset.number));
    else if (button && !this.onButton(button)) this.act(button.dataset.do);
    if (!isTyping(event.target) && event.detail && button?.dataset.do !== "comment") this.root.focus({ preventScroll: true });
  }

  onButton() {
    return false; // true where a panel has buttons that need more than a name
  }

  onDigit() {
    return false;
  }

  act(action) {
    const { session } = this;
    if (action === "skip") this.askReason();
    else if (action === "undo") session.undo();
    else if (action === "comment") this.parts.comment?.focus();
    else if (action === "smooth") this.preference("smooth", this.root.classList.toggle("is-pixelated") ? "no" : "yes");
    else if (action === "zoom") this.setZoom({ 1: 2, 2: 4, 4: 8, 8: 1 }[this.zoom]);
    else if (action === "references" && session.options.references) this.parts.references.hidden = !this.parts.references.hidden;
    else if (action === "help") this.parts.help.hidden = !this.parts.help.hidden;
    else if (action === "leave") this.root.blur();
    else if (action === "dismiss") session.refusal = "";
    else if (/^(left|right|up|down)$/.test(action) && this.zoom > 1) this.pan(action);
    else return false;
    if (action === "dismiss") session.changed();
    this.drawTools();
    return true;
  }

  askReason() {
    if (!this.session.ready()) return;
    this.asking = true;
    this.session.touch();
    this.draw();
  }

  answerReason(digit, action) {
    const reason = this.session.options.reasons[digit - 1];
    if (!reason && action !== "skip" && action !== "leave" && action !== "undo" && digit !== -1) return true;
    this.asking = false;
    if (reason || action === "skip" || digit === -1) this.session.skip(reason);
    else this.draw();
    return true;
  }

  setZoom(zoom) {
    this.zoom = zoom;
    this.place();
    this.parts.frame.classList.toggle("is-zoomed", zoom > 1);
    for (const scale of this.root.querySelectorAll("[data-percent]")) scale.style.width = `${scale.dataset.percent * zoom}%`;
  }

  place() {
    for (const canvas of this.root.querySelectorAll("[data-zooms]")) {
      canvas.style.transformOrigin = `${this.origin[0]}% ${this.origin[1]}%`;
      canvas.style.transform = this.zoom === 1 ? "" : `scale(${this.zoom})`;
    }
  }

  pan(action) {
    const [x, y] = { left: [-1, 0], right: [1, 0], up: [0, -1], down: [0, 1] }[action];
    this.origin = [this.origin[0] + 10 * x, this.origin[1] + 10 * y].map((value) => Math.min(100, Math.max(0, value)));
    this.place();
  }

  follow(event) {
    if (this.zoom === 1) return;
    const box = (event.target.closest("[data-look]") ?? this.parts.frame).getBoundingClientRect();
    this.origin = [(100 * (event.clientX - box.left)) / box.width, (100 * (event.clientY - box.top)) / box.height];
    this.place();
  }

  // ---- drawing ----
  write(part, text) {
    if (this.parts[part] && this.parts[part].textContent !== String(text)) this.parts[part].textContent = text;
  }

  paint(canvas, bitmap, description) {
    if (canvas.shows === bitmap) return;
    canvas.shows = bitmap;
    canvas.width = bitmap.width; // empties it too
    canvas.height = bitmap.height;
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    canvas.setAttribute("aria-label", description);
  }

  drawFocus() {
    const live = this.root.contains(document.activeElement);
    this.root.classList.toggle("is-live", live);
    this.write("keys", live ? "Keys are live · h for help" : "Click here to use the keys");
  }

  drawTools() {
    const pressed = (name, on) => this.root.querySelector(`.pathloop-tools [data-do="${name}"]`)?.setAttribute("aria-pressed", on);
    this.write("smooth_label", this.root.classList.contains("is-pixelated") ? "Pixels" : "Smooth");
    this.write("zoom_label", `${this.zoom}×`);
    pressed("zoom", this.zoom > 1);
    pressed("smooth", !this.root.classList.contains("is-pixelated"));
    pressed("references", this.parts.references && !this.parts.references.hidden);
    pressed("help", !this.parts.help.hidden);
  }

  drawHead() {
    const { session } = this;
    const { pending, judged, total, pace } = session;
    const banner = [session.trouble, session.refusal].filter(Boolean).join(" ");
    this.parts.banner.hidden = !banner;
    this.root.classList.toggle("is-troubled", Boolean(banner));
    this.write("banner_text", banner);
    this.parts.dismiss.hidden = !session.refusal;
    this.write("judged", judged);
    this.write("total", total);
    this.write("saved", session.saved);
    this.write("unsaved", pending.size ? ` · ${pending.size} on the way` : "");
    this.parts.bar.style.width = `${(100 * judged) / Math.max(total, 1)}%`;
    this.parts.bar.parentElement.setAttribute("aria-valuenow", judged);
    if (pace.length > 2) {
      const each = Math.max(pace.reduce((a, b) => a + b) / pace.length, 0.1);
      this.write("pace", `${(60 / each).toFixed(each < 2 ? 0 : 1)} a minute · about ${Math.max(1, Math.round((each * (total - judged)) / 60))} min left`);
    }
  }

  note() {
    const { queue, retired, complete, total } = this.session;
    if (retired) return "This work is open in another place on this page: go on there, or run this cell again.";
    if (!queue) return "Asking the kernel for the images …";
    if (!queue.length) return total ? `All ${total} are judged. Thank you.` : "There is nothing to judge.";
    return complete ? "" : "The image is on its way …";
  }

  draw() {
    const { session } = this;
    this.drawHead();
    const note = this.note();
    this.parts.note.hidden = !note;
    this.write("note", note);
    this.root.classList.toggle("is-empty", Boolean(note));
    if (!note) {
      this.drawPage();
      if (!session.clock.shown) requestAnimationFrame(() => session.painted());
    }
    if (this.parts.comment && this.parts.comment.value !== session.draft.comment) this.parts.comment.value = session.draft.comment;
    if (this.parts.reasons) this.parts.reasons.hidden = !this.asking;
    this.parts.hint.classList.toggle("is-warning", session.hint.warning);
    this.write("hint", session.hint.text);
    if (this.announced !== session.page[0]) {
      this.announced = session.page[0];
      this.write("live", note || this.announcement());
    }
  }

  announcement() {
    const { judged, total } = this.session;
    return `Image ${judged + 1} of ${total}`;
  }

  drawReferences(type) {
    const bitmaps = this.session.references.get(type) ?? [];
    const row = this.parts.reference_images;
    if (!row || row.shows === bitmaps) return;
    row.shows = bitmaps;
    this.write("reference_type", type);
    row.replaceChildren(
      ...bitmaps.map((bitmap) => {
        const canvas = document.createElement("canvas");
        canvas.setAttribute("role", "img");
        this.paint(canvas, bitmap, `Real ${type}`);
        return canvas;
      }),
    );
  }
}

const start = (OwnSession, OwnView) => () => {
  let session;
  return {
    initialize({ model }) {
      session = new OwnSession(model);
      return () => session.close();
    },
    render({ el }) {
      const view = new OwnView(session, el);
      session.views.add(view);
      session.changed();
      return () => session.views.delete(view);
    },
  };
};
