// The prefix cache as an icicle: a text runs from left to right, texts with the same beginning share what is left.
import { svg } from "./format.js";

const MAX_ROWS = 40, ROW = 11;

export function drawTree(target, sum, prefix) {
  if (!prefix) {
    sum.textContent = "switched off";
    target.replaceChildren();
    target.setAttribute("height", 0);
    return;
  }
  const looked = prefix.num_hit_pages + prefix.num_missed_pages;
  sum.textContent = `${prefix.num_pages} pages, ${prefix.num_idle_pages} idle` + (looked ? `, ${Math.round((100 * prefix.num_hit_pages) / looked)} % found` : "");
  const nodes = prefix.nodes ?? [];
  const children = new Map();
  nodes.forEach((node, i) => children.set(node.parent, [...(children.get(node.parent) ?? []), i]));
  const rects = [], rows = { next: 0 };
  for (const root of children.get(null) ?? []) place(root, 0);
  const deepest = Math.max(1, ...rects.map((r) => r.x + r.width));
  target.setAttribute("viewBox", `0 0 ${deepest} ${Math.max(1, rows.next) * ROW}`);
  target.setAttribute("preserveAspectRatio", "none");
  target.setAttribute("height", Math.max(1, rows.next) * ROW);
  target.setAttribute("aria-label", `Prefix cache: ${prefix.num_pages} pages in ${nodes.length} runs, ${prefix.num_idle_pages} idle`);
  target.replaceChildren(...rects.map((r) => {
    const box = svg("rect", { x: r.x, y: r.y, width: r.width, height: r.height, class: r.kind, "vector-effect": "non-scaling-stroke" });
    box.append(svg("title", {}));
    box.firstChild.textContent = r.title;
    return box;
  }));

  function place(i, x) {
    const node = nodes[i], first = rows.next;
    for (const child of children.get(i) ?? []) if (rows.next < MAX_ROWS) place(child, x + node.num_pages);
    if (rows.next === first && rows.next < MAX_ROWS) rows.next += 1;
    const kind = node.pinned ? "pinned" : node.num_users ? "used" : "idle";
    const title = `${node.num_pages} pages, ${node.num_users ? `${node.num_users} users` : "idle"}${node.pinned ? ", pinned" : ""}`;
    rects.push({ x, y: first * ROW, width: node.num_pages, height: Math.max(1, rows.next - first) * ROW, kind, title });
  }
}
