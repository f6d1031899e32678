// node qjs.mjs FOLDER ENTRY ROOT WIT WORLD OUT: an ES module to a component.  FOLDER has componentize-qjs in its
// node_modules; imports are resolved below ROOT.
import { createRequire } from "node:module";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [folder, entry, root, wit, world, out] = process.argv.slice(2);
const qjs = createRequire(join(folder, "x.js")).resolve("componentize-qjs");
const module = await import(pathToFileURL(qjs));
const componentize = module.componentize ?? module.default.componentize;
const { component } = await componentize({
  witPath: wit, jsSource: readFileSync(entry, "utf8"), jsPath: entry, moduleRoot: root, world, sync: true, stubWasi: true,
});
writeFileSync(out, component);
