// An image that raters disagree on: judged unseen first, then beside their answers.

class AdjudicateSession extends LabelSession {
  finishes(entries) {
    return Number(entries.some((entry) => entry.kind === "review" && entry.supersedes));
  }

  decide(verdict) {
    if (!this.ready()) return;
    const objection = this.objection(verdict);
    if (objection) return this.say(objection);
    const { failed, unsure, first } = this.draft;
    const entry = { item: this.page[0], verdict, failed, unsure, supersedes: first?.uuid ?? null };
    if (first) {
      this.record("review", [entry], first.group);
      this.advance("review");
    } else {
      const group = makeId();
      const [{ uuid }] = this.record("review", [entry], group);
      this.draft = { ...this.draft, first: { uuid, group, verdict } };
      this.clock = { ...this.clock, shown: performance.now(), first: 0, hidden: 0 };
      this.say(`You said ${verdict}. Here is what the others said: Enter keeps yours, or decide again.`, false);
    }
  }
}

class AdjudicateView extends LabelView {
  act(action) {
    const { draft } = this.session;
    const marked = draft.failed.length ? "implausible" : draft.unsure.length ? "unsure" : null;
    if (action !== "next" || !draft.first) return super.act(action);
    this.session.decide(this.session.objection(draft.first.verdict) ? marked : draft.first.verdict);
    return true;
  }

  drawPage() {
    super.drawPage();
    const { current, draft } = this.session;
    const shown = Boolean(draft.first);
    this.root.classList.toggle("is-revealed", shown);
    this.parts.votes.hidden = !shown;
    if (!shown || this.votesOf === current) {
      if (!shown) this.votesOf = null;
      return;
    }
    this.votesOf = current;
    this.parts.votes.innerHTML = current.votes;
  }
}
