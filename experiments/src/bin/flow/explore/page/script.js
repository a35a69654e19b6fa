"use strict";
// The page holds what its controls say and asks for one picture at a time. While one is on its way, only the newest position of
// a slider waits. On an exported page `window.flowPictures` has all answers, by the places of the controls' values.

const saved = window.flowPictures || null;
const byId = (id) => document.getElementById(id);
const state = { info: null, panel: null, values: {}, images: {}, answer: null, moved: null };

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function tell(text, isError = false) {
  const message = byId("message");
  message.textContent = text;
  message.classList.toggle("error", isError);
}

// Asking

async function ask(name, body, signal) {
  let response;
  try {
    response = await fetch("/api/" + name, { method: "POST", body, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("No answer from `flow explore`: it has ended. Start it again and reload this page.");
  }
  let answer = null;
  try { answer = await response.json(); } catch { /* Not of this server. */ }
  if (!answer) throw new Error("The answer was cut short: reload this page.");
  if (!response.ok) throw new Error(sentence(answer.error));
  return answer;
}

function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1) + (text.endsWith(".") ? "" : ".");
}

function picture(panel, values, signal) {
  if (!saved) return ask(panel.name, JSON.stringify(values), signal);
  const places = panel.controls.map((control) => {
    const wanted = JSON.stringify(values[control.name]);
    return control.values.findIndex((value) => JSON.stringify(value) === wanted);
  });
  const answer = saved.answers[panel.name + ":" + places.join(".")];
  if (!answer) throw new Error("This page holds a fixed set of pictures, and not this one.");
  if (answer.error) throw new Error(sentence(answer.error));
  return Promise.resolve(answer);
}

// What the controls say

function valuesOf(panel) {
  const values = {};
  for (const control of panel.controls) {
    if (control.kind === "image") {
      const { png, name, data } = state.images[control.name];
      values[control.name] = png === undefined ? { data } : { png, name };
    } else {
      values[control.name] = state.values[panel.name][control.name];
    }
  }
  return values;
}

let running = null;
let wanted = false;

async function draw() {
  wanted = true;
  if (running) return;
  while (wanted) {
    wanted = false;
    const panel = state.panel;
    running = new AbortController();
    const began = performance.now();
    try {
      const answer = await picture(panel, valuesOf(panel), running.signal);
      if (panel === state.panel) show(answer, performance.now() - began);
    } catch (error) {
      if (error.name !== "AbortError" && panel === state.panel) tell(error.message, true);
    }
  }
  running = null;
}

function change(name, value) {
  state.values[state.panel.name][name] = value;
  byId("film").hidden = true;
  draw();
}

// Showing an answer

function show(answer, milliseconds) {
  const progress = byId("progress");
  progress.hidden = !answer.waiting;
  if (answer.waiting) {
    const [done, all] = answer.waiting;
    progress.max = all;
    progress.value = done;
    tell(`Encoding training images for the directions of their labels, once: ${done} of ${all}.`);
    setTimeout(draw, 300);
    return;
  }
  state.answer = answer;
  showImages(answer.images);
  showPlots(answer.plots);
  byId("facts").replaceChildren(...answer.facts.map((fact) => make("li", { textContent: fact })));
  byId("facts").hidden = answer.facts.length === 0;
  showCommand(answer.commands);
  tell(saved ? "" : `${Math.round(milliseconds)} ms`);
}

