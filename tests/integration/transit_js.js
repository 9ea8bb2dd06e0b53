// Reads Transit with Cognitect's transit-js: a text of it in each line, as a JSON string. Answers each
// with a line of JSON, which is what it has read, kinds and all.

const readline = require("node:readline");
const transit = require("transit-js");

function told(value) {
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
  if (Array.isArray(value)) return ["vector", ...value.map(told)];
  if (transit.isSet(value)) return ["set", ...Array.from(value.values(), told)];
  if (transit.isMap(value)) return ["map", ...Array.from(value.entries(), (pair) => pair.map(told))];
  if (transit.isTaggedValue(value)) return ["tagged", value.tag, told(value.rep)];
  throw new Error(`transit-js has read something unheard of: ${value}`);
}

readline.createInterface({ input: process.stdin }).on("line", (line) => {
  let answer;
  try {
    answer = told(transit.reader("json").read(JSON.parse(line)));
  } catch (error) {
    answer = ["error", String(error)];
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
});
