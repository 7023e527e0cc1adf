// SPDX-License-Identifier: GPL-2.0-or-later
import { parseXml, XmlElement } from "@rgrove/parse-xml";
import assert from "node:assert/strict";
import { symbols } from "../../ffi/libvirt.ts";
import { qemuSymbols } from "../../ffi/libvirt_qemu.ts";
import {
  ADDRESS_SOURCE,
  VIR_DOMAIN_CONSOLE_FORCE,
  VIR_DOMAIN_CRASHED,
  VIR_DOMAIN_PAUSED,
  VIR_DOMAIN_PAUSED_CRASHED,
  VIR_DOMAIN_SAVE_RESET_NVRAM,
  VIR_DOMAIN_SHUTOFF,
  VIR_DOMAIN_START_RESET_NVRAM,
  VIR_DOMAIN_START_VALIDATE,
  VIR_STREAM_NONBLOCK,
} from "../../src/libvirt/domain.ts";
import { VIR_ERR } from "../../src/libvirt/error.ts";
import {
  VIR_NETWORK_SECTION_IP_DHCP_HOST,
  VIR_NETWORK_UPDATE_AFFECT_LIVE,
  VIR_NETWORK_UPDATE_COMMAND_ADD_LAST,
} from "../../src/libvirt/network.ts";
import { VIR_STORAGE_VOL_UPLOAD_SPARSE_STREAM } from "../../src/libvirt/volume.ts";

/** Debian's libvirt-dev has these. */
const API_FILES = ["libvirt-api.xml", "libvirt-qemu-api.xml"];
const OLDEST = [6, 0, 0];

interface CFunction {
  readonly result: string;
  readonly parameters: readonly string[];
  readonly since: readonly number[];
}

function elements(element: XmlElement, name: string): XmlElement[] {
  return element.children.flatMap((child) => {
    if (!(child instanceof XmlElement)) return [];
    return child.name === name ? [child] : elements(child, name);
  });
}

/** The elements of this name in libvirt's descriptions of its API. */
function readApi(name: string): XmlElement[] {
  return API_FILES.flatMap((file) => {
    const root = parseXml(Deno.readTextFileSync(`/usr/share/libvirt/api/${file}`)).root;
    assert(root);
    return elements(root, name);
  });
}

function readFunctions(): Map<string, CFunction> {
  const functions = readApi("function").map((element) => {
    const since = element.attributes["version"] ?? "0";
    return [element.attributes["name"] ?? "", {
      result: elements(element, "return")[0]?.attributes["type"] ?? "void",
      parameters: elements(element, "arg").map((arg) => arg.attributes["type"] ?? ""),
      since: since.split(".").map(Number),
    }] as const;
  });
  return new Map(functions);
}

/** What Deno's FFI may call this C type. */
function widths(cType: string): string[] {
  if (cType === "void") return ["void"];
  if (/^(int|vir\w+(Type|Source))$/.test(cType)) return ["i32"];
  if (cType === "unsigned int") return ["u32"];
  if (cType === "unsigned long long") return ["u64"];
  if (cType === "long long") return ["i64"];
  if (cType === "size_t") return ["usize"];
  return ["pointer", "buffer"];
}

/** The functions of libvirt in our tables. */
function functionEntries(): [string, { parameters: readonly string[]; result: string }][] {
  return Object.entries({ ...symbols, ...qemuSymbols }).flatMap(([name, symbol]) =>
    "parameters" in symbol && name !== "free" ? [[name, symbol]] : []
  );
}

Deno.test("each function in the table is declared so in libvirt-api.xml", () => {
  const functions = readFunctions();
  for (const [name, { parameters, result }] of functionEntries()) {
    const declared = functions.get(name);
    assert(declared, `${name} is no function of libvirt`);
    assert(widths(declared.result).includes(result), `${name} gives ${declared.result}`);
    assert.equal(parameters.length, declared.parameters.length, `${name} has other parameters`);
    for (const [i, parameter] of parameters.entries()) {
      const cType = declared.parameters[i] ?? "";
      assert(widths(cType).includes(parameter), `parameter ${i} of ${name} is ${cType}`);
    }
  }
});