function showImages(images) {
  const place = byId("images");
  place.hidden = images.length === 0;
  const many = images.length > 4;
  place.className = many ? "many" : "few";
  // What a picture is about is twice as wide as what is beside it.
  const widths = images.map((image) => (image.main ? "minmax(0, 2fr)" : "minmax(0, 1fr)"));
  place.style.gridTemplateColumns = many ? "" : widths.join(" ");
  // The same elements as before, so that nothing flickers under a slider.
  while (place.children.length > images.length) place.lastChild.remove();
  images.forEach((image, i) => {
    let figure = place.children[i];
    const takes = Boolean(image.file);
    if (!figure || Boolean(figure.querySelector("button")) !== takes) {
      const img = make("img", {});
      const fresh = make("figure", {}, takes ? make("button", { type: "button" }, img) : img, make("figcaption"));
      if (figure) figure.replaceWith(fresh); else place.append(fresh);
      figure = fresh;
    }
    const img = figure.querySelector("img");
    img.src = image.url;
    img.width = image.width;
    img.height = image.height;
    img.alt = image.caption || `Sample ${i}`;
    figure.className = image.main ? "main" : "";
    figure.querySelector("figcaption").textContent = image.caption;
    const button = figure.querySelector("button");
    if (button) {
      button.title = "Take this sample to the other pictures";
      button.onclick = () => takeSample(image);
    }
  });
}

function takeSample(image) {
  const { a } = state.images;
  state.images = {
    a: { png: image.url.split(",")[1], name: image.file, made: state.answer.commands },
    b: a,
  };
  choose("mix");
}

function showCommand(commands) {
  const used = state.panel.controls.filter((control) => control.kind === "image");
  const made = used.flatMap((control) => state.images[control.name].made || []);
  const lines = [...new Set(made), ...commands];
  byId("command").textContent = lines.join("\n");
  byId("same").hidden = lines.length === 0;
}

function showPlots(plots) {
  const place = byId("plots");
  place.hidden = plots.length === 0;
  place.className = plots.length === 1 ? "one" : "";
  if (place.children.length !== plots.length) {
    place.replaceChildren(...plots.map(() => make("div", {}, make("h2"), make("canvas"), make("p", { className: "legend" }))));
  }
  plots.forEach((plot, i) => {
    const [title, canvas, legend] = place.children[i].children;
    title.textContent = plot.title;
    title.hidden = !plot.title;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", plot.title || plot.clouds.map((cloud) => cloud.name).join(" and "));
    const named = plot.clouds.length > 1 ? plot.clouds : [];
    legend.replaceChildren(...named.map((cloud, c) => make("span", { className: "c" + c, textContent: cloud.name })));
    drawPlot(canvas, plot);
  });
}

function drawPlot(canvas, plot) {
  const side = canvas.clientWidth || 300;
  const scale = window.devicePixelRatio || 1;
  const margin = { left: 40, right: 8, top: 2, bottom: 22 };
  const size = side - margin.left - margin.right;
  const height = size + margin.top + margin.bottom;
  canvas.width = Math.round(side * scale);
  canvas.height = Math.round(height * scale);
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const { top } = margin;
  const [[x0, x1], [y0, y1]] = plot.window;
  const at = (x, y) => [margin.left + ((x - x0) / (x1 - x0)) * size, top + ((y1 - y) / (y1 - y0)) * size];
  const frame = () => {
    pen.strokeStyle = colour("--line");
    pen.lineWidth = 1;
    pen.strokeRect(margin.left, top, size, size);
    pen.fillStyle = colour("--quiet");
    pen.font = "11px system-ui, sans-serif";
    pen.textAlign = "center";
    for (const x of ticks(x0, x1)) pen.fillText(x, at(x, y0)[0], height - 6);
    pen.textAlign = "right";
    for (const y of ticks(y0, y1)) pen.fillText(y, margin.left - 5, at(x0, y)[1] + 4);
  };
  const contents = () => {
    pen.save();
    pen.beginPath();
    pen.rect(margin.left, top, size, size);
    pen.clip();
    for (const line of plot.lines) {
      pen.strokeStyle = line.axis === 0 ? colour("--accent") : "#d7781e";
      pen.lineWidth = line.thick ? 2 : 0.8;
      pen.beginPath();
      for (let i = 0; i < line.points.length; i += 2) pen.lineTo(...at(line.points[i], line.points[i + 1]));
      pen.stroke();
    }
    plot.clouds.forEach((cloud, c) => {
      const own = plot.clouds.length > 1 && c === 0 ? colour("--data") : colour("--accent");
      pen.globalAlpha = 0.65;
      for (let i = 0; i < cloud.points.length; i += 2) {
        const [x, y] = at(cloud.points[i], cloud.points[i + 1]);
        pen.fillStyle = cloud.hues.length ? `hsl(${cloud.hues[i / 2]} 75% 50%)` : own;
        pen.fillRect(x - 1.2, y - 1.2, 2.4, 2.4);
      }
      pen.globalAlpha = 1;
    });
    pen.restore();
    frame();
  };
  if (!plot.raster) return contents();
  const image = new Image();
  image.onload = () => {
    pen.drawImage(image, margin.left, top, size, size);
    contents();
  };
  image.src = plot.raster;
}

