// The drawing area: strokes by pointer or keyboard, undo, and the ink as bytes.

const SIDE = 280; // units of the drawing, also the canvas's pixels
const WIDTH = 24; // of the pen: a little over 2 of MNIST's 28 pixels
const STEP = 10; // of an arrow key
const SENT = 112; // pixels of a side that are sent

export class Paper {
  // changed(done) is called after every change; done is false while a stroke goes on
  constructor(canvas, cursor, changed, say) {
    this.canvas = canvas;
    this.cursor = cursor;
    this.changed = changed;
    this.say = say;
    this.context = canvas.getContext("2d");
    this.strokes = []; // a stroke: {points: [[x, y], ...]} or {image: canvas}
    this.drawing = null; // the stroke that goes on
    this.pen = { x: SIDE / 2, y: SIDE / 4, down: false };
    this.arrows = new Set();
    canvas.addEventListener("pointerdown", (event) => this.pointerDown(event));
    canvas.addEventListener("pointermove", (event) => this.pointerMove(event));
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, () => this.finish());
    }
    canvas.addEventListener("keydown", (event) => this.keyDown(event));
    canvas.addEventListener("keyup", (event) => this.arrows.delete(event.key));
    canvas.addEventListener("focus", () => this.showCursor(canvas.matches(":focus-visible")));
    canvas.addEventListener("blur", () => {
      this.liftPen();
      this.showCursor(false);
    });
    this.redraw();
  }

  get empty() {
    return this.strokes.length === 0;
  }

  // ---------------------------------------------------------------------------------- pointer

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    const limit = (value) => Math.min(Math.max(value, 0), SIDE);
    return [
      limit(((event.clientX - box.left) / box.width) * SIDE),
      limit(((event.clientY - box.top) / box.height) * SIDE),
    ];
  }

  pointerDown(event) {
    if (event.button !== 0) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.showCursor(false);
    this.begin(this.place(event));
  }

  pointerMove(event) {
    if (!this.drawing || this.pen.down) return;
    const events = event.getCoalescedEvents ? event.getCoalescedEvents() : [event];
    for (const one of events.length ? events : [event]) this.extend(this.place(one));
  }

  // --------------------------------------------------------------------------------- keyboard

  keyDown(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key in moves) {
      this.arrows.add(event.key);
      let [dx, dy] = [0, 0];
      for (const key of this.arrows) {
        dx += moves[key][0];
        dy += moves[key][1];
      }
      this.move(dx * STEP, dy * STEP);
    } else if (event.key === " " || event.key === "Enter") {
      if (!event.repeat) this.pen.down ? this.liftPen() : this.lowerPen();
    } else if (event.key === "Escape" && this.pen.down) {
      this.liftPen();
    } else if (event.key === "Backspace" || (event.key === "z" && (event.ctrlKey || event.metaKey))) {
      this.undo();
    } else if (event.key === "Delete") {
      this.clear();
    } else {
      return;
    }
    event.preventDefault();
  }

  move(dx, dy) {
    const limit = (value) => Math.min(Math.max(value, STEP), SIDE - STEP);
    this.pen.x = limit(this.pen.x + dx);
    this.pen.y = limit(this.pen.y + dy);
    this.showCursor(true);
    if (this.pen.down) this.extend([this.pen.x, this.pen.y]);
  }

  lowerPen() {
    this.pen.down = true;
    this.showCursor(true);
    this.say("Pen down");
    this.begin([this.pen.x, this.pen.y]);
  }

  liftPen() {
    if (!this.pen.down) return;
    this.pen.down = false;
    this.cursor.classList.remove("down");
    this.say("Pen up");
    this.finish();
  }

  showCursor(shown) {
    this.cursor.hidden = !shown;
    this.cursor.style.left = `${(this.pen.x / SIDE) * 100}%`;
    this.cursor.style.top = `${(this.pen.y / SIDE) * 100}%`;
    this.cursor.classList.toggle("down", this.pen.down);
  }

  // ---------------------------------------------------------------------------------- strokes

  begin(point) {
    this.drawing = { points: [point] };
    this.strokes.push(this.drawing);
    this.redraw();
    this.changed(false);
  }

  extend(point) {
    this.drawing.points.push(point);
    this.redraw();
    this.changed(false);
  }

  finish() {
    if (!this.drawing) return;
    this.drawing = null;
    this.pen.down = false;
    this.changed(true);
  }

  undo() {
    this.drawing = null;
    this.pen.down = false;
    this.cursor.classList.remove("down");
    this.strokes.pop();
    this.redraw();
    this.changed(true);
  }

  clear() {
    this.strokes = [];
    this.undo();
  }

  // levels: bytes of a picture with side * side pixels, bright ink
  showPicture(levels, side) {
    const image = document.createElement("canvas");
    image.width = image.height = side;
    const context = image.getContext("2d");
    const data = context.createImageData(side, side);
    for (let i = 0; i < levels.length; i++) data.data[4 * i + 3] = levels[i];
    context.putImageData(data, 0, 0);
    this.strokes = [{ image }];
    this.drawing = null;
    this.redraw();
    this.changed(true);
  }

  redraw() {
    const c = this.context;
    c.clearRect(0, 0, SIDE, SIDE);
    c.strokeStyle = c.fillStyle = getComputedStyle(document.getElementById("ink")).color;
    c.lineWidth = WIDTH;
    c.lineCap = c.lineJoin = "round";
    for (const { points, image } of this.strokes) {
      if (image) {
        c.imageSmoothingEnabled = true;
        c.drawImage(image, 0, 0, SIDE, SIDE);
        c.globalCompositeOperation = "source-in"; // only its opacity counts
        c.fillRect(0, 0, SIDE, SIDE);
        c.globalCompositeOperation = "source-over";
        continue;
      }
      c.beginPath();
      c.moveTo(...points[0]);
      if (points.length === 1) c.lineTo(...points[0]);
      for (let i = 1; i < points.length - 1; i++) {
        const [x, y] = points[i];
        c.quadraticCurveTo(x, y, (x + points[i + 1][0]) / 2, (y + points[i + 1][1]) / 2);
      }
      c.lineTo(...points[points.length - 1]);
      c.stroke();
    }
  }

  // The ink as rows * cols bytes.
  pixels() {
    const small = document.createElement("canvas");
    small.width = small.height = SENT;
    const context = small.getContext("2d", { willReadFrequently: true });
    context.imageSmoothingQuality = "high";
    context.drawImage(this.canvas, 0, 0, SENT, SENT);
    const { data } = context.getImageData(0, 0, SENT, SENT);
    const ink = new Uint8Array(SENT * SENT);
    for (let i = 0; i < ink.length; i++) ink[i] = data[4 * i + 3];
    return { rows: SENT, cols: SENT, ink };
  }
}
