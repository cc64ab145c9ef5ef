// The picture of the memory: one state, drawn whole every second.
import { drawTree } from "./tree.js";
import { bytes, element, percent, rate, svg } from "./format.js";

const $ = (id) => document.getElementById(id);
const KEPT = 120; // points of the small charts: two minutes
const ORDER = ["runtime", "weights", "tokenizer", "grammars", "kv", "policies", "activations", "staging"];
const COLOURS = { runtime: 0, weights: 1, tokenizer: 6, grammars: 3, kv: 4, policies: 7, activations: 2, staging: 5 };
const history = { rate: [], kv: [], running: [], waiting: [] };
let before = null, chosen = null, shown = null;

export function draw(state) {
  shown = state;
  const now = remember(state);
  drawBudget(state.memory);
  drawCharts(state, now);
  drawSequences(state);
  drawTree($("tree"), $("prefix-sum"), state.prefix);
  $("g-rate").textContent = rate(now);
  $("g-running").textContent = state.queue.running;
  $("g-waiting").textContent = state.queue.waiting;
  $("g-budget").textContent = percent(state.memory.resident_bytes / state.memory.total_bytes);
}

function remember(state) {
  const sampled = state.steps.tokens_sampled;
  const now = before ? Math.max(0, (sampled - before.sampled) / Math.max(0.001, state.time - before.time)) : 0;
  before = { sampled, time: state.time };
  push(history.rate, now);
  push(history.kv, state.kv.used_bytes);
  push(history.running, state.queue.running);
  push(history.waiting, state.queue.waiting);
  return now;
}

function push(list, value) {
  list.push(value);
  if (list.length > KEPT) list.shift();
}

// -- the budget --------------------------------------------------------------------------------------------------------

function drawBudget(memory) {
  const names = Object.keys(memory.accounts).filter((name) => memory.accounts[name].leased_bytes > 0);
  names.sort((a, b) => place(a) - place(b));
  const bar = $("bar"), rows = [];
  const parts = names.map((name) => [name, memory.accounts[name]]);
  fit(bar, parts.length, () => element("i"));
  parts.forEach(([name, account], index) => {
    const part = bar.children[index];
    part.style.width = `${(100 * account.leased_bytes) / memory.total_bytes}%`;
    part.style.background = colour(name);
    part.title = `${name}: ${bytes(account.leased_bytes)} leased, ${bytes(account.resident_bytes)} in memory`;
    rows.push([name, account.leased_bytes, account.resident_bytes]);
  });
  bar.setAttribute("aria-label", rows.map(([name, leased]) => `${name} ${bytes(leased)}`).join(", ") + `, free ${bytes(memory.free_bytes)}`);
  rows.push(["free", memory.free_bytes, null], ["unaccounted", null, memory.unaccounted_bytes]);
  $("accounts").tBodies[0].replaceChildren(...rows.map(accountRow));
  $("budget-sum").textContent = `${bytes(memory.leased_bytes)} leased of ${bytes(memory.total_bytes)}`;
}

function accountRow([name, leased, resident]) {
  const row = element("tr"), cell = element("td");
  const mark = element("span", "key");
  mark.style.background = name === "free" ? "var(--empty)" : name === "unaccounted" ? "transparent" : colour(name);
  cell.append(mark, name);
  row.append(cell, element("td", "", leased === null ? "" : bytes(leased)), element("td", "", resident === null ? "" : bytes(resident)));
  return row;
}

function place(name) {
  const at = ORDER.indexOf(name);
  return at < 0 ? ORDER.length : at;
}

function colour(name) {
  return `var(--a${COLOURS[name] ?? 7})`;
}

// -- small charts ------------------------------------------------------------------------------------------------------

function drawCharts(state, now) {
  const capacity = state.kv.max_blocks * state.kv.block_bytes;
  chart($("rate-chart"), [history.rate]);
  chart($("kv-chart"), [history.kv], Math.max(...history.kv, capacity / 20));
  chart($("queue-chart"), [history.running, history.waiting]);
  $("rate-now").textContent = rate(now);
  $("kv-now").textContent = bytes(state.kv.used_bytes);
  $("kv-now").title = `of ${bytes(capacity)}`;
  $("queue-now").textContent = `${state.queue.running}, ${state.queue.waiting}`;
}

function chart(target, lines, top = 0) {
  const highest = Math.max(top, 1e-9, ...lines.flat()) * 1.08;
  target.setAttribute("viewBox", "0 0 119 40");
  const paths = lines.flatMap((values, line) => {
    const d = values.map((value, i) => `${i ? "L" : "M"}${KEPT - values.length + i} ${(40 - (38 * value) / highest).toFixed(2)}`).join("");
    const drawn = svg("path", { d, class: line ? "second" : "" });
    const start = KEPT - values.length;
    return line || values.length < 2 ? [drawn] : [svg("path", { d: `${d}L119 40L${start} 40Z`, class: "area" }), drawn];
  });
  target.replaceChildren(...paths);
}

