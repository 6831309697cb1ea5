// The page: documents, their order, questions, and what each answer took.
//
// Texts of models, documents and errors are only ever put in as text, never as HTML.

const KEY = "legokv-key";
const POLL_MS = 1500;
const PARTS = ["cached", "compiled", "recomputed", "fresh"];

const state = { model: "", files: [], order: [], polling: 0 };

const $ = (id) => document.getElementById(id);

/** An element with attributes, properties by function names as listeners, and children. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

const button = (text, label, click, attributes = {}) =>
  make("button", { type: "button", "aria-label": label, title: label, click, ...attributes }, text);

const counted = (number, noun) => `${number.toLocaleString()} ${noun}${number === 1 ? "" : "s"}`;

function tell(sentence) {
  $("told").textContent = sentence;
}

// --- requests ---

/** A response that is no error; throws a sentence. A missing key is asked for. */
async function call(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key ? { authorization: `Bearer ${key}` } : {}) };
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  const body = await response.text();
  if (response.status === 401) askForKey(sentenceOf(body));
  throw new Error(sentenceOf(body) || `the server answered ${response.status}`);
}

function sentenceOf(body) {
  try {
    return String(JSON.parse(body).error.message);
  } catch {
    return body.slice(0, 300);
  }
}

function askForKey(reason) {
  $("ask-key").hidden = false;
  if ($("key-dialog").open) return;
  if (sessionStorage.getItem(KEY)) $("key-reason").textContent = reason;
  $("key-dialog").showModal();
}

// --- documents ---

async function loadFiles() {
  clearTimeout(state.polling);
  try {
    state.files = (await (await call("/v1/files?order=asc&tiers=true")).json()).data;
    $("documents-error").textContent = "";
  } catch (error) {
    $("documents-error").textContent = error.message;
  }
  const ids = new Set(state.files.map((file) => file.id));
  state.order = state.order.filter((id) => ids.has(id));
  showFiles();
  showOrder();
  const unfinished = state.files.some((file) => file.status === "uploaded");
  state.polling = setTimeout(loadFiles, unfinished ? POLL_MS : 10 * POLL_MS);
}

function factsOf(file) {
  const own = file.legokv ?? {};
  const facts = [file.status];
  if (own.num_tokens !== undefined) facts.push(counted(own.num_tokens, "token"));
  if (own.num_chunks !== undefined) facts.push(`${own.compiled_chunks} of ${counted(own.num_chunks, "chunk")}`);
  facts.push(counted(file.bytes, "byte"));
  if (own.tiers) facts.push(Object.entries(own.tiers).map(([tier, n]) => `${tier} ${n}`).join(" · ") || "in no tier");
  if (file.status === "error" && file.status_details) facts.push(String(file.status_details));
  return facts.join(" · ");
}

/** Put new children in only where something changed, so that focus stays. */
function refresh(list, children) {
  const text = (nodes) => nodes.map((node) => node.outerHTML).join();
  if (text([...list.children]) === text(children)) return;
  const label = list.contains(document.activeElement) ? document.activeElement.getAttribute("aria-label") : null;
  list.replaceChildren(...children);
  if (label) list.querySelector(`[aria-label="${CSS.escape(label)}"]`)?.focus();
}

function showFiles() {
  const items = state.files.map((file) =>
    make("li", { "data-id": file.id, "data-status": file.status },
      make("span", { class: "name" }, file.filename),
      button("Add", `Add ${file.filename} to the prompt`, () => add(file), { disabled: state.order.includes(file.id) }),
      button("Delete", `Delete ${file.filename}`, () => remove(file)),
      make("span", { class: "facts" }, factsOf(file))));
  refresh($("documents"), items.length ? items : [make("li", { class: "soft" }, "None yet.")]);
}

function add(file) {
  state.order.push(file.id);
  showFiles();
  showOrder();
  tell(`${file.filename} is document ${state.order.length} of the prompt`);
}

async function remove(file) {
  try {
    await call(`/v1/files/${encodeURIComponent(file.id)}`, { method: "DELETE" });
    tell(`${file.filename} is deleted`);
  } catch (error) {
    $("documents-error").textContent = error.message;
  }
  await loadFiles();
}

