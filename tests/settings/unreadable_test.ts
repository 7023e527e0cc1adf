// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { sinkTo } from "../../src/cli/terminal.ts";
import { explain } from "../../src/errors.ts";
import { canBeNobody, printedByNobody } from "../fakes/test_nobody.ts";

const IMPORTS = `
  import { loadConfig } from "src/settings/load.ts";
  import { DEFAULT_CONFIG } from "src/settings/settings.ts";
  import { explain, ScriptFailure } from "src/errors.ts";
  import { reportScriptStatus } from "src/cli/exit_status.ts";
  import { readKey } from "src/guest/key.ts";
  import { removeKeyFile, writeKeyFile } from "src/guest/key_file.ts";
  import { jobFromEnv } from "src/job/job.ts";
  import { Connection } from "src/libvirt/connection.ts";
  import { Meter } from "src/metrics/meter.ts";
  import { findMachines } from "src/machine/inventory.ts";
  import { withVariablesOf } from "src/job/variables_file.ts";
`;

/** What each does with a file, or a directory, that is not this user's. */
const USES: Readonly<Record<string, string>> = {
  "reads the settings": `loadConfig({ file })`,
  "reads the key of the settings": `readKey(file, undefined)`,
  "keeps a machine's key": `writeKeyFile(file, "m", "key")`,
  "deletes a machine's key": `removeKeyFile(file)`,
  "looks for keys": `(async () => {
    await using connection = await Connection.open("test:///default");
    const directories = { keys: file };
    const context = { host: { connection, config: DEFAULT_CONFIG, directories }, report: {} };
    await findMachines(context, { refresh: false });
  })()`,
  "writes the script's status": `reportScriptStatus(new ScriptFailure(1), env)`,
  "removes the script's status": `reportScriptStatus(null, env)`,
  "reads who the job is": `jobFromEnv({ JOB_RESPONSE_FILE: file }, {})`,
  "reads variables": `withVariablesOf(file, {})`,
  "counts a stage": `(async () => {
    const warned = [];
    const warn = (line) => warned.push(line);
    const meter = new Meter({ file: file + "/gci.prom", stage: "run", version: "1", warn });
    await meter.end(null);
    return warned[0];
  })()`,
};

Deno.test({
  name: "what this user may not read or write is told in words, with the file and what to do",
  ignore: !canBeNobody,
  fn: async (t) => {
    const directory = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" }); // root's alone
    const file = `${directory}/file`;
    await Deno.writeTextFile(file, "");
    try {
      const code = `
        const file = ${JSON.stringify(file)};
        const env = { BUILD_EXIT_CODE_FILE: file };
        const uses = { ${
        Object.entries(USES).map(([name, use]) => `${JSON.stringify(name)}: () => ${use}`)
      } };
        const told = {};
        for (const [name, use] of Object.entries(uses)) {
          told[name] = await use().then(String, explain);
        }
        console.log(JSON.stringify(told));
      `;
      const told: Record<string, string> = JSON.parse(
        await printedByNobody({ imports: IMPORTS, code }),
      );
      for (const name of Object.keys(USES)) {
        await t.step(name, () => {
          const [what = "", because = "", advice = "", ...others] = told[name]?.split("\n") ?? [];
          assert(what.includes(`"${file}`), told[name]);
          assert.match(because, /^because: permission denied(: "\/[^"]+")?$/);
          assert.match(advice, /^What to do: \w{2,} /);
          assert.deepEqual(others, []);
        });
      }
    } finally {
      await Deno.remove(directory, { recursive: true });
    }
  },
});

Deno.test("output that cannot be written is told in words, with what to do", async () => {
  using full = await Deno.open("/dev/full", { write: true });
  const written = sinkTo(full, "standard output")(new Uint8Array(1));
  assert.match(
    explain(await written.catch((error) => error)),
    /^Cannot write to standard output\nbecause: no space left on device\nWhat to do: Check /,
  );
});
