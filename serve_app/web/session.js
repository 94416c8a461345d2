// The API key, for this tab only: sessionStorage ends with the tab and no other site can read it.

const NAME = "flux-serve.key";

export function storedKey() {
  return sessionStorage.getItem(NAME);
}

export function storeKey(key) {
  sessionStorage.setItem(NAME, key);
}

export function forgetKey() {
  sessionStorage.removeItem(NAME);
}
