// Numbers as a person reads them. One language for now: the page's.

const whole = new Intl.NumberFormat("en");

/** 65536 -> "65,536". */
export function units(value) {
  return whole.format(value);
}

const moment = new Intl.DateTimeFormat("en", { dateStyle: "medium", timeStyle: "short" });

/** ISO 8601 -> "Nov 22, 2026, 2:05 PM", where the person is. */
export function when(iso) {
  return moment.format(new Date(iso));
}

/** Seconds -> "0.4 s", "12 s", "3 min". */
export function duration(seconds) {
  if (seconds < 0.1) return "under 0.1 s";
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return `${Math.round(seconds / 60)} min`;
}

/** 1, "picture" -> "1 picture"; 2 -> "2 pictures". */
export function count(value, noun) {
  return `${units(value)} ${noun}${value === 1 ? "" : "s"}`;
}

/** "256x512" -> "256 × 512". */
export function size(text) {
  return text.replace("x", " × ");
}
