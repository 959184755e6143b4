// Two images of one cell type: which is the more plausible?

class CompareSession extends Session {
  decide(preferred) {
    if (!this.ready()) return;
    this.record("preference", [{ item: this.page[0], preferred, supersedes: this.supersedes }]);
    this.advance("preference");
  }
}

class CompareView extends View {
  act(action) {
    if (!["left", "right", "tie", "neither"].includes(action)) return super.act(action);
    this.session.decide(action);
    return true;
  }

  drawPage() {
    const { current } = this.session;
    this.paint(this.parts.left, current.bitmaps[0], `Left, meant to be: ${current.cell_type}`);
    this.paint(this.parts.right, current.bitmaps[1], `Right, meant to be: ${current.cell_type}`);
    this.write("cell_type", current.cell_type);
    this.drawReferences(current.cell_type);
  }

  announcement() {
    return `Pair ${this.session.judged + 1} of ${this.session.total}: ${this.session.current.cell_type}`;
  }
}
