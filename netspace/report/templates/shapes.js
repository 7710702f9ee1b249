
// Shapes that can be turned: triangles on a canvas, pixel by pixel, so that it needs no graphics card.
const EXTENT = 1.1; // half the side of the view, in units of the cube [-1, 1]^3
const SIDE = 560; // pixels of a canvas, at most
const STEP = Math.PI / 18; // by which a key turns

function numbersOf(text, Kind) {
  return new Kind(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
}

// A surface as it is stored: vertices of the cube in steps of 1 / 32767, faces, and unit normals of the vertices.
function shapeOf(element) {
  const vertices = Float32Array.from(numbersOf(element.dataset.vertices, Int16Array), (value) => value / 32767);
  const faces = numbersOf(element.dataset.faces, element.dataset.wide === "" ? Uint32Array : Uint16Array);
  const normals = new Float32Array(vertices.length);
  for (let face = 0; face < faces.length; face += 3) {
    const [i, j, k] = [3 * faces[face], 3 * faces[face + 1], 3 * faces[face + 2]];
    const a = [0, 1, 2].map((axis) => vertices[j + axis] - vertices[i + axis]);
    const b = [0, 1, 2].map((axis) => vertices[k + axis] - vertices[i + axis]);
    for (let axis = 0; axis < 3; axis++) {
      const [p, q] = [(axis + 1) % 3, (axis + 2) % 3];
      const value = a[p] * b[q] - a[q] * b[p];
      for (const corner of [i, j, k]) normals[corner + axis] += value;
    }
  }
  for (let i = 0; i < normals.length; i += 3) {
    const length = Math.hypot(normals[i], normals[i + 1], normals[i + 2]) || 1;
    for (let axis = 0; axis < 3; axis++) normals[i + axis] /= length;
  }
  return { vertices, faces, normals, seen: new Float32Array(4 * (vertices.length / 3)) };
}

// Columns, rows, depths and brightness of all vertices, four numbers for each.
function look(shape, view, size) {
  const { vertices, normals, seen } = shape;
  const [right, up, front] = [0, 1, 2];
  const [ct, st, ce, se] = [Math.cos(view.turn), Math.sin(view.turn), Math.cos(view.tilt), Math.sin(view.tilt)];
  const [half, scale] = [size / 2, size / 2 / EXTENT];
  for (let i = 0, o = 0; i < vertices.length; i += 3, o += 4) {
    const depth = st * vertices[i + right] + ct * vertices[i + front];
    seen[o] = half + scale * (ct * vertices[i + right] - st * vertices[i + front]);
    seen[o + 1] = half - scale * (ce * vertices[i + up] - se * depth);
    seen[o + 2] = se * vertices[i + up] + ce * depth;
    const away = st * normals[i + right] + ct * normals[i + front];
    const [x, y, z] = [
      ct * normals[i + right] - st * normals[i + front],
      ce * normals[i + up] - se * away,
      se * normals[i + up] + ce * away,
    ];
    seen[o + 3] = 0.34 + 0.08 * (1 + y) + 0.62 * Math.max(0, -0.45 * x + 0.65 * y + 0.62 * z) + 0.16 * Math.max(0, 0.9 * x + 0.4 * z);
  }
  return seen;
}

// Draw all faces that look at the viewer, the nearest of each pixel.
function fill(shape, seen, colour, pixels, depths, size) {
  const { faces } = shape;
  for (let face = 0; face < faces.length; face += 3) {
    const [i, j, k] = [4 * faces[face], 4 * faces[face + 1], 4 * faces[face + 2]];
    const [ax, ay, bx, by, cx, cy] = [seen[i], seen[i + 1], seen[j], seen[j + 1], seen[k], seen[k + 1]];
    const area = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay);
    if (area >= 0) continue; // rows go down, so what is counterclockwise from outside is negative
    const left = Math.max(0, Math.ceil(Math.min(ax, bx, cx) - 0.5));
    const last = Math.min(size - 1, Math.floor(Math.max(ax, bx, cx) - 0.5));
    const top = Math.max(0, Math.ceil(Math.min(ay, by, cy) - 0.5));
    const bottom = Math.min(size - 1, Math.floor(Math.max(ay, by, cy) - 0.5));
    for (let row = top; row <= bottom; row++) {
      for (let column = left; column <= last; column++) {
        const [x, y] = [column + 0.5, row + 0.5];
        const second = ((x - ax) * (cy - ay) - (cx - ax) * (y - ay)) / area;
        const third = ((bx - ax) * (y - ay) - (x - ax) * (by - ay)) / area;
        const first = 1 - second - third;
        if (first < 0 || second < 0 || third < 0) continue;
        const depth = first * seen[i + 2] + second * seen[j + 2] + third * seen[k + 2];
        const pixel = row * size + column;
        if (depth <= depths[pixel]) continue;
        depths[pixel] = depth;
        const light = first * seen[i + 3] + second * seen[j + 3] + third * seen[k + 3];
        for (let part = 0; part < 3; part++) pixels[4 * pixel + part] = colour[part] * light;
        pixels[4 * pixel + 3] = 255;
      }
    }
  }
}

