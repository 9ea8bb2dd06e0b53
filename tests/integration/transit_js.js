// Reads Transit with Cognitect's transit-js: each input line is a JSON string with a Transit text.
// Writes one line of JSON for each: the value with its type.

const readline = require("node:readline");
const transit = require("transit-js");

function describe(value) {
  if (value === null || typeof value === "boolean") return ["constant", value];
  if (typeof value === "string") return ["text", value];
  if (typeof value === "number") {
    return ["number", Number.isFinite(value) ? value : String(value)];
  }
  if (transit.isBigInt(value)) return ["integer", value.rep];
  if (transit.isInteger(value)) return ["integer", value.toString()];
  if (transit.isKeyword(value)) return ["keyword", value.toString().slice(1)];
  if (transit.isSymbol(value)) return ["symbol", value.toString()];
  if (transit.isUUID(value)) return ["uuid", value.toString()];
  if (value instanceof Date) return ["instant", value.getTime()];
  if (transit.isBinary(value)) return ["bytes", Array.from(value)];
  if (Array.isArray(value)) return ["vector", ...value.map(describe)];
  if (transit.isSet(value)) return ["set", ...Array.from(value.values(), describe)];
  if (transit.isMap(value)) {
    return ["map", ...Array.from(value.entries(), (pair) => pair.map(describe))];
  }
  if (transit.isTaggedValue(value)) return ["tagged", value.tag, describe(value.rep)];
  throw new Error(`transit-js read a value of an unknown type: ${value}`);
}

readline.createInterface({ input: process.stdin }).on("line", (line) => {
  let result;
  try {
    result = describe(transit.reader("json").read(JSON.parse(line)));
  } catch (error) {
    result = ["error", String(error)];
  }
  process.stdout.write(`${JSON.stringify(result)}\n`);
});