// Round numbers of an axis, some four to nine.
function ticks(low, high) {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [5, 2, 1].find((factor) => factor * power <= rough) * power;
  const first = Math.ceil(low / step);
  const count = Math.floor(high / step) - first + 1;
  return Array.from({ length: count }, (_, i) => Number(((first + i) * step).toPrecision(6)));
}

// Controls

function showControls() {
  const { panel } = state;
  const rows = panel.controls.map((control) => builders[control.kind](control, state.values[panel.name]));
  if (panel.strip) rows.push(make("button", { type: "button", textContent: "Film strip", onclick: film }));
  // Whoever steps through images with a key keeps the focus.
  const places = () => [...byId("controls").querySelectorAll("input, select, button")];
  const focused = places().indexOf(document.activeElement);
  byId("controls").replaceChildren(...rows);
  byId("controls").hidden = rows.length === 0;
  places()[focused]?.focus();
}

function field(label, ...children) {
  return make("fieldset", {}, make("legend", { textContent: label }), ...children);
}

// A slider over numbers, or over the list of values that an exported page has.
function slider(label, [min, max, step], list, value, moved) {
  const shown = make("output", { textContent: number(value) });
  const input = make("input", { type: "range", min: list ? 0 : min, max: list ? list.length - 1 : max, step: list ? 1 : step });
  input.value = list ? list.indexOf(value) : value;
  input.setAttribute("aria-valuetext", `${label} ${number(value)}`);
  input.oninput = () => {
    const now = list ? list[Number(input.value)] : Number(Number(input.value).toFixed(6));
    shown.textContent = number(now);
    input.setAttribute("aria-valuetext", `${label} ${number(now)}`);
    moved(now);
  };
  const name = make("span", { textContent: label });
  return make("label", { className: "slider" }, name, shown, input);
}

function number(value) {
  return String(Number(value.toFixed(3)));
}

