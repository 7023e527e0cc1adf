// SPDX-License-Identifier: GPL-2.0-or-later
import { stringify } from "yaml";
import { FILE, RULE, TEMPLATE_ONLY } from "../../src/settings/file_table.ts";
import { HOST } from "../../src/settings/host_table.ts";
import { MACHINE } from "../../src/settings/machine_table.ts";
import { type Members, type Setting, settingsIn } from "../../src/settings/setting.ts";

const WIDTH = 98;

const EXAMPLE_START = `# SPDX-License-Identifier: GPL-2.0-or-later
#
# The settings that people change first; docs/settings.md has all. None is needed: a line without #
# shows the default, and a line such as "#max_machines: 8" is an example.
#
# Put what you change into /etc/libvirt-gci/config.yaml or, for one user, into
# ~/.config/libvirt-gci/config.yaml. Only the first of them that exists is read.
`;

const EXAMPLE_END = `
# ${FILE.templates.doc.replace(". ", ".\n# ")}
#templates:
#  fedora-40:
#    volume: fedora-40-server.qcow2
#    aliases: [fedora, "registry.example.com/ci/fedora:40"]
#    memory_mib: 8192
#    ssh:
#      login: systemd
`;

/** The file config.example.yaml: the basic settings and one template. */
export function exampleFile(): string {
  return EXAMPLE_START + exampleOf(FILE, "") + EXAMPLE_END;
}

function exampleOf(members: Members, indent: string): string {
  return Object.entries(members).map(([key, member]) => {
    if ("members" in member) {
      const below = exampleOf(member.members, `${indent}  `).trimStart();
      return below && `\n${indent}${key}:\n${indent}  ${below}`;
    }
    if (!member.basic) return "";
    const { fallback, example } = member;
    const line = stringify({ [key]: fallback ?? example }, { flowCollectionPadding: false });
    const comment = `${plain(member.doc)}${
      member.unset ? ` Default: ${plain(member.unset)}.` : ""
    }`;
    return `\n${commented(comment, indent)}${indent}${fallback === null ? "#" : ""}${
      line.replace(/:\n {2}- (.*)\n$/, ": [$1]\n")
    }`;
  }).join("");
}

/** Words as a comment of YAML, in lines that are not too long. */
function commented(words: string, indent: string): string {
  const lines = [""];
  for (const word of words.split(" ")) {
    const line = `${lines.at(-1)} ${word}`;
    if (indent.length + 1 + line.length > WIDTH) lines.push(` ${word}`);
    else lines[lines.length - 1] = line;
  }
  return lines.map((line) => `${indent}#${line}\n`).join("");
}

function plain(markdown: string): string {
  return markdown.replace(/\[(.*?)\]\((.*?)\)/g, "$1 ($2)").replaceAll("`", "");
}

const PAGE_START = `# Settings

<!-- UPDATE=1 deno test -A tests/settings/reference_test.ts writes this page. -->

libvirt-gci reads the file of \`--config\`, or else the first that exists of
\`/etc/libvirt-gci/config.yaml\` and \`$XDG_CONFIG_HOME/libvirt-gci/config.yaml\` (without
\`XDG_CONFIG_HOME\`: \`~/.config\`). Without any, the defaults apply. Only root and the user who runs
libvirt-gci may be able to write to the file and its directory.

The key \`ssh.port\` is \`port\` below \`ssh\`:

\`\`\`yaml
ssh:
  port: 2222
\`\`\`

All mistakes of the file are reported at once, each with its line.
[config.example.yaml](../config.example.yaml) has the settings that people change first.
`;

/** The page docs/settings.md: each setting with its values, its default and what it does. */
export function settingsPage(): string {
  return PAGE_START + [
    "\n## The host\n",
    sections(HOST),
    "\n## Machines\n\nEach of these settings can also stand under `templates.NAME`, for the machines of " +
    "one template. A list there replaces the list here.\n",
    sections(MACHINE),
    "\n## Templates\n\n",
    `\`templates\`: ${FILE.templates.doc} Besides the settings of machines, an entry may have:\n\n`,
    table(Object.entries(TEMPLATE_ONLY)),
    "\n## Rules\n\n",
    `\`rules\`: ${FILE.rules.doc} A rule changes only what it sets:\n\n`,
    table(
      settingsIn(RULE).map(([key, setting]) => [
        key,
        key.startsWith("limits.") ? { ...setting, unset: "as without the rule" } : setting,
      ]),
    ),
  ].join("");
}

function sections(members: Members): string {
  const own = Object.entries(members).filter(([, member]) => !("members" in member));
  const groups = Object.entries(members).map(([key, member]) =>
    "members" in member
      ? `\n### ${key}\n\n${member.doc}\n\n${table(settingsIn({ [key]: member }))}`
      : ""
  );
  return `\n${table(settingsIn(Object.fromEntries(own)))}${groups.join("")}`;
}

function table(settings: readonly (readonly [string, Setting<unknown>])[]): string {
  const rows = settings.map(([key, { kind, fallback, unset, doc }]) => {
    const text = typeof fallback === "string" ? fallback : JSON.stringify(fallback);
    return `| \`${key}\` | ${kind.words} | ${unset ?? `\`${text}\``} | ${doc} |\n`;
  });
  return `| setting | value | default | |\n| --- | --- | --- | --- |\n${rows.join("")}`;
}
