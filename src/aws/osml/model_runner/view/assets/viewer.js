"use strict";
// Draws a result: columns of features (see columns.py) on a canvas over the picture, in pixels of the image.
(() => {
  const NO_SCORE = 0xffff;
  const COLOURS = ["#ffc43d", "#4cc9f0", "#ff6b6b", "#80ed99", "#c77dff", "#ff9f1c", "#f15bb5", "#00f5d4", "#a0c4ff", "#e9ff70", "#ff99c8", "#9bf6ff"];
  const STATES = { seen: "#80ed99", skipped: "#a0c4ff", failed: "#ff6b6b" };
  // Above this number of features in the window, cells with counts are drawn instead.
  const MOST_SHAPES = 120000;
  const CELL_PX = 14;
  const element = (id) => document.getElementById(id);

  async function inflated(base64) {
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).arrayBuffer();
  }

  async function layerOf(raw, number, data) {
    const buffer = await inflated(raw.columns);
    let offset = 0;
    const section = (Type, count) => {
      const size = count * Type.BYTES_PER_ELEMENT;
      const values = new Type(buffer.slice(offset, offset + size));
      offset += size;
      return values;
    };
    const classes = section(Uint16Array, raw.features);
    const scores = section(Uint16Array, raw.features);
    const partCounts = section(Uint32Array, raw.features);
    const kinds = section(Uint8Array, raw.parts);
    const pointCounts = section(Uint32Array, raw.parts);
    const x = positions(section(Int32Array, raw.points), data.stepsPerPx);
    const y = positions(section(Int32Array, raw.points), data.stepsPerPx);
    const firstPart = starts(partCounts);
    const firstPoint = starts(pointCounts);
    const boxes = new Float32Array(raw.features * 4);
    for (let i = 0; i < raw.features; i++) {
      let left = Infinity, top = Infinity, right = -Infinity, bottom = -Infinity;
      for (let k = firstPoint[firstPart[i]]; k < firstPoint[firstPart[i + 1]]; k++) {
        left = Math.min(left, x[k]); right = Math.max(right, x[k]);
        top = Math.min(top, y[k]); bottom = Math.max(bottom, y[k]);
      }
      boxes.set([left, top, right, bottom], i * 4);
    }
    return { ...raw, number, classOf: classes, scores, kinds, x, y, firstPart, firstPoint, boxes, isOn: number === 0 };
  }

  function positions(steps, perPx) {
    const values = new Float64Array(steps.length);
    let sum = 0;
    for (let i = 0; i < steps.length; i++) values[i] = (sum += steps[i]) / perPx;
    return values;
  }

  function starts(counts) {
    const firsts = new Uint32Array(counts.length + 1);
    for (let i = 0; i < counts.length; i++) firsts[i + 1] = firsts[i] + counts[i];
    return firsts;
  }

  // All classes of all layers, the most frequent of the first layer first.
  function classesOf(layers) {
    const names = new Map();
    for (const layer of layers) for (const [name, count] of layer.classes) if (!names.has(name)) names.set(name, count);
    const sorted = [...names.keys()].sort((a, b) => names.get(b) - names.get(a) || (a < b ? -1 : 1));
    const classes = sorted.map((name, i) => ({ name, isOn: true, colour: COLOURS[i] || `hsl(${(i * 137.5) % 360} 85% 65%)` }));
    for (const each of classes) each.pixel = packedColour(each.colour);
    const byName = new Map(classes.map((each) => [each.name, each]));
    for (const layer of layers) layer.styles = layer.classes.map(([name]) => byName.get(name));
    return classes;
  }

  // Longitude and latitude of a pixel, between the nodes of the grid; null where a node has no place.
  function placeOf(places, size, x, y) {
    if (!places) return null;
    const column = Math.min(Math.max((x / size[0]) * (places.columns - 1), 0), places.columns - 1.000001);
    const row = Math.min(Math.max((y / size[1]) * (places.rows - 1), 0), places.rows - 1.000001);
    const c = Math.floor(column), r = Math.floor(row);
    const at = (dr, dc) => places.lonlat[(r + dr) * places.columns + c + dc];
    const nodes = [at(0, 0), at(0, 1), at(1, 0), at(1, 1)];
    if (nodes.some((node) => node[0] === null || node[1] === null)) return null;
    const base = nodes[0][0];
    const turned = (lon) => lon + 360 * Math.round((base - lon) / 360);
    const u = column - c, v = row - r;
    const mixed = (f) => (1 - v) * ((1 - u) * f(nodes[0]) + u * f(nodes[1])) + v * ((1 - u) * f(nodes[2]) + u * f(nodes[3]));
    const longitude = mixed((node) => turned(node[0]));
    return [((longitude + 540) % 360) - 180, mixed((node) => node[1])];
  }

  // Metres between two places on a sphere of the Earth's mean radius (haversine).
  function metres(a, b) {
    const rad = Math.PI / 180;
    const h = Math.sin(((b[1] - a[1]) * rad) / 2) ** 2 + Math.cos(a[1] * rad) * Math.cos(b[1] * rad) * Math.sin(((b[0] - a[0]) * rad) / 2) ** 2;
    return 2 * 6371008.8 * Math.asin(Math.min(1, Math.sqrt(h)));
  }

  function text(parent, tag, content, className) {
    const child = parent.appendChild(document.createElement(tag));
    if (content !== undefined) child.textContent = content;
    if (className) child.className = className;
    return child;
  }

  // [name, text] of each value; members of an object have its name before theirs.
  function* flat(members, prefix) {
    for (const [name, value] of Object.entries(members)) {
      if (value === null) continue;
      if (typeof value === "object" && !Array.isArray(value)) yield* flat(value, `${prefix}${name}.`);
      else yield [prefix + name, typeof value === "string" ? value : JSON.stringify(value)];
    }
  }

  // A colour as the four bytes of a pixel.
  function packedColour(colour) {
    const pen = new OffscreenCanvas(1, 1).getContext("2d");
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    return new Uint32Array(pen.getImageData(0, 0, 1, 1).data.buffer)[0];
  }

  const number = (value) => value.toLocaleString("en");

  class Viewer {
    constructor(data, layers) {
      this.data = data;
      this.layers = layers;
      this.classes = classesOf(layers);
      this.coverage = data.coverage.filter((tile) => Array.isArray(tile.box));
      this.isCoverageOn = false;
      this.least = 0;
      this.selected = null;
      this.makeMap();
      this.makePanel();
      this.makeKeys();
      this.update();
    }

    makeMap() {
      const [width, height] = this.data.size;
      this.bounds = L.latLngBounds([[-height, 0], [0, width]]);
      this.map = L.map("map", { crs: L.CRS.Simple, minZoom: -12, maxZoom: 5, zoomSnap: 0, zoomDelta: 0.5, wheelPxPerZoomLevel: 120, zoomAnimation: false, fadeAnimation: false, inertia: false, attributionControl: false, maxBounds: this.bounds.pad(0.5) });
      const picture = element("picture").getAttribute("src");
      if (picture) this.picture = L.imageOverlay(picture, this.bounds).addTo(this.map);
      this.frame = L.rectangle(this.bounds, { color: "#9fb0be", weight: 1, fill: false, interactive: false }).addTo(this.map);
      this.canvas = document.createElement("canvas");
      this.canvas.className = "leaflet-zoom-hide";
      this.canvas.style.pointerEvents = "none";
      this.map.getPanes().overlayPane.appendChild(this.canvas);
      this.makeReadings();
      this.map.on("move zoom viewreset resize", () => this.drawSoon());
      this.map.on("resize", () => { if (!this.hasMoved) this.fit(); });
      this.map.on("dragstart zoomstart", () => { this.hasMoved = true; });
      this.map.on("click", (event) => this.select(this.featureAt(event.latlng)));
      this.map.on("mousemove", (event) => this.readPosition(event.latlng));
      this.fit();
    }

    fit() {
      this.map.fitBounds(this.bounds, { padding: [12, 12] });
    }

    makeReadings() {
      const control = L.control({ position: "bottomleft" });
      control.onAdd = () => {
        const box = L.DomUtil.create("div");
        const scale = text(box, "div", undefined, "box");
        this.scaleBar = text(scale, "div", undefined, "scale");
        this.scaleText = text(scale, "div");
        box.appendChild(document.createElement("br"));
        this.position = text(box, "div", "", "box");
        this.position.hidden = true;
        return box;
      };
      control.addTo(this.map);
    }

    readPosition(latlng) {
      const x = latlng.lng, y = -latlng.lat;
      const place = this.bounds.contains(latlng) ? placeOf(this.data.places, this.data.size, x, y) : null;
      const pixel = `column ${x.toFixed(1)}, row ${y.toFixed(1)}`;
      this.position.textContent = place ? `${pixel} · lon ${place[0].toFixed(6)}, lat ${place[1].toFixed(6)}` : pixel;
      this.position.hidden = false;
    }

    makePanel() {
      const { run, title } = this.data;
      document.title = title;
      element("title").textContent = title;
      const first = this.layers[0];
      const facts = [`${number(first.total)} detections`];
      if (run.tiles) facts.push(`${number(run.tiles.succeeded ?? 0)} of ${number(run.tiles.planned ?? 0)} tiles`);
      if (run.tiles?.skipped) facts.push(`${number(run.tiles.skipped)} skipped`);
      if (this.data.isSizeKnown) facts.push(`${number(this.data.size[0])} x ${number(this.data.size[1])} pixels`);
      if (run.status) facts.unshift(run.status);
      element("facts").textContent = facts.join(" · ");
      this.makeNotices();
      this.makeClasses();
      this.makeLayers();
      const isScored = first.scores.some((score) => score !== NO_SCORE);
      element("score-section").hidden = !isScored;
      element("score").addEventListener("input", (event) => { this.least = Number(event.target.value); this.update(); });
      element("close").addEventListener("click", () => this.select(null));
      this.makeHistogram(first);
    }

    makeNotices() {
      const { run } = this.data;
      const notices = element("notices");
      const add = (line, kind) => text(notices, "div", line, kind ? `notice ${kind}` : "notice");
      if (run.status && run.status !== "SUCCESS") {
        const count = run.tiles?.failed;
        const failed = count ? `${number(count)} ${count === 1 ? "tile" : "tiles"} failed, so detections are missing.` : "";
        add([`${run.status}.`, failed, run.reason || run.message || ""].filter(Boolean).join(" "), "failed");
      }
      const first = this.layers[0];
      if (!first.total) add("The model found nothing in this image.");
      if (first.leftOut) add(`${number(first.leftOut)} detections without imageGeometry are not drawn.`);
      if (first.total > first.features + first.leftOut) add(`Only the ${number(first.features)} detections with the highest scores are drawn.`);
      if (!this.picture) add("The page has no picture of the image.");
    }

    makeClasses() {
      const list = element("classes");
      this.classRows = this.classes.map((each) => {
        const label = text(text(list, "li"), "label");
        const box = text(label, "input");
        box.type = "checkbox";
        box.checked = true;
        box.addEventListener("change", () => { each.isOn = box.checked; this.update(); });
        text(label, "span", undefined, "swatch").style.background = each.colour;
        text(label, "span", each.name, "name");
        return { each, box, count: text(label, "span", "", "count") };
      });
      const all = (isOn) => () => {
        for (const row of this.classRows) row.box.checked = row.each.isOn = isOn;
        this.update();
      };
      element("all-classes").addEventListener("click", all(true));
      element("no-classes").addEventListener("click", all(false));
      element("class-buttons").hidden = this.classes.length < 3;
    }

    makeLayers() {
      const list = element("layers");
      const add = (name, isOn, change, colour) => {
        const label = text(text(list, "li"), "label");
        const box = text(label, "input");
        box.type = "checkbox";
        box.checked = isOn;
        box.addEventListener("change", () => { change(box.checked); this.update(); });
        if (colour) text(label, "span", undefined, "swatch").style.background = colour;
        text(label, "span", name, "name");
        return label;
      };
      if (this.picture) add("picture", true, (isOn) => this.picture.setOpacity(isOn ? 1 : 0));
      for (const layer of this.layers) {
        text(add(layer.name, layer.isOn, (isOn) => { layer.isOn = isOn; }), "span", number(layer.total), "count");
      }
      const states = new Map();
      for (const tile of this.coverage) states.set(tile.state, (states.get(tile.state) || 0) + 1);
      if (this.coverage.length) {
        const counts = [...states].map(([state, count]) => `${number(count)} ${state}`).join(", ");
        add(`tiles: ${counts}`, false, (isOn) => { this.isCoverageOn = isOn; });
      }
    }

    makeHistogram(layer) {
      const bins = new Uint32Array(50);
      for (const score of layer.scores) if (score !== NO_SCORE) bins[Math.min(49, Math.floor((score / this.data.scoreSteps) * 50))]++;
      const canvas = element("histogram"), pen = canvas.getContext("2d"), most = Math.max(...bins, 1);
      this.paintHistogram = () => {
        pen.clearRect(0, 0, canvas.width, canvas.height);
        bins.forEach((count, i) => {
          const tall = count ? Math.max(2, (Math.sqrt(count / most)) * canvas.height) : 0;
          pen.fillStyle = (i + 1) / 50 > this.least ? "#ffc43d" : "#3a4853";
          pen.fillRect((i * canvas.width) / 50 + 1, canvas.height - tall, canvas.width / 50 - 2, tall);
        });
      };
    }

    makeKeys() {
      document.addEventListener("keydown", (event) => {
        if (event.ctrlKey || event.metaKey || event.altKey) return;
        const step = { "[": -0.05, "]": 0.05 }[event.key];
        if (event.key === "n" || event.key === "p") this.goTo(event.key === "n" ? 1 : -1);
        else if (event.key === "Escape") this.select(null);
        else if (event.key === "f") this.fit();
        else if (step) {
          const slider = element("score");
          slider.value = String(Math.min(1, Math.max(0, this.least + step)));
          this.least = Number(slider.value);
          this.update();
        }
      });
    }

    isShown(layer, i) {
      const score = layer.scores[i];
      return layer.styles[layer.classOf[i]].isOn && (score === NO_SCORE ? this.least === 0 : score / this.data.scoreSteps >= this.least - 1e-9);
    }

    // Features are sorted by score, so the next one is the next number that is shown.
    goTo(step) {
      const layer = this.selected ? this.selected.layer : this.layers.find((each) => each.isOn) || this.layers[0];
      let i = this.selected ? this.selected.i : step > 0 ? -1 : layer.features;
      do i += step; while (i >= 0 && i < layer.features && !this.isShown(layer, i));
      if (i < 0 || i >= layer.features) return;
      this.select({ layer, i });
      const [left, top, right, bottom] = layer.boxes.subarray(i * 4, i * 4 + 4);
      this.map.setView([-(top + bottom) / 2, (left + right) / 2], Math.max(this.map.getZoom(), Math.min(2, Math.log2(160 / Math.max(right - left, bottom - top, 1)))), { animate: false });
    }

    featureAt(latlng) {
      const scale = this.map.getZoomScale(this.map.getZoom(), 0);
      const reach = 5 / scale, x = latlng.lng, y = -latlng.lat;
      let found = null, least = Infinity;
      for (const layer of this.layers) {
        if (!layer.isOn) continue;
        for (let i = 0; i < layer.features; i++) {
          const left = layer.boxes[i * 4], top = layer.boxes[i * 4 + 1], right = layer.boxes[i * 4 + 2], bottom = layer.boxes[i * 4 + 3];
          if (x < left - reach || x > right + reach || y < top - reach || y > bottom + reach || !this.isShown(layer, i)) continue;
          const area = (right - left) * (bottom - top);
          if (area < least) { least = area; found = { layer, i }; }
        }
      }
      return found;
    }

    select(found) {
      this.selected = found;
      element("selected").hidden = !found;
      if (found) this.describe(found);
      this.draw();
    }

    async describe({ layer, i }) {
      const table = element("properties");
      table.replaceChildren();
      const row = (name, value) => {
        const line = text(table, "tr");
        text(line, "th", name).scope = "row";
        text(line, "td", value);
      };
      const [left, top, right, bottom] = layer.boxes.subarray(i * 4, i * 4 + 4);
      const score = layer.scores[i];
      row("class", layer.styles[layer.classOf[i]].name);
      if (score !== NO_SCORE) row("score", (score / this.data.scoreSteps).toFixed(4));
      row("pixels", `column ${left.toFixed(1)} to ${right.toFixed(1)}, row ${top.toFixed(1)} to ${bottom.toFixed(1)}`);
      const place = placeOf(this.data.places, this.data.size, (left + right) / 2, (top + bottom) / 2);
      if (place) row("lon, lat", `${place[0].toFixed(6)}, ${place[1].toFixed(6)}`);
      if (i >= layer.described) {
        row("more", `The page has further properties of the first ${number(layer.described)} detections only.`);
        return;
      }
      layer.lines ??= inflated(layer.properties).then((buffer) => new TextDecoder().decode(buffer).split("\n"));
      const properties = JSON.parse((await layer.lines)[i]);
      if (this.selected?.layer !== layer || this.selected.i !== i) return;
      for (const [name, value] of flat(properties, "")) row(name, value);
    }

    update() {
      element("score-value").textContent = this.least.toFixed(2);
      const first = this.layers.find((layer) => layer.isOn) || this.layers[0];
      const counts = new Map(this.classes.map((each) => [each, 0]));
      let shown = 0;
      for (let i = 0; i < first.features; i++) {
        if (!this.isShown(first, i)) continue;
        shown++;
        const style = first.styles[first.classOf[i]];
        counts.set(style, counts.get(style) + 1);
      }
      for (const { each, count } of this.classRows) count.textContent = number(counts.get(each));
      element("shown").textContent = `${number(shown)} of ${number(first.features)} shown`;
      this.paintHistogram();
      this.draw();
    }

    // Many events may come before the next frame, which is drawn once.
    drawSoon() {
      this.frameAsked ??= requestAnimationFrame(() => { this.frameAsked = undefined; this.draw(); });
    }

    draw() {
      const size = this.map.getSize(), ratio = window.devicePixelRatio || 1;
      this.canvas.width = size.x * ratio;
      this.canvas.height = size.y * ratio;
      this.canvas.style.width = `${size.x}px`;
      this.canvas.style.height = `${size.y}px`;
      L.DomUtil.setPosition(this.canvas, this.map.containerPointToLayerPoint([0, 0]));
      const pen = this.canvas.getContext("2d");
      pen.scale(ratio, ratio);
      const scale = this.map.getZoomScale(this.map.getZoom(), 0);
      const corner = this.map.latLngToContainerPoint([0, 0]);
      this.view = { pen, scale, size, ratio, dx: corner.x, dy: corner.y };
      element("map").classList.toggle("near", scale >= 2);
      if (this.isCoverageOn) this.drawCoverage();
      this.drawn = 0;
      for (const layer of this.layers) if (layer.isOn) this.drawLayer(layer);
      if (this.selected) this.drawSelected();
      this.drawScale();
    }

    drawCoverage() {
      const { pen, scale, dx, dy } = this.view;
      for (const { box, state } of this.coverage) {
        pen.fillStyle = pen.strokeStyle = STATES[state] || "#fff";
        pen.globalAlpha = 0.18;
        pen.fillRect(dx + box[0] * scale, dy + box[1] * scale, (box[2] - box[0]) * scale, (box[3] - box[1]) * scale);
        pen.globalAlpha = 0.7;
        pen.strokeRect(dx + box[0] * scale, dy + box[1] * scale, (box[2] - box[0]) * scale, (box[3] - box[1]) * scale);
      }
      pen.globalAlpha = 1;
    }

    drawLayer(layer) {
      const { scale, size, dx, dy } = this.view;
      const left = -dx / scale, top = -dy / scale, right = (size.x - dx) / scale, bottom = (size.y - dy) / scale;
      const visible = new Map(layer.styles.map((style) => [style, []]));
      let count = 0;
      for (let i = 0; i < layer.features; i++) {
        const at = i * 4;
        if (layer.boxes[at] > right || layer.boxes[at + 2] < left || layer.boxes[at + 1] > bottom || layer.boxes[at + 3] < top) continue;
        if (!this.isShown(layer, i)) continue;
        visible.get(layer.styles[layer.classOf[i]]).push(i);
        count++;
      }
      this.drawn += count;
      if (count > MOST_SHAPES) {
        for (const [style, indices] of visible) this.drawCells(layer, indices, style.colour);
        return;
      }
      this.drawDots(layer, visible);
      for (const [style, indices] of visible) this.drawShapes(layer, indices, style.colour);
    }

    isDot(layer, i) {
      const at = i * 4, { scale } = this.view;
      return (layer.boxes[at + 2] - layer.boxes[at]) * scale < 4 && (layer.boxes[at + 3] - layer.boxes[at + 1]) * scale < 4;
    }

    // Features too small for an outline become squares. They are set pixel by pixel, ten times as fast as rectangles.
    drawDots(layer, visible) {
      const { pen, scale, ratio, dx, dy } = this.view, { width, height } = this.canvas;
      const side = Math.round(3 * ratio), pixels = new Uint32Array(width * height);
      let hasDots = false;
      for (const [style, indices] of visible) {
        const colour = style.pixel;
        for (const i of indices) {
          if (!this.isDot(layer, i)) continue;
          hasDots = true;
          const at = i * 4;
          const column = Math.round((dx + ((layer.boxes[at] + layer.boxes[at + 2]) / 2) * scale) * ratio - side / 2);
          const row = Math.round((dy + ((layer.boxes[at + 1] + layer.boxes[at + 3]) / 2) * scale) * ratio - side / 2);
          for (let r = Math.max(row, 0); r < Math.min(row + side, height); r++) {
            pixels.fill(colour, r * width + Math.max(column, 0), r * width + Math.max(0, Math.min(column + side, width)));
          }
        }
      }
      if (!hasDots) return;
      const sheet = new OffscreenCanvas(width, height);
      sheet.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(pixels.buffer), width, height), 0, 0);
      pen.drawImage(sheet, 0, 0, width / ratio, height / ratio);
    }

    drawCells(layer, indices, colour) {
      const { pen, scale, dx, dy } = this.view;
      const cells = new Map();
      for (const i of indices) {
        const column = Math.floor((dx + layer.boxes[i * 4] * scale) / CELL_PX), row = Math.floor((dy + layer.boxes[i * 4 + 1] * scale) / CELL_PX);
        const key = row * 65536 + column;
        cells.set(key, (cells.get(key) || 0) + 1);
      }
      let most = 1;
      for (const count of cells.values()) most = Math.max(most, count);
      pen.fillStyle = colour;
      for (const [key, count] of cells) {
        pen.globalAlpha = 0.15 + (0.75 * Math.log1p(count)) / Math.log1p(most);
        const side = CELL_PX * (0.35 + (0.6 * Math.log1p(count)) / Math.log1p(most));
        const column = ((key % 65536) + 65536) % 65536, row = Math.floor(key / 65536);
        pen.fillRect((column + 0.5) * CELL_PX - side / 2, (row + 0.5) * CELL_PX - side / 2, side, side);
      }
      pen.globalAlpha = 1;
    }

    drawShapes(layer, indices, colour) {
      const { pen } = this.view;
      const isBefore = layer.number > 0;
      pen.strokeStyle = colour;
      pen.lineWidth = isBefore ? 1 : 1.5;
      pen.setLineDash(isBefore ? [3, 3] : []);
      pen.beginPath();
      let inPath = 0;
      for (const i of indices) {
        if (this.isDot(layer, i)) continue;
        this.trace(layer, i);
        if (++inPath % 500 === 0) { pen.stroke(); pen.beginPath(); }
      }
      pen.stroke();
      pen.setLineDash([]);
    }

    trace(layer, i) {
      const { pen, scale, dx, dy } = this.view;
      for (let part = layer.firstPart[i]; part < layer.firstPart[i + 1]; part++) {
        const kind = layer.kinds[part], first = layer.firstPoint[part], end = layer.firstPoint[part + 1];
        for (let k = first; k < end; k++) {
          const x = dx + layer.x[k] * scale, y = dy + layer.y[k] * scale;
          if (kind === 0) { pen.moveTo(x + 4, y); pen.arc(x, y, 4, 0, 7); }
          else if (k === first) pen.moveTo(x, y);
          else pen.lineTo(x, y);
        }
        if (kind === 2) pen.closePath();
      }
    }

    drawSelected() {
      const { pen } = this.view;
      const { layer, i } = this.selected;
      pen.beginPath();
      this.trace(layer, i);
      pen.lineWidth = 5;
      pen.strokeStyle = "#0a0f14";
      pen.stroke();
      pen.lineWidth = 2.5;
      pen.strokeStyle = "#ffffff";
      pen.stroke();
    }

    drawScale() {
      const { scale } = this.view;
      const middle = this.map.getCenter();
      const a = placeOf(this.data.places, this.data.size, middle.lng - 8, -middle.lat);
      const b = placeOf(this.data.places, this.data.size, middle.lng + 8, -middle.lat);
      const perPx = a && b ? metres(a, b) / 16 : 0;
      const unit = perPx || 1, longest = (120 / scale) * unit;
      const power = 10 ** Math.floor(Math.log10(longest));
      const length = [5, 2, 1].map((step) => step * power).find((each) => each <= longest);
      this.scaleBar.style.width = `${(length / unit) * scale}px`;
      this.scaleText.textContent = !perPx ? `${number(length)} px` : length >= 1000 ? `${number(length / 1000)} km` : `${number(length)} m`;
    }
  }

  async function start() {
    if (typeof DecompressionStream === "undefined") throw new Error("this page needs a browser of 2023 or later");
    const data = JSON.parse(element("data").textContent);
    const layers = await Promise.all(data.layers.map((raw, i) => layerOf(raw, i, data)));
    window.viewer = new Viewer(data, layers);
    document.documentElement.dataset.state = "ready";
  }

  start().catch((error) => {
    element("failure").textContent = `The result cannot be shown: ${error.message}`;
    element("failure").hidden = false;
    document.documentElement.dataset.state = "failed";
  });
})();