const builders = {
  slider(control, values) {
    const range = [control.min, control.max, control.step];
    const moved = (value) => change(control.name, value);
    return make("fieldset", {}, slider(control.label, range, control.values, values[control.name], moved));
  },
  sliders(control, values) {
    const range = [control.min, control.max, control.step];
    const list = control.values && positions(control);
    const rows = control.names.map((name) => {
      const moved = (value) => {
        // An exported page has no sums of several.
        const others = saved ? {} : { ...state.values[state.panel.name][control.name] };
        if (value === 0) delete others[name]; else others[name] = value;
        state.moved = name;
        change(control.name, others);
        if (saved) rows.forEach((row, i) => { if (control.names[i] !== name) reset(row, list); });
      };
      return slider(name, range, list, values[control.name][name] || 0, moved);
    });
    const zero = make("button", { type: "button", textContent: "All to 0" });
    zero.onclick = () => { change(control.name, {}); showControls(); };
    const parts = [...rows, make("p", { className: "hint" }, zero)];
    if (saved) parts.push(make("p", { className: "hint", textContent: "One at a time: this page holds no sums." }));
    return field(control.label, ...parts);
  },
  seed(control, values) {
    const list = control.values;
    const input = make("input", { type: "number", min: 0, step: 1, value: values[control.name] });
    if (list) input.max = list[list.length - 1];
    const set = (seed) => {
      if (!Number.isSafeInteger(seed) || seed < 0) return tell("Seed: give a whole number from 0 on.", true);
      if (list && !list.includes(seed)) return tell(`This page holds the seeds 0 to ${list[list.length - 1]}.`, true);
      input.value = seed;
      change(control.name, seed);
    };
    input.setAttribute("aria-label", control.label);
    input.onchange = () => set(input.value === "" ? NaN : Number(input.value));
    const again = make("button", { type: "button", textContent: "Again" });
    again.title = "The next seed";
    again.onclick = () => {
      const next = values[control.name] + 1;
      set(list && !list.includes(next) ? list[0] : next);
    };
    return field(control.label, make("div", { className: "row" }, input, again));
  },
  choice(control, values) {
    const usable = control.options.filter(([value]) => !control.values || control.values.includes(value));
    const options = usable.map(([value, name]) => make("option", { value, textContent: name }));
    const select = make("select", {}, ...options);
    select.value = values[control.name];
    select.setAttribute("aria-label", control.label);
    select.onchange = () => change(control.name, select.value);
    return field(control.label, select);
  },
  checks(control, values) {
    const boxes = control.options.map(([value, name]) => {
      const box = make("input", { type: "checkbox", checked: values[control.name].includes(value) });
      box.onchange = () => {
        const rest = state.values[state.panel.name][control.name].filter((other) => other !== value);
        const now = box.checked ? [...rest, value].sort((a, b) => a - b) : rest;
        if (saved && now.length === 0) {
          box.checked = true;
          return tell("This page holds pictures with at least one level drawn anew.", true);
        }
        change(control.name, now);
      };
      return make("label", { className: "check" }, box, name);
    });
    return field(control.label, ...boxes);
  },
  image: imageControl,
};

function positions(control) {
  const n = state.info.positions;
  const at = (i) => Number((control.min + ((control.max - control.min) * i) / (n - 1)).toFixed(6));
  return Array.from({ length: n }, (_, i) => at(i));
}

function reset(row, list) {
  row.querySelector("input").value = list ? list.indexOf(0) : 0;
  row.querySelector("output").textContent = "0";
}

function imageControl(control) {
  const image = state.images[control.name];
  const count = saved ? control.values.length : control.count;
  const parts = [];
  if (count > 0) {
    const input = make("input", { type: "number", min: 0, max: count - 1, step: 1, value: image.data ?? "" });
    input.setAttribute("aria-label", `${control.label}: number in the data`);
    const set = (data) => {
      if (!Number.isInteger(data) || data < 0 || data >= count) {
        return tell(`${control.label}: give a number from 0 to ${count - 1}.`, true);
      }
      setImage(control.name, { data });
    };
    input.onchange = () => set(input.value === "" ? NaN : Number(input.value));
    const step = (by, text, title) => {
      const button = make("button", { type: "button", textContent: text, title });
      button.onclick = () => set(((state.images[control.name].data ?? -by) + by + count) % count);
      return button;
    };
    const random = make("button", { type: "button", textContent: "Any" });
    random.title = "Any image of the data";
    random.onclick = () => set(Math.floor(Math.random() * count));
    parts.push(make("div", { className: "row" }, input, step(-1, "‹", "The one before"), step(1, "›", "The next one"), random));
  }
  if (!saved) {
    const file = make("input", { type: "file", accept: "image/png,image/jpeg,image/webp,image/gif,image/bmp,image/tiff" });
    file.onchange = () => { if (file.files[0]) takeFile(file.files[0], control.name); };
    parts.push(make("div", { className: "row" }, make("label", { className: "file" }, "Picture of your own…", file)));
  }
  const hint = make("p", { className: "hint" });
  if (image.data !== undefined) {
    hint.textContent = `Image ${image.data} of ${state.info.data || "the data"}, ${count} in all.` + (saved ? "" : " Or drop a file here.");
  } else {
    hint.append(image.from ? `${image.name}, the middle of ${image.from} pixels. ` : `${image.name}, a sample. `);
    const link = make("a", { textContent: "Save it", href: "data:image/png;base64," + image.png, download: image.name.split("/").pop() });
    hint.append(link, " for the command below.");
  }
  parts.push(hint);
  const fieldset = field(control.label, ...parts);
  fieldset.dataset.image = control.name;
  return fieldset;
}

