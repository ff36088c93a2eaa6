/** What the page is drawn with. */

/** Drawn in a box of 24 by 24, by name: a notification gives one as its `icon`. */
export const ICONS = {
  bell: "M6 16v-5a6 6 0 1 1 12 0v5l1.5 2.5h-15L6 16Zm4 5.2h4",
  box: "m4 7.5 8-4 8 4v9l-8 4-8-4v-9Zm0 0 8 4 8-4m-8 4v9M8 5.5l8 4",
  chat: "M4 5h16v11H11l-4.5 4v-4H4V5Zm4 4h8M8 12.3h5",
  check: "M12 3.2a8.8 8.8 0 1 0 0 17.6 8.8 8.8 0 0 0 0-17.6ZM8 12.2l2.8 2.8L16 9.5",
  coin: "M12 3.2a8.8 8.8 0 1 0 0 17.6 8.8 8.8 0 0 0 0-17.6ZM15.5 8.8a4.3 4.3 0 1 0 0 6.4M7.5 11h5m-5 2.4h5",
  rocket:
    "M9 15c-2 0-3.5 1.5-4 5 3.5-.5 5-2 5-4M9 15l-2.5-2.5C8 7 12 3.5 19.5 4.5 20.5 12 17 16 11.5 17.5L9 15Z" +
    "m5.3-7.2a1.7 1.7 0 1 1 0 3.4 1.7 1.7 0 0 1 0-3.4Z",
  images: "M4 5.5h16v13H4v-13Zm0 9.5 4.5-4.5 4 4 2.5-2.5 5 5M15.3 8.2a1.1 1.1 0 1 1 0 2.2 1.1 1.1 0 0 1 0-2.2Z",
  report: "M6 3.5h8l4 4v13H6v-17Zm8 0v4h4M9 17v-3m3 3v-6m3 6v-4.5",
  gap: "M12 4 2.8 20h18.4L12 4Zm0 6v4.5m0 2.6v.4",
};

export function element(name, properties = {}, text = "") {
  const made = Object.assign(document.createElement(name), properties);
  if (text) made.textContent = text;
  return made;
}

/** A badge with one of the ICONS in it. */
export function picture(path) {
  const badge = element("div", { className: "badge", ariaHidden: "true" });
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.append(document.createElementNS(svg.namespaceURI, "path"));
  svg.firstChild.setAttribute("d", path);
  badge.append(svg);
  return badge;
}

export function clock(time) {
  const shown = time.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
  return element("time", { dateTime: time.toISOString(), title: time.toLocaleString() }, shown);
}

/** The same word, the same colour. */
export function hue(word) {
  let sum = 7;
  for (const character of word) sum = (sum * 31 + character.codePointAt(0)) % 360;
  return String(sum);
}
