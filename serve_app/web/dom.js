// Elements without markup: text stays text, whoever wrote it. The page's policy forbids innerHTML.

/** The element of an id, which must be there. */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`no element #${id}`);
  return found;
}

/** Make an element: properties that start with "aria-" or "data-" become attributes. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("aria-") || name.startsWith("data-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/** Show one of several elements, hide the others. */
export function showOnly(shown, elements) {
  for (const element of elements) element.hidden = !shown.includes(element);
}

/** Wire the buttons with `data-close` of a dialog, and a click beside it. */
export function closable(dialog) {
  for (const button of dialog.querySelectorAll("[data-close]")) {
    button.addEventListener("click", () => dialog.close());
  }
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
}
