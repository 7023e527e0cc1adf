// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";

const ROOT = new URL("../../", import.meta.url);
const RULES = "packaging/prometheus/libvirt-gci.rules.yml";
const DASHBOARD = "packaging/grafana/libvirt-gci.json";

/** What promtool says of files; null if there is no promtool. */
async function promtool(
  ...args: readonly string[]
): Promise<{ readonly success: boolean; readonly text: string } | null> {
  try {
    const { success, stdout, stderr } = await new Deno.Command("promtool", {
      args: [...args],
      cwd: ROOT,
    }).output();
    return { success, text: [stdout, stderr].map((it) => new TextDecoder().decode(it)).join("") };
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return null;
    throw error;
  }
}

const ignore = await promtool("--version") === null;

Deno.test({
  name: "Prometheus takes the alert rules",
  ignore,
  fn: async () => {
    const checked = await promtool("check", "rules", RULES);
    assert(checked?.success, checked?.text);
    assert.match(checked.text, /SUCCESS: [1-9]\d* rules found/);
  },
});

Deno.test({
  name: "each alert fires where it must, and nowhere else",
  ignore,
  fn: async () => {
    const tested = await promtool("test", "rules", "tests/data/rules_test.yml");
    assert(tested?.success, tested?.text);
    const alerts = (await read(RULES)).match(/(?<=- alert: )\w+/g) ?? [];
    assert(alerts.length > 0);
    const tests = await read("tests/data/rules_test.yml");
    assert.deepEqual(alerts.filter((alert) => !tests.includes(`"${alert}"`)), []);
  },
});

async function read(path: string): Promise<string> {
  return await Deno.readTextFile(new URL(path, ROOT));
}

/** The samples of our metrics: the names, and the values of each label. */
const SAMPLES = [...(await read("tests/data/metrics.prom")).matchAll(/^(\w+)(?:\{(.*)\})? /gm)];
const NAMES = new Set(SAMPLES.map(([, name]) => name));

/** The selectors in an expression, such as `libvirt_gci_machines{state="stopped"}`. */
function selectorsIn(text: string): { readonly name: string; readonly matchers: string }[] {
  return [...text.matchAll(/(libvirt_gci_\w+)(?:\{([^}]*)\})?/g)]
    .map(([, name = "", matchers = ""]) => ({ name, matchers }));
}

/** Why no sample of ours is what the selector looks for; null if one is. */
function mistakeIn({ name, matchers }: ReturnType<typeof selectorsIn>[number]): string | null {
  if (!NAMES.has(name)) return `${name} is no metric`;
  const wanted = matchers.split(",").filter((matcher) => /^\w+="/.test(matcher));
  const fits = SAMPLES.some(([, other, labels = ""]) =>
    other === name && wanted.every((matcher) => labels.split(",").includes(matcher))
  );
  return fits ? null : `no ${name} has ${wanted.join(" and ")}`;
}

for (const path of [RULES, DASHBOARD, "docs/metrics.md"]) {
  Deno.test(`${path} names only metrics and labels that there are`, async () => {
    const selectors = selectorsIn((await read(path)).replaceAll('\\"', '"'))
      .filter(({ name }) => name !== "libvirt_gci_");
    if (path !== "docs/metrics.md") assert(selectors.length > 5);
    assert.deepEqual(selectors.map(mistakeIn).filter((mistake) => mistake !== null), []);
  });
}

Deno.test("the dashboard shows every metric", async () => {
  const shown = new Set(selectorsIn(await read(DASHBOARD)).map(({ name }) => family(name)));
  const metrics = new Set([...NAMES].map((name) => family(name ?? "")));
  assert(metrics.size > 5);
  assert.deepEqual([...metrics.difference(shown)], []);
});

/** The metric of a histogram's sample. */
function family(name: string): string {
  return name.replace(/_(bucket|count|sum)$/, "");
}

Deno.test("the check of metrics sees a name and a label that there are not", () => {
  const mistakes = (text: string) => selectorsIn(text).map(mistakeIn);
  assert.deepEqual(mistakes('sum(libvirt_gci_nothing{a="b"})'), [
    "libvirt_gci_nothing is no metric",
  ]);
  assert.deepEqual(mistakes('libvirt_gci_machines{instance=~"x",state="gone"} > 1'), [
    'no libvirt_gci_machines has state="gone"',
  ]);
  assert.deepEqual(mistakes('libvirt_gci_machines{state="stopped"}'), [null]);
});
