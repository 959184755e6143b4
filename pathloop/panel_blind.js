// One image, nothing else: real or synthetic, on six steps.

class BlindSession extends Session {
  decide(rating) {
    if (!this.ready()) return;
    this.record("reading", [{ item: this.page[0], rating, supersedes: this.supersedes }]);
    this.advance("reading");
  }
}

class BlindView extends View {
  onDigit(digit) {
    if (digit <= 6) this.session.decide(digit);
  }

  onButton(button) {
    if (button.dataset.do !== "rate") return false;
    this.session.decide(Number(button.dataset.number));
    return true;
  }

  drawPage() {
    this.paint(this.parts.image, this.session.current.bitmaps[0], "Cell: real or synthetic?");
  }
}