/** The constants of a table that stand for one C type each, which a comment names. */
function typeConstants(source: string): Map<string, string> {
  const constants = source.matchAll(/^const (\w+) = "\w+"; \/\/ (.*?)(?:[:,].*)?$/gm);
  return new Map(Array.from(constants, ([, name = "", cType = ""]) => [name, cType]));
}

/**
 * The C types in a table's entry of this function, its result first. Each stands in a comment, or it
 * is that of a constant; a handle's constant has the name of its type.
 */
function writtenTypes(source: string, functionName: string): string[] {
  const entry = new RegExp(`^  ${functionName}: (?:fn|daemon)\\(([^()]*)\\),`, "m").exec(source);
  assert(entry?.[1], `${functionName} is not written as fn(...) or daemon(...)`);
  const constants = typeConstants(source);
  const parts = entry[1].matchAll(/(?:\/\* (.*?) \*\/ )?("?)(\w+)\2(?:,|$)/g);
  return Array.from(parts, ([, comment, quote, word = ""]) => {
    if (quote === "") return constants.get(word) ?? word;
    return comment === undefined ? word : comment.replace(/\w+$/, "");
  });
}

Deno.test("the C declarations beside the parameters are libvirt's", async () => {
  const functions = readFunctions();
  const files = ["libvirt.ts", "libvirt_qemu.ts"].map((file) =>
    Deno.readTextFile(new URL(`../../ffi/${file}`, import.meta.url))
  );
  const source = (await Promise.all(files)).join("\n");
  const normal = (cType: string): string => cType.replace(/\s/g, "").replace(/^i32$/, "int");
  for (const [name] of functionEntries()) {
    const declared = functions.get(name);
    assert(declared, `${name} is no function of libvirt`);
    assert.deepEqual(
      writtenTypes(source, name).map(normal),
      [declared.result, ...declared.parameters].map(normal),
      name,
    );
  }
});

Deno.test("no function is younger than the oldest libvirt that we support", () => {
  const functions = readFunctions();
  for (const [name] of functionEntries()) {
    const since = functions.get(name)?.since ?? [];
    const younger = since.findIndex((part, i) => part !== OLDEST[i]);
    assert(
      younger < 0 || (since[younger] ?? 0) < (OLDEST[younger] ?? 0),
      `${name} came with ${since.join(".")}`,
    );
  }
});

Deno.test("the constants have libvirt's values", () => {
  const values = new Map(
    readApi("enum").map(({ attributes }) => [attributes["name"], attributes["value"]]),
  );
  const ours = {
    VIR_DOMAIN_START_VALIDATE,
    VIR_DOMAIN_START_RESET_NVRAM,
    VIR_DOMAIN_SAVE_RESET_NVRAM,
    VIR_DOMAIN_CONSOLE_FORCE,
    VIR_DOMAIN_PAUSED,
    VIR_DOMAIN_PAUSED_CRASHED,
    VIR_DOMAIN_SHUTOFF,
    VIR_DOMAIN_CRASHED,
    VIR_STREAM_NONBLOCK,
    VIR_NETWORK_SECTION_IP_DHCP_HOST,
    VIR_NETWORK_UPDATE_AFFECT_LIVE,
    VIR_NETWORK_UPDATE_COMMAND_ADD_LAST,
    VIR_STORAGE_VOL_UPLOAD_SPARSE_STREAM,
    ...prefixed("VIR_ERR_", VIR_ERR),
    ...prefixed("VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_", ADDRESS_SOURCE),
  };
  for (const [name, value] of Object.entries(ours)) {
    assert.equal(String(value), values.get(name), name);
  }
});

function prefixed(prefix: string, constants: Record<string, number>): Record<string, number> {
  return Object.fromEntries(Object.entries(constants).map(([k, value]) => [prefix + k, value]));
}

Deno.test("each function in the table is used", async () => {
  const sources = await readSources(new URL("../../src/", import.meta.url));
  for (const name of Object.keys(symbols)) {
    assert(new RegExp(`\\b${name}\\b`).test(sources), `nothing calls ${name}`);
  }
});

async function readSources(directory: URL): Promise<string> {
  let text = "";
  for await (const { name, isDirectory } of Deno.readDir(directory)) {
    text += isDirectory
      ? await readSources(new URL(`${name}/`, directory))
      : await Deno.readTextFile(new URL(name, directory));
  }
  return text;
}