function setImage(name, image) {
  state.images[name] = image;
  const used = state.panel.controls.some((control) => control.kind === "image" && control.name === name);
  if (!used) return;
  byId("film").hidden = true;
  showControls();
  draw();
}

async function takeFile(file, name) {
  const most = state.info.largest_file;
  if (file.size > most) {
    const size = Math.ceil(file.size / 1048576);
    return tell(`${file.name} has ${size} MB: give a picture of at most ${Math.floor(most / 1048576)} MB.`, true);
  }
  try {
    tell(`Reading ${file.name}…`);
    const answer = await ask("file", file);
    const stem = file.name.replace(/\.[^.]*$/, "").slice(0, 100) || "picture";
    const image = { png: answer.png, name: stem + answer.suffix, from: answer.from };
    if (!state.panel.controls.some((control) => control.kind === "image")) choose("bits");
    setImage(name, image);
  } catch (error) {
    tell(error.message.replace(/^The file/, file.name), true);
  }
}

// A file is dropped anywhere; on the field of an image it becomes that one, elsewhere the first.
function listenForFiles() {
  const hasFiles = (event) => [...(event.dataTransfer?.types || [])].includes("Files");
  const over = (event) => event.target instanceof Element && event.target.closest("[data-image]");
  document.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    document.querySelectorAll("fieldset.over").forEach((other) => other.classList.remove("over"));
    const place = over(event);
    document.body.classList.toggle("drag", !place);
    if (place) place.classList.add("over");
  });
  const end = () => {
    document.body.classList.remove("drag");
    document.querySelectorAll("fieldset.over").forEach((place) => place.classList.remove("over"));
  };
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) end(); });
  document.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    end();
    if (saved) return tell("This page holds a fixed set of pictures; `flow explore` itself takes your own.", true);
    if (!state.info.shape) return tell("This model takes no pictures.", true);
    const [file] = event.dataTransfer.files;
    const place = over(event);
    if (file) takeFile(file, place ? place.dataset.image : "a");
  });
}

// Film strips

function frames() {
  const { panel } = state;
  const control = panel.controls.find((other) => other.name === panel.strip);
  const now = valuesOf(panel);
  let values;
  if (control.kind === "seed") {
    values = control.values || positions({ min: 0, max: state.info.positions - 1 }).map((i) => now[control.name] + i);
  } else if (control.kind === "sliders") {
    const name = state.moved || control.names[0];
    const others = saved ? {} : { ...now[control.name] };
    delete others[name];
    values = positions(control).map((value) => (value === 0 ? others : { ...others, [name]: value }));
    return values.map((value, i) => ({ values: { ...now, [control.name]: value }, caption: `${name} ${positions(control)[i]}` }));
  } else {
    values = control.values || positions(control);
  }
  return values.map((value) => ({ values: { ...now, [control.name]: value }, caption: String(value) }));
}