function paint(canvas, shape, view) {
  const context = canvas.getContext("2d");
  const size = canvas.width;
  const image = context.createImageData(size, size);
  const style = getComputedStyle(canvas);
  if (shape.faces.length) {
    const colour = style.color.match(/[\d.]+/g).slice(0, 3).map(Number);
    fill(shape, look(shape, view, size), colour, image.data, new Float32Array(size * size).fill(-Infinity), size);
  }
  context.putImageData(image, 0, 0);
  if (shape.faces.length) return;
  context.fillStyle = style.color;
  context.textAlign = "center";
  context.font = `${size / 14}px ${style.fontFamily}`;
  context.fillText("empty", size / 2, size / 2);
}

for (const viewer of document.querySelectorAll(".shapes")) {
  const frame = viewer.querySelector("input");
  const panes = [...viewer.querySelectorAll("canvas")].map((canvas) => ({
    canvas,
    stored: [...canvas.parentNode.querySelectorAll("[data-faces]")],
    shapes: [], // decoded when they are first shown
  }));
  const texts = JSON.parse(viewer.dataset.frames);
  const view = { turn: Number(viewer.dataset.turn), tilt: Number(viewer.dataset.tilt) };
  let waiting = false;
  const draw = () => {
    waiting = false;
    const index = Number(frame.value);
    viewer.querySelector("output").textContent = texts[index];
    for (const { canvas, stored, shapes } of panes) {
      const side = Math.min(SIDE, 2 * canvas.clientWidth) || SIDE;
      if (canvas.width !== side) canvas.width = canvas.height = side;
      shapes[index] ??= shapeOf(stored[index]);
      paint(canvas, shapes[index], view);
    }
  };
  const later = () => {
    if (!waiting) requestAnimationFrame(draw);
    waiting = true;
  };
  const turn = (right, down) => {
    view.turn -= right;
    view.tilt = Math.max(-Math.PI / 2, Math.min(Math.PI / 2, view.tilt + down));
    later();
  };
  for (const { canvas } of panes) {
    canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
    canvas.addEventListener("pointermove", (event) => {
      if (!canvas.hasPointerCapture(event.pointerId)) return;
      turn((event.movementX * Math.PI) / canvas.clientWidth, (event.movementY * Math.PI) / canvas.clientWidth);
    });
    canvas.addEventListener("keydown", (event) => {
      const keys = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] };
      if (!(event.key in keys)) return;
      event.preventDefault();
      turn(...keys[event.key]);
    });
  }
  frame.addEventListener("input", later);
  window.addEventListener("resize", later);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", later);
  viewer.hidden = false;
  draw();
}
