// API keys, for this tab only: sessionStorage ends with the tab and no other site can read it. The admin
// page keeps its own, as a key that opens it need not draw.

export function storedKey(page = "key") {
  return sessionStorage.getItem(name(page));
}

export function storeKey(key, page = "key") {
  sessionStorage.setItem(name(page), key);
}

export function forgetKey(page = "key") {
  sessionStorage.removeItem(name(page));
}

function name(page) {
  return `flux-serve.${page}`;
}