async function upload(files) {
  for (const file of files) {
    const form = new FormData();
    form.append("purpose", "user_data");
    form.append("file", file, file.name);
    try {
      const made = await (await call("/v1/files", { method: "POST", body: form })).json();
      if (!state.order.includes(made.id)) state.order.push(made.id);
      tell(`${file.name} is uploaded`);
    } catch (error) {
      tell(`${file.name}: ${error.message}`);
      await loadFiles();
      $("documents-error").textContent = `${file.name}: ${error.message}`;
      return;
    }
  }
  await loadFiles();
}

// --- order ---

function showOrder() {
  const names = new Map(state.files.map((file) => [file.id, file.filename]));
  const last = state.order.length - 1;
  const items = state.order.filter((id) => names.has(id)).map((id, place) => {
    const name = names.get(id);
    return make("li", {
      draggable: "true", tabindex: "0", "data-id": id, "aria-label": `${name}, document ${place + 1} of ${last + 1}`,
      dragstart: (event) => event.dataTransfer.setData("text/plain", id),
      dragover: (event) => { event.preventDefault(); event.currentTarget.classList.add("over"); },
      dragleave: (event) => event.currentTarget.classList.remove("over"),
      drop: (event) => dropOn(event, id),
      keydown: (event) => moveByKey(event, id),
    },
      make("span", { class: "name" }, name),
      button("↑", `Move ${name} up`, () => move(id, -1), { disabled: place === 0 }),
      button("↓", `Move ${name} down`, () => move(id, 1), { disabled: place === last }),
      button("×", `Take ${name} out of the prompt`, () => takeOut(id)));
  });
  refresh($("order"), items.length ? items : [make("li", { class: "soft" }, "No document: the model is asked alone.")]);
}

function dropOn(event, target) {
  event.preventDefault();
  event.stopPropagation();
  const id = event.dataTransfer.getData("text/plain");
  event.currentTarget.classList.remove("over");
  if (id === target || !state.order.includes(id)) return;
  const place = state.order.indexOf(target);
  state.order = state.order.filter((other) => other !== id);
  state.order.splice(place, 0, id);
  showOrder();
}

function moveByKey(event, id) {
  const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
  if (!event.altKey || !step) return;
  event.preventDefault();
  move(id, step);
  $("order").querySelector(`[data-id="${CSS.escape(id)}"]`)?.focus();
}

function move(id, step) {
  const place = state.order.indexOf(id), next = place + step;
  if (next < 0 || next >= state.order.length) return;
  [state.order[place], state.order[next]] = [state.order[next], state.order[place]];
  showOrder();
  tell(`now document ${next + 1} of ${state.order.length}`);
}

function takeOut(id) {
  state.order = state.order.filter((other) => other !== id);
  showFiles();
  showOrder();
}

// --- questions ---

function linkOf(mode, tokens) {
  return ["legolink-0", "full"].includes(mode) ? { mode } : { mode, link_tokens: tokens };
}

function questionOf() {
  const parts = state.order.map((id) => ({ type: "file", file: { file_id: id } }));
  return {
    model: state.model,
    messages: [{ role: "user", content: [...parts, { type: "text", text: $("question").value }] }],
    max_tokens: Number($("max-tokens").value),
    temperature: Number($("temperature").value),
    link: linkOf($("mode").value, Number($("link-tokens").value)),
    stream: true,
    stream_options: { include_usage: true },
  };
}

function ask(event) {
  event.preventDefault();
  const question = questionOf();
  const pair = make("div", { class: "pair" });
  const again = button("Ask the same with everything recomputed", "Ask the same with everything recomputed", () => {
    again.disabled = true;
    run(pair, "everything recomputed", { ...question, link: { mode: "full" } });
  }, { hidden: question.link.mode === "full" });
  const article = make("article", { "aria-label": "Answer" },
    make("h2", {}, $("question").value), pair, again);
  $("answers").prepend(article);
  run(pair, question.link.mode === "full" ? "everything recomputed" : "linked", question);
}

