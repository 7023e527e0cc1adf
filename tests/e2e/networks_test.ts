// SPDX-License-Identifier: GPL-2.0-or-later

/** The recipes of docs/networks.md, with the template of the manual replaced by the test bed's `lite`. */
import assert from "node:assert/strict";
import { parse } from "yaml";
import { call, command, e2eTest, prepared, type Settings, until, virsh } from "./bed.ts";
import { must } from "./faults/pool.ts";

const PAGE = new URL("../../docs/networks.md", import.meta.url);
const BRIDGE = "gcitb0"; // of the test bed's network

/** What a recipe has an operator do. */
interface Recipe {
  /** For a shell: defines and starts the network. */
  readonly shell: string;
  /** For the machines of `lite`. */
  readonly settings: Settings;
}

async function readRecipe(heading: string): Promise<Recipe> {
  const text = await Deno.readTextFile(PAGE);
  const [, section = ""] = text.split(`### ${heading}\n`);
  const [recipe = ""] = section.split(/^##/m);
  const block = (kind: string) =>
    new RegExp(`^\`\`\`${kind}\n([^]*?)^\`\`\``, "m").exec(recipe)?.[1];
  const { templates } = parse(block("yaml") ?? "");
  const lite = { ...templates["fedora-40"], ssh: { login: "template" } };
  return { shell: block("sh") ?? "", settings: { templates: { lite } } };
}

/** Defines and starts the network of a recipe, until it is disposed of. */
async function startNetwork(shell: string): Promise<AsyncDisposable> {
  const [, name = ""] = /<name>(.*)<\/name>/.exec(shell) ?? [];
  await using undo = new AsyncDisposableStack();
  undo.defer(async () => {
    await command(["virsh", "-c", "qemu:///system", "net-destroy", name]); // it may not have started
    await virsh("net-undefine", name);
  });
  await must("env", "LIBVIRT_DEFAULT_URI=qemu:///system", "bash", "-euc", shell);
  const rest = undo.move();
  return { [Symbol.asyncDispose]: () => rest.disposeAsync() };
}

/** Listens until it is disposed of, and closes what connects. */
function listen(port: number): Disposable {
  const listener = Deno.listen({ hostname: "0.0.0.0", port });
  (async () => {
    for await (const connection of listener) connection.close();
  })();
  return { [Symbol.dispose]: () => listener.close() };
}

async function inGuest(machine: string, settings: Settings, script: string): Promise<string> {
  const args = ["run", "-m", machine, "--", "bash", "-c", script];
  const { status, stdout, stderr } = await call(args, { settings });
  assert.equal(status, 0, stderr);
  return stdout;
}

const MACHINE = "gci-e2e-recipe";

e2eTest("a machine in a network with a proxy alone reaches nothing but its port", async () => {
  const { shell, settings } = await readRecipe("Only a proxy");
  await using _network = await startNetwork(shell);
  await using _machine = await prepared(MACHINE, settings);
  using _proxy = listen(3128);
  using _other = listen(3129);
  const tried = await inGuest(
    MACHINE,
    settings,
    `try() { timeout 4 bash -c ": </dev/tcp/$1" 2>/dev/null && echo "$1 through"; }
    try 192.168.140.1/3128; try 192.168.140.1/3129; try 203.0.113.1/80
    ip route show default`,
  );
  assert.equal(tried, "192.168.140.1/3128 through\n");
}, { thorough: true });

const HAS_IPV6 = await Deno.readTextFile("/proc/sys/net/ipv6/conf/all/disable_ipv6")
  .then((text) => text.trim() === "0", () => false);

e2eTest("a machine in the network with IPv6 has an address there", async () => {
  const { shell, settings } = await readRecipe("IPv6");
  await using _network = await startNetwork(shell);
  await using _machine = await prepared(MACHINE, settings);
  const show = "ip -6 -o address show dev eth0 scope global";
  let addresses = "";
  const hasAddress = async (): Promise<boolean> => {
    addresses = await inGuest(MACHINE, settings, show);
    return addresses.includes(" fd00:141:");
  };
  await until(hasAddress, { what: "the guest has an IPv6 address", instead: () => addresses });
}, { ignore: !HAS_IPV6, thorough: true });

e2eTest(
  "a machine on a bridge of the host gets its address from the DHCP server there",
  async () => {
    const { shell, settings } = await readRecipe("A bridge to the LAN");
    await using _network = await startNetwork(shell.replace("'br0'", `'${BRIDGE}'`));
    await using _machine = await prepared(MACHINE, settings);
    const xml = await virsh("dumpxml", MACHINE);
    assert.match(xml, new RegExp(`bridge='${BRIDGE}'`));
    assert.match(xml, new RegExp(`<filterref filter='libvirt-gci-${MACHINE}'>`));
    assert.match(await inGuest(MACHINE, settings, "hostname -I || ip address"), /192\.168\.213\./);
  },
  { thorough: true },
);
