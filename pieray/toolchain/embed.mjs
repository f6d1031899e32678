// node embed.mjs FOLDER CORE WIT WORLD OUT: a core module to a component.  FOLDER has jco in its node_modules.
import { createRequire } from "node:module";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [folder, core, wit, world, out] = process.argv.slice(2);
const jco = createRequire(join(folder, "x.js")).resolve("@bytecodealliance/jco");
const { componentEmbed, componentNew } = await import(pathToFileURL(jco));
const embedded = await componentEmbed({ binary: readFileSync(core), witSource: readFileSync(wit, "utf8"), world });
writeFileSync(out, await componentNew(embedded, []));