/** Ask, and show the answer as it comes in a column of its own. */
async function run(pair, title, question) {
  const text = make("div", { class: "text", "data-mode": question.link.mode });
  const facts = make("div", { "aria-live": "polite" });
  const leaving = new AbortController();
  const stop = button("Stop", `Stop the answer, ${title}`, () => leaving.abort());
  pair.append(make("div", { class: "column" }, make("strong", {}, title), " ", stop, text, facts));
  const began = performance.now();
  let first = null, usage = null;
  try {
    const response = await call("/v1/chat/completions", {
      method: "POST", signal: leaving.signal,
      headers: { "content-type": "application/json" }, body: JSON.stringify(question),
    });
    for await (const chunk of events(response)) {
      if (chunk.error) throw new Error(chunk.error.message);
      const piece = chunk.choices?.[0]?.delta?.content;
      if (piece) {
        first ??= performance.now() - began;
        text.append(piece);
      }
      usage = chunk.usage ?? usage;
    }
    facts.append(...took(usage, first, performance.now() - began));
  } catch (error) {
    const sentence = leaving.signal.aborted ? "stopped" : error.message;
    facts.append(make("p", { class: "wrong" }, sentence));
  }
  stop.remove();
  loadFiles();
}

/** The JSON of each server-sent event. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
    }
  }
}

/** Tokens of a prompt by what was done for them; together they are all of it. */
function partsOf(usage) {
  const own = usage.legokv ?? {};
  const stored = own.cached_tokens ?? usage.prompt_tokens_details?.cached_tokens ?? 0;
  const compiled = Math.min(stored, own.compiled_tokens ?? usage.prompt_tokens_details?.cache_write_tokens ?? 0);
  const recomputed = own.recomputed_tokens ?? 0;
  return { cached: stored - compiled, compiled, recomputed, fresh: usage.prompt_tokens - stored - recomputed };
}

function took(usage, first, total) {
  if (!usage) return [];
  const parts = partsOf(usage);
  const shown = PARTS.map((name) => `${parts[name]} ${name}`).join(", ");
  const bar = make("div", { class: "bar", role: "img", "aria-label": `Prompt of ${usage.prompt_tokens} tokens: ${shown}` });
  const legend = make("div", { class: "legend", "aria-hidden": "true" });
  for (const name of PARTS) {
    if (parts[name]) {
      const part = make("span", { class: name, title: `${parts[name]} ${name}` });
      part.style.flexGrow = parts[name];
      bar.append(part);
    }
    legend.append(make("span", {}, make("span", { class: `key ${name}` }), `${parts[name].toLocaleString()} ${name}`));
  }
  return [bar, legend, make("p", { class: "times soft" }, timesOf(usage, first, total))];
}

function timesOf(usage, first, total) {
  const inside = usage.legokv?.time_to_first_token_seconds;
  const ms = (number) => `${Math.round(number).toLocaleString()} ms`;
  const times = [];
  if (inside !== undefined) times.push(`first token after ${ms(1000 * inside)} in the server`);
  if (first !== null) times.push(`${ms(first)} here`);
  times.push(`${counted(usage.completion_tokens, "token")} in ${ms(total)}`);
  return times.join(", ");
}

// --- the server ---

async function loadModel() {
  try {
    const models = await (await call("/v1/models")).json();
    state.model = models.data[0].id;
    $("model").textContent = state.model;
  } catch (error) {
    $("model").textContent = error.message;
  }
}

async function loadReadiness() {
  try {
    const response = await fetch("/ready");
    $("ready").textContent = response.ok ? "ready" : sentenceOf(await response.text());
  } catch {
    $("ready").textContent = "not reached";
  }
  setTimeout(loadReadiness, 10 * POLL_MS);
}

/** A link sends no key: with one, the figures are fetched and shown as a text of this tab's own. */
async function showMetrics(event) {
  if (!sessionStorage.getItem(KEY)) return;
  event.preventDefault();
  try {
    const text = await (await call("/metrics")).text();
    window.open(URL.createObjectURL(new Blob([text], { type: "text/plain" })));
  } catch (error) {
    $("documents-error").textContent = error.message;
  }
}

function begin() {
  loadModel();
  loadFiles();
}

$("upload").addEventListener("change", async (event) => {
  await upload([...event.target.files]);
  $("upload").value = "";
});
$("drop").addEventListener("dragover", (event) => event.preventDefault());
$("drop").addEventListener("drop", (event) => {
  event.preventDefault();
  upload([...event.dataTransfer.files]);
});
$("form").addEventListener("submit", ask);
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
});
$("mode").addEventListener("change", () => {
  $("link-tokens").disabled = ["legolink-0", "full"].includes($("mode").value);
});
$("metrics").addEventListener("click", showMetrics);
$("ask-key").addEventListener("click", () => $("key-dialog").showModal());
$("key-form").addEventListener("submit", () => {
  sessionStorage.setItem(KEY, $("key").value.trim());
  $("key").value = "";
  begin();
});
begin();
loadReadiness();