async function film() {
  const { panel } = state;
  const list = frames();
  tell("Drawing the film strip…");
  try {
    let answer = { images: [] };
    if (saved) {
      const answers = await Promise.all(list.map((frame) => picture(panel, frame.values)));
      answer.images = answers.map((one) => one.images.filter((image) => image.main)[0].url);
    } else {
      const body = JSON.stringify({ panel: panel.name, frames: list.map((frame) => frame.values) });
      answer = await ask("strip", body);
      if (answer.waiting) return setTimeout(film, 500);
    }
    if (panel !== state.panel) return;
    tell("");
    const shown = answer.images.map((url, i) => {
      const caption = list[i].caption;
      return make("figure", {}, make("img", { src: url, alt: caption }), make("figcaption", { textContent: caption }));
    });
    byId("frames").replaceChildren(...shown);
    const link = (kind) => make("a", { href: answer[kind], download: `${panel.name}.${kind}`, textContent: kind.toUpperCase() });
    const save = answer.gif ? ["Save as ", link("png"), " or as an animation, ", link("gif"), "."] : [];
    byId("save").replaceChildren(...save);
    byId("film").hidden = false;
    byId("film").scrollIntoView({ block: "nearest" });
  } catch (error) {
    tell(error.message, true);
  }
}

// Tabs

function choose(name) {
  const panel = state.info.panels.find((other) => other.name === name) || state.info.panels[0];
  state.panel = panel;
  for (const tab of byId("tabs").children) {
    const chosen = tab.dataset.name === panel.name;
    tab.setAttribute("aria-selected", chosen);
    tab.tabIndex = chosen ? 0 : -1;
    if (chosen) byId("panel").setAttribute("aria-labelledby", tab.id);
  }
  if (location.hash.slice(1) !== panel.name) history.replaceState(null, "", "#" + panel.name);
  byId("about").textContent = panel.about;
  byId("film").hidden = true;
  byId("progress").hidden = true;
  byId("images").replaceChildren();
  byId("plots").replaceChildren();
  byId("facts").replaceChildren();
  byId("same").hidden = true;
  tell("");
  showControls();
  if (running) running.abort();
  draw();
}

function showTabs() {
  const tabs = state.info.panels.map((panel) => {
    const tab = make("button", { type: "button", id: "tab-" + panel.name, textContent: panel.title });
    tab.setAttribute("role", "tab");
    tab.setAttribute("aria-controls", "panel");
    tab.dataset.name = panel.name;
    tab.onclick = () => choose(panel.name);
    return tab;
  });
  byId("tabs").replaceChildren(...tabs);
  byId("tabs").onkeydown = (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const at = tabs.indexOf(document.activeElement);
    if (!by || at < 0) return;
    event.preventDefault();
    const next = tabs[(at + by + tabs.length) % tabs.length];
    next.focus();
    next.click();
  };
}

async function copy() {
  const text = byId("command").textContent;
  try {
    await navigator.clipboard.writeText(text);
    byId("copy").textContent = "Copied";
    setTimeout(() => { byId("copy").textContent = "Copy"; }, 1500);
  } catch {
    const range = document.createRange();
    range.selectNodeContents(byId("command"));
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    tell("Copying is not allowed here: the command is selected, press Ctrl-C.");
  }
}

async function start() {
  try {
    state.info = saved ? saved.info : await ask("info", "");
  } catch (error) {
    return tell(error.message, true);
  }
  const { info } = state;
  byId("name").textContent = info.name;
  document.title = `${info.name} – flow explore`;
  byId("of").textContent = info.data ? `data: ${info.data}` : "without data";
  for (const panel of info.panels) {
    state.values[panel.name] = Object.fromEntries(panel.controls.map((control) => [control.name, control.value]));
    for (const control of panel.controls) {
      if (control.kind === "image") state.images[control.name] ??= control.value || info.images[control.name];
    }
  }
  byId("copy").onclick = copy;
  byId("controls").onsubmit = (event) => event.preventDefault();
  listenForFiles();
  showTabs();
  // Plots have the colours and the size of the page.
  const again = () => { if (state.answer) showPlots(state.answer.plots); };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  addEventListener("resize", again);
  addEventListener("hashchange", () => { if (location.hash.slice(1) !== state.panel.name) choose(location.hash.slice(1)); });
  choose(location.hash.slice(1));
}

start();
