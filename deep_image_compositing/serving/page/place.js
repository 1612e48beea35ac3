// Drags and scales the subject in the new background's frame: a preview until the server answers.

/** Placement of the photograph and its subject in a frame, in pixels, as in the library's placement.py. */
export function placed(size, box, frame, scale, [x, y]) {
  const factor = scale * Math.min(frame[0] / size[0], frame[1] / size[1]);
  const [width, height] = [size[0] * factor, size[1] * factor];
  const room = [frame[0] - (box[2] - box[0]) * width, frame[1] - (box[3] - box[1]) * height];
  return { left: x * room[0] - box[0] * width, top: y * room[1] - box[1] * height, width, height, room };
}

const within = (value) => Math.min(1, Math.max(0, value));
const rounded = (value) => Math.round(value * 1e4) / 1e4;

export class Placing {
  /** `changed` is called while the subject moves, `settled` when it is released. */
  constructor(subject, box, changed, settled) {
    Object.assign(this, { subject, box, changed, settled, scale: 1, position: null, cut: null, frame: null });
  }

  /** Draw the subject in place; `cut` has the photograph's size and its subject's box in [0, 1]. */
  show() {
    if (!this.cut || !this.frame) return;
    const at = placed(this.cut.size, this.cut.box, this.frame, this.scale, this.position);
    const [x0, y0, x1, y1] = this.cut.box;
    this.lay(this.subject, at.left, at.top, at.width, at.height);
    this.lay(this.box, at.left + x0 * at.width, at.top + y0 * at.height, (x1 - x0) * at.width, (y1 - y0) * at.height);
  }

  lay(element, left, top, width, height) {
    const [w, h] = this.frame;
    Object.assign(element.style, { left: `${(100 * left) / w}%`, top: `${(100 * top) / h}%`, width: `${(100 * width) / w}%`, height: `${(100 * height) / h}%` });
  }

  /** Move by a fraction of the frame; not along an axis that the subject fills. */
  moveBy(dx, dy) {
    const { room } = placed(this.cut.size, this.cut.box, this.frame, this.scale, this.position);
    this.position = this.position.map((value, axis) => {
      const step = [dx, dy][axis] * this.frame[axis];
      return Math.abs(room[axis]) < 1 ? value : rounded(within(value + step / room[axis]));
    });
    this.changed();
  }

  /** Scale about the subject's centre. */
  resize(scale) {
    const before = placed(this.cut.size, this.cut.box, this.frame, this.scale, this.position);
    this.scale = Math.round(Math.min(2, Math.max(0.1, scale)) * 1000) / 1000;
    const after = placed(this.cut.size, this.cut.box, this.frame, this.scale, this.position);
    const half = (at, axis) => ((this.cut.box[2 + axis] - this.cut.box[axis]) * [at.width, at.height][axis]) / 2;
    this.position = this.position.map((value, axis) => {
      const middle = value * before.room[axis] + half(before, axis);
      return Math.abs(after.room[axis]) < 1 ? value : rounded(within((middle - half(after, axis)) / after.room[axis]));
    });
    this.changed();
  }

  // Called by View

  down(place, event) {
    this.scaling = event.target.id === "handle";
    this.from = { place, moved: 0, scale: this.scale, width: parseFloat(this.box.style.width) / 100, height: parseFloat(this.box.style.height) / 100 };
    this.last = place;
  }

  move(place) {
    if (!this.from) return;
    const [dx, dy] = [place[0] - this.last[0], place[1] - this.last[1]];
    this.last = place;
    this.from.moved ||= Number(Math.hypot(place[0] - this.from.place[0], place[1] - this.from.place[1]) > 0.004);
    if (!this.from.moved) return;
    if (this.scaling) {
      const grown = (place[0] - this.from.place[0]) / this.from.width - (place[1] - this.from.place[1]) / this.from.height;
      this.resize(this.from.scale * Math.max(0.05, 1 + grown));
    } else this.moveBy(dx, dy);
  }

  pinch(factor) {
    this.pinched = true;
    this.resize(this.scale * factor);
  }

  up() {
    if (this.from?.moved || this.pinched) this.settled();
    this.from = this.pinched = null;
  }

  cancel() {
    this.up();
  }

  arrow(x, y) {
    this.moveBy(x * 0.01, y * 0.01);
    clearTimeout(this.soon);
    this.soon = setTimeout(this.settled, 500);
  }

  press(key) {
    if (key !== "," && key !== ".") return false;
    this.resize(this.scale * (key === "." ? 1.05 : 1 / 1.05));
    clearTimeout(this.soon);
    this.soon = setTimeout(this.settled, 500);
    return true;
  }
}
