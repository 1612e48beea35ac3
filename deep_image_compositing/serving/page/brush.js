// Brush strokes that mark what is and is not part of the subject; the server applies them.

const SIDE = 1024; // long side of the picture of strokes that is sent
const COLORS = { 1: "#00ff00", [-1]: "#ff0000" };

export class Brush {
  /** `drawn` is called when a stroke is finished. */
  constructor(canvas, cursor, drawn) {
    Object.assign(this, { canvas, cursor, drawn, strokes: [], now: null, sign: 1, width: 3, at: [0.5, 0.5] });
  }

  /** Remove all strokes and adopt the size of a new photograph. */
  clear(width, height) {
    const factor = Math.min(1, SIDE / Math.max(width, height));
    this.canvas.width = Math.max(1, Math.round(width * factor));
    this.canvas.height = Math.max(1, Math.round(height * factor));
    this.strokes = [];
    this.now = null;
  }

  /** Draw all strokes, or only the current one. */
  draw(all) {
    const { canvas } = this;
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.lineCap = context.lineJoin = "round";
    for (const stroke of [...(all ? this.strokes : []), ...(this.now ? [this.now] : [])]) {
      context.strokeStyle = COLORS[stroke.sign];
      context.lineWidth = Math.max(1, (stroke.width / 100) * Math.max(canvas.width, canvas.height));
      context.beginPath();
      const [first, ...rest] = stroke.points.map(([x, y]) => [x * canvas.width, y * canvas.height]);
      context.moveTo(...first);
      for (const point of rest.length ? rest : [first]) context.lineTo(...point);
      context.stroke();
    }
  }

  /** The strokes as a transparent PNG in green and red. */
  async picture() {
    this.draw(true);
    return await new Promise((done) => this.canvas.toBlob(done, "image/png"));
  }

  point() {
    const { style } = this.cursor;
    const side = Math.max(this.canvas.width, this.canvas.height);
    Object.assign(style, {
      left: `${100 * this.at[0]}%`, top: `${100 * this.at[1]}%`,
      width: `${(this.width * side) / this.canvas.width}%`, height: `${(this.width * side) / this.canvas.height}%`,
    });
  }

  finish() {
    if (!this.now) return;
    this.strokes.push(this.now);
    this.now = null;
    this.drawn();
  }

  // Called by View

  hover(place) {
    this.at = place;
    this.point();
  }

  down(place) {
    this.hover(place);
    this.now = { sign: this.sign, width: this.width, points: [place] };
    this.draw(false);
  }

  move(place) {
    this.hover(place);
    this.now?.points.push(place);
    this.draw(false);
  }

  up() {
    this.finish();
  }

  cancel() {
    this.now = null;
    this.draw(false);
  }

  arrow(x, y) {
    const place = this.at.map((value, axis) => Math.min(1, Math.max(0, value + 0.015 * [x, y][axis])));
    this.now ? this.move(place) : this.hover(place);
  }

  press(key) {
    if (key === " ") this.now ? this.finish() : this.down(this.at);
    else if (key === "Escape" && this.now) this.cancel();
    else return false;
    return true;
  }
}
