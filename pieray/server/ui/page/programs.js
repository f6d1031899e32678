// Programs: those that come with pieray, and those that are installed; who administers the server installs more.

import { ask } from "./api.js";
import { byId, cell, confirmed, el, notice, setText, table } from "./dom.js";

const TITLES = [["Program"], ["Version"], ["Where"], ["What it does"], [""]];

export class ProgramsView {
  /** `onChange` is told the programs, whenever they are read. */
  constructor({ onChange }) {
    this.onChange = onChange;
    this.isAdmin = false;
    byId("install").onclick = () => this.install();
  }

  /** Who looks: `caller` and `asks_for_keys` of the engine's facts. */
  may(caller, asksForKeys) {
    this.isAdmin = caller.is_admin;
    byId("install").disabled = byId("file").disabled = !caller.is_admin;
    setText(byId("may-install"), caller.is_admin ? "A Python file, with its name and version in it." : asksForKeys ?
      "This key may not install programs: a key of role admin may." :
      "Without keys nobody installs programs over HTTP: serve with --keys, or use `pieray install`.");
  }

  async refresh() {
    const { data } = await ask("GET", "/v1/inferlets");
    data.sort((a, b) => a.is_embedded - b.is_embedded || a.name.localeCompare(b.name));
    const rows = data.map((one) => el("tr", { "data-program": `${one.name}@${one.version}` },
      cell(one.name), cell(one.version), cell(one.is_embedded ? "embedded" : "installed"), cell(one.description, "long"),
      cell(one.is_embedded || !this.isAdmin ? "" : el("button", { type: "button", class: "link", onclick: () => this.uninstall(one) },
        "uninstall"))));
    table(byId("programs"), TITLES, rows);
    this.onChange(data);
  }

  async install() {
    const [file] = byId("file").files;
    if (!file) {
      notice("Choose a Python file first.");
      return;
    }
    try {
      const facts = await ask("POST", "/v1/inferlets", { filename: file.name, source: await file.text() });
      notice(`${facts.name} ${facts.version} is installed`);
      byId("file").value = "";
      await this.refresh();
    } catch (error) {
      notice(error.message);
    }
  }

  async uninstall(one) {
    const name = `${one.name}@${one.version}`;
    if (!await confirmed(`Uninstall ${name}?`, "Inferlets of it that run go on.")) return;
    try {
      await ask("DELETE", `/v1/inferlets/${encodeURIComponent(name)}`);
      await this.refresh();
    } catch (error) {
      notice(error.message);
    }
  }
}
