// Starts both halves and keeps the picture moving: one small request a second, none while nobody looks.
import { getJSON } from "./api.js";
import { startChat } from "./chat.js";
import { draw } from "./memory.js";

const $ = (id) => document.getElementById(id);
const PERIOD = 1000;
let model = null;

function tabs() {
  const all = [...document.querySelectorAll("[role=tab]")];
  const show = (tab) => {
    for (const each of all) {
      const on = each === tab;
      each.setAttribute("aria-selected", on);
      each.tabIndex = on ? 0 : -1;
      $(each.getAttribute("aria-controls")).toggleAttribute("data-shown", on);
    }
  };
  for (const tab of all) {
    tab.addEventListener("click", () => show(tab));
    tab.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
      const other = all[1 - all.indexOf(tab)];
      show(other);
      other.focus();
    });
  }
}

async function tick() {
  if (!document.hidden) {
    try {
      const state = await getJSON("api/state");
      model = state.model.name;
      $("model").textContent = model;
      status(state.state === "ready" ? "ready" : "lost", state.state === "ready" ? "" : state.state);
      draw(state);
    } catch (error) {
      status("lost", error.status === 401 ? "needs the API key (Options)" : "no answer");
    }
  }
  setTimeout(tick, PERIOD);
}

function status(kind, text) {
  $("dot").className = `dot ${kind}`;
  $("state").textContent = text;
  $("trouble").hidden = kind === "ready";
  $("trouble").textContent = kind === "ready" ? "" : `The picture stands still: ${text}.`;
}

tabs();
startChat(() => model);
tick();
