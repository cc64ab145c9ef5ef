// Numbers as people read them.
export function bytes(n) {
  const sign = n < 0 ? "−" : "";
  let size = Math.abs(n), unit = 0;
  while (size >= 1023.5 && unit < 4) { size /= 1024; unit += 1; }
  const digits = unit === 0 ? 0 : size < 9.995 ? 2 : size < 99.95 ? 1 : 0;
  return `${sign}${size.toFixed(digits)} ${["B", "KiB", "MiB", "GiB", "TiB"][unit]}`;
}

export function percent(share) {
  return `${(100 * share).toFixed(share < 0.1 && share > 0 ? 1 : 0)} %`;
}

export function seconds(s) {
  return s < 1 ? `${Math.round(1000 * s)} ms` : `${s.toFixed(1)} s`;
}

export function rate(n) {
  return n >= 100 ? n.toFixed(0) : n >= 10 ? n.toFixed(1) : n > 0 ? n.toFixed(2) : "0";
}

export function element(tag, name = "", text = "") {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== "") made.textContent = text;
  return made;
}

const SVG = "http://www.w3.org/2000/svg";

export function svg(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}
