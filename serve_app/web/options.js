// What a model accepts, as choices: from the `capabilities` of GET /v1/models.

const SHAPES = [
  [256, 256], [512, 512], [768, 768], [1024, 1024], [1536, 1536], [2048, 2048],
  [512, 768], [768, 1024], [768, 1344], [768, 512], [1024, 768], [1344, 768],
];
const QUALITIES = [
  ["low", "Low"], ["auto", "Standard"], ["medium", "Medium"], ["standard", "Standard"],
  ["high", "High"], ["hd", "HD"], ["xhigh", "Extra"], ["max", "Max"],
];
const EXAMPLES = new Map([
  // It knows shapes, colours and numbers, and nothing else.
  ["flux-mini", ["a red circle on a blue background", "three yellow stars on a black background", "a green heart on a white background"]],
]);
const EXAMPLES_OF_OTHERS = [
  "A cute baby sea otter floating on its back",
  "A lighthouse on a cliff at dusk, watercolour",
  "Isometric city block in the rain, neon signs",
];

/** Prompts to begin with. */
export function examples(model) {
  return EXAMPLES.get(model.id) ?? EXAMPLES_OF_OTHERS;
}

/** Sizes of the list that the model accepts, its default among them; [value, label] each. */
export function sizes({ default_size, min_edge, max_edge, max_pixels, size_multiple }) {
  const fits = ([width, height]) =>
    Math.min(width, height) >= min_edge &&
    Math.max(width, height) <= max_edge &&
    width * height <= max_pixels &&
    width % size_multiple === 0 &&
    height % size_multiple === 0;
  const found = SHAPES.filter(fits);
  const standard = default_size.split("x").map(Number);
  if (!found.some((shape) => shape.join("x") === default_size)) found.unshift(standard);
  return found.map(([width, height]) => [`${width}x${height}`, `${width} × ${height}`]);
}

/** One quality for each number of steps, fewest first: {value, label, steps}. */
export function qualities({ quality_steps }) {
  const found = new Map();
  for (const [value, label] of QUALITIES) {
    const steps = quality_steps[value];
    if (steps && !found.has(steps)) found.set(steps, { value, label, steps });
  }
  return [...found.values()].sort((one, other) => one.steps - other.steps);
}
