// Fits the picture into its stage; zooms and pans it by wheel, touch, keys and buttons.

const MOST = 12;

export class View {
  /** `tool` receives down, move and up of a single pointer, with its position in the picture in [0, 1]. */
  constructor(stage, sheet) {
    Object.assign(this, { stage, sheet, size: [4, 3], zoom: 1, x: 0, y: 0, pointers: new Map(), tool: null });
    new ResizeObserver(() => this.show()).observe(stage);
    stage.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoomBy(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0018)), event.clientX, event.clientY);
    }, { passive: false });
    stage.addEventListener("pointerdown", (event) => this.down(event));
    stage.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, (event) => this.up(event));
    stage.addEventListener("keydown", (event) => this.key(event));
  }

  /** Set the pictures' width and height, and fit them. */
  resize(width, height) {
    const same = this.size[0] === width && this.size[1] === height;
    this.size = [width, height];
    this.stage.style.setProperty("--aspect", width / height);
    same ? this.show() : this.fit();
  }

  fit() {
    Object.assign(this, { zoom: 1, x: 0, y: 0 });
    this.show();
  }

  /** Zoom about the screen position (x, y), by default the centre. */
  zoomBy(factor, x = null, y = null) {
    const zoom = Math.min(MOST, Math.max(1, this.zoom * factor));
    const box = this.stage.getBoundingClientRect();
    const [dx, dy] = [(x ?? box.left + box.width / 2) - box.left - box.width / 2, (y ?? box.top + box.height / 2) - box.top - box.height / 2];
    this.x = dx - ((dx - this.x) * zoom) / this.zoom;
    this.y = dy - ((dy - this.y) * zoom) / this.zoom;
    this.zoom = zoom;
    this.show();
  }

  panBy(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.show();
  }

  show() {
    const box = this.stage.getBoundingClientRect();
    const [width, height] = this.size;
    const fit = Math.min(box.width / width, box.height / height);
    const [w, h] = [Math.round(width * fit), Math.round(height * fit)];
    // Stop when the picture's edge reaches the stage's.
    const [most_x, most_y] = [Math.max(0, (w * this.zoom - box.width) / 2), Math.max(0, (h * this.zoom - box.height) / 2)];
    this.x = Math.min(most_x, Math.max(-most_x, this.x));
    this.y = Math.min(most_y, Math.max(-most_y, this.y));
    const style = this.sheet.style;
    style.width = `${w}px`;
    style.height = `${h}px`;
    style.transform = `translate(${Math.round(this.x - (w * this.zoom) / 2)}px, ${Math.round(this.y - (h * this.zoom) / 2)}px) scale(${this.zoom})`;
    this.stage.style.setProperty("--zoom", this.zoom);
    this.stage.classList.toggle("zoomed", this.zoom > 1);
  }

  /** The position (x, y) of an event in the picture; in [0, 1] if inside. */
  place(event) {
    const box = this.sheet.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  }

  down(event) {
    if (event.button) return;
    this.stage.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
    if (this.pointers.size === 1) this.tool?.down(this.place(event), event);
    else this.tool?.cancel?.();
    this.several = this.pointers.size > 1; // no stroke or drag until all fingers are lifted
  }

  move(event) {
    const last = this.pointers.get(event.pointerId);
    if (!last) return this.tool?.hover?.(this.place(event));
    const now = [event.clientX, event.clientY];
    if (this.pointers.size === 2) {
      const other = [...this.pointers].find(([id]) => id !== event.pointerId)[1];
      const apart = (at) => Math.hypot(at[0] - other[0], at[1] - other[1]);
      const factor = apart(now) / Math.max(1, apart(last));
      const [x, y] = [(now[0] + other[0]) / 2, (now[1] + other[1]) / 2];
      if (this.tool?.pinch) this.tool.pinch(factor);
      else this.zoomBy(factor, x, y);
      this.panBy((now[0] - last[0]) / 2, (now[1] - last[1]) / 2);
    } else if (!this.several) this.tool?.move(this.place(event), now[0] - last[0], now[1] - last[1]);
    this.pointers.set(event.pointerId, now);
  }

  up(event) {
    if (!this.pointers.delete(event.pointerId)) return;
    if (this.pointers.size === 0) event.type === "pointercancel" ? this.tool?.cancel?.() : this.tool?.up?.();
  }

  key(event) {
    const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const way = arrows[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "+" || event.key === "=") this.zoomBy(1.5);
    else if (event.key === "-") this.zoomBy(1 / 1.5);
    else if (event.key === "0") this.fit();
    else if (way && (event.shiftKey || !this.tool?.arrow)) this.panBy(-60 * way[0], -60 * way[1]);
    else if (way) this.tool.arrow(...way);
    else if (!this.tool?.press?.(event.key)) return;
    event.preventDefault();
  }
}
