// The conversation: what was said, what is being said, and how to stop it.
import { key, streamChat } from "./api.js";
import { bytes, element, seconds } from "./format.js";

const $ = (id) => document.getElementById(id);
const messages = [];
let stopper = null;

export function startChat(modelName) {
  $("form").addEventListener("submit", (event) => { event.preventDefault(); send(modelName()); });
  $("input").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(modelName()); }
  });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") stop(); });
  $("stop").addEventListener("click", stop);
  $("new").addEventListener("click", clear);
  $("input").addEventListener("input", grow);
  $("key").value = key();
  $("key").addEventListener("change", () => key($("key").value.trim()));
}

function stop() {
  stopper?.abort();
}

function clear() {
  stop();
  messages.length = 0;
  $("log").replaceChildren(empty);
  $("input").focus();
}

const empty = $("empty");

function grow() {
  const field = $("input");
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + 2}px`;
}

function turn(role, text) {
  empty.remove();
  const made = element("div", `turn ${role}`);
  made.setAttribute("aria-label", role === "user" ? "You" : "Model");
  made.append(element("span", "body", text));
  $("log").append(made);
  made.scrollIntoView({ block: "end" });
  return made;
}

function request(model) {
  const body = { model, messages: [...messages] };
  if ($("system").value.trim()) body.messages.unshift({ role: "system", content: $("system").value.trim() });
  if ($("kv").value.trim()) body.kv = $("kv").value.trim();
  if ($("temperature").value !== "") body.temperature = Number($("temperature").value);
  if ($("max_tokens").value !== "") body.max_completion_tokens = Number($("max_tokens").value);
  return body;
}

async function send(model) {
  const text = $("input").value.trim();
  if (!text || stopper) return;
  messages.push({ role: "user", content: text });
  turn("user", text);
  $("input").value = "";
  grow();
  const shown = turn("assistant", "");
  shown.classList.add("streaming");
  busy(true);
  const said = { content: "", reasoning: "" };
  try {
    const end = await streamChat(request(model), stopper.signal, (delta) => write(shown, said, delta));
    note(shown, end);
  } catch (error) {
    fail(shown, error);
  }
  if (said.content) messages.push({ role: "assistant", content: said.content });
  else messages.pop();
  shown.classList.remove("streaming");
  busy(false);
}

function write(shown, said, delta) {
  const log = $("log");
  const follows = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
  said.content += delta.content;
  said.reasoning += delta.reasoning;
  shown.querySelector(".body").textContent = said.content;
  if (delta.reasoning) thought(shown).textContent = said.reasoning;
  if (follows) log.scrollTop = log.scrollHeight;
}

function thought(shown) {
  let box = shown.querySelector(".thought");
  if (!box) {
    box = element("details", "thought");
    box.open = true;
    box.append(element("summary", "", "Reasoning"), element("span", "text"));
    shown.prepend(box);
  }
  return box.querySelector(".text");
}

function note(shown, end) {
  const parts = [];
  if (end.usage) parts.push(`${end.usage.completion_tokens} tokens`);
  if (end.usage?.prompt_tokens_details.cached_tokens) parts.push(`${end.usage.prompt_tokens_details.cached_tokens} of ${end.usage.prompt_tokens} prompt tokens from the cache`);
  if (end.metrics?.first_token_seconds != null) parts.push(`first after ${seconds(end.metrics.first_token_seconds)}`);
  if (end.metrics) parts.push(`${bytes(end.metrics.kv_bytes_peak)} of KV`);
  if (end.finish === "length") parts.push("cut by the limit");
  if (parts.length) shown.append(element("span", "meta", parts.join(" · ")));
}

function fail(shown, error) {
  const stopped = error.name === "AbortError";
  const text = stopped ? "stopped" : error.status === 401 ? `${error.message}; set the API key under Options` : error.message;
  shown.append(element("span", stopped ? "meta" : "meta error", text));
}

function busy(on) {
  stopper = on ? new AbortController() : null;
  $("send").hidden = on;
  $("stop").hidden = !on;
  if (!on && document.activeElement === document.body) $("input").focus();
}