// -- sequences and heads -----------------------------------------------------------------------------------------------

function drawSequences(state) {
  const list = $("sequences"), all = state.sequences;
  $("seq-sum").textContent = all.length ? `${bytes(all.reduce((sum, s) => sum + s.kv_bytes, 0))} of pages` : "";
  if (!all.length) {
    list.replaceChildren(element("p", "none", "Nothing runs."));
  } else {
    if (list.firstElementChild?.className === "none") list.replaceChildren();
    const longest = Math.max(...all.map((s) => s.num_tokens));
    fit(list, all.length, sequenceRow);
    all.forEach((sequence, i) => fillRow(list.children[i], sequence, longest));
  }
  drawHeads(looked(all), state.kv);
}

function sequenceRow() {
  const row = element("div", "seq"), track = element("span", "track");
  row.setAttribute("role", "option");
  row.tabIndex = 0;
  track.append(element("i", "kept"), element("i"), element("i", "todo"));
  row.append(element("span", "who"), track, element("span", "much"));
  row.addEventListener("click", () => choose(row));
  row.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(row); }
    const next = { ArrowDown: row.nextElementSibling, ArrowUp: row.previousElementSibling }[event.key];
    if (next) { event.preventDefault(); next.focus(); }
  });
  return row;
}

function choose(row) {
  chosen = chosen === row.sequenceId ? null : row.sequenceId;
  for (const other of row.parentElement.children) other.setAttribute("aria-selected", other.sequenceId === chosen);
  drawHeads(looked(shown.sequences), shown.kv);
}

function looked(all) {
  return all.find((s) => s.id === chosen) ?? all.find((s) => Array.isArray(s.kept)) ?? all.find((s) => s.kept !== null);
}

function fillRow(row, s, longest) {
  row.sequenceId = s.id;
  row.classList.toggle("waiting", !s.running);
  row.setAttribute("aria-selected", s.id === chosen);
  const [who, track, much] = row.children, kept = keptShare(s) * s.num_computed;
  who.textContent = `${s.id} ${s.running ? s.policy : "waits"}`;
  who.title = `${s.request}: ${s.num_prompt} prompt tokens, ${s.num_tokens - s.num_prompt} of the answer, ${s.policy}, granularity ${s.granularity}${s.why ? `; waits: ${s.why}` : ""}`;
  const widths = [kept, s.num_computed - kept, s.num_tokens - s.num_computed];
  widths.forEach((width, i) => { track.children[i].style.width = `${(100 * width) / longest}%`; track.children[i].style.opacity = i === 1 ? 0.25 : 1; });
  much.textContent = `${s.num_tokens} tok · ${bytes(s.kv_bytes)}`;
  row.setAttribute("aria-label", `${who.title}, ${percent(keptShare(s))} of its slots kept, ${bytes(s.kv_bytes)}`);
}

function keptShare(s) {
  if (s.kept === null || !s.num_computed) return 0;
  if (typeof s.kept === "number") return s.kept / s.num_computed;
  const cells = s.kept.flat();
  return cells.reduce((sum, n) => sum + n, 0) / cells.length / s.num_computed;
}

function drawHeads(s, kv) {
  $("heads").hidden = !s || s.kept === null;
  if ($("heads").hidden) return;
  const grid = $("grid"), layers = kv.num_layers, heads = kv.num_kv_heads;
  fit(grid, layers * heads, () => element("i"));
  // A layer is a column where there are more layers than heads: models are deep, screens are wide.
  grid.style.setProperty("--cell", heads <= 4 ? "1.3rem" : heads <= 16 ? ".8rem" : ".45rem");
  grid.style.gridTemplateColumns = `repeat(${layers}, minmax(0, 1fr))`;
  for (let head = 0; head < heads; head += 1) {
    for (let layer = 0; layer < layers; layer += 1) {
      const kept = typeof s.kept === "number" ? s.kept : s.kept[layer][head];
      const cell = grid.children[head * layers + layer];
      cell.style.setProperty("--kept", s.num_computed ? Math.min(1, kept / s.num_computed) : 0);
      cell.title = `layer ${layer}, head ${head}: ${kept} of ${s.num_computed} slots`;
    }
  }
  $("heads-of").textContent = `${s.policy}, ${percent(keptShare(s))} of ${s.num_computed} tokens`;
  grid.setAttribute("aria-label", `${layers} layers by ${heads} heads, ${percent(keptShare(s))} of the slots kept`);
}

function fit(parent, count, make) {
  while (parent.children.length > count) parent.lastElementChild.remove();
  while (parent.children.length < count) parent.append(make());
}
