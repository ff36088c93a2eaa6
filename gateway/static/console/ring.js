// The ring, drawn: every partition a piece of the circle, in the colour of its home node.

const SVG = "http://www.w3.org/2000/svg";
const OUTER = 96, INNER = 74, COLOURS = 8;

const point = (radius, turn) => {
  const angle = 2 * Math.PI * turn - Math.PI / 2;
  return `${(radius * Math.cos(angle)).toFixed(2)} ${(radius * Math.sin(angle)).toFixed(2)}`;
};

function piece(from, to) {
  if (to - from >= 1) return piece(0, 0.5) + piece(0.5, 1 - 1e-9);
  const wide = to - from > 0.5 ? 1 : 0;
  return `M${point(OUTER, from)}A${OUTER} ${OUTER} 0 ${wide} 1 ${point(OUTER, to)}`
    + `L${point(INNER, to)}A${INNER} ${INNER} 0 ${wide} 0 ${point(INNER, from)}Z`;
}

function element(name, attributes, text = "") {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

/** The colour of a node, by its place among all. */
export function colour(index) {
  return `var(--n${index % COLOURS})`;
}

/**
 * Draw it anew.
 * @param {SVGElement} svg
 * @param {{partitions: number, on_ring: string[], homes: number[]}} view
 * @param {number | undefined} marked a partition that is pointed at
 */
export function draw(svg, view, marked) {
  const paths = view.on_ring.map(() => "");
  const { homes, partitions } = view;
  for (let first = 0; first < homes.length; ) {
    let next = first + 1;
    while (next < homes.length && homes[next] === homes[first]) next += 1;
    paths[homes[first]] += piece(first / partitions, next / partitions);
    first = next;
  }
  const drawn = paths.map((path, index) => {
    const arc = element("path", { d: path, "data-node": view.on_ring[index] });
    arc.style.fill = colour(index);
    arc.append(element("title", {}, `${view.on_ring[index]}: home of ${homes.filter((home) => home === index).length}`));
    return arc;
  });
  drawn.push(element("text", { y: 2 }, String(partitions)), element("text", { y: 14, class: "small" }, "partitions"));
  if (marked !== undefined) {
    const turn = (marked + 0.5) / partitions;
    drawn.push(element("path", { d: `M${point(INNER - 14, turn)}L${point(OUTER + 10, turn)}`, class: "mark" }));
  }
  svg.replaceChildren(...drawn);
}
