// SPDX-License-Identifier: GPL-2.0-or-later

/** A piece of XML, which the {@linkcode xml} tag takes in as it is. */
export class Xml {
  readonly #text: string;

  constructor(text: string) {
    this.#text = text;
  }

  toString(): string {
    return this.#text;
  }
}

/** A value in a template: XML stays as it is, other values become text, null and false nothing. */
export type XmlValue = Xml | string | number | null | false | readonly Xml[];

/** The template tag that makes XML: it escapes every value that is not XML already. */
export function xml(strings: TemplateStringsArray, ...values: readonly XmlValue[]): Xml {
  return new Xml(String.raw({ raw: strings }, ...values.map(toXml)));
}

/** These attributes, whose names are our own or libvirt's. */
export function attributesXml(attributes: Readonly<Record<string, string | number>>): Xml {
  const written = Object.entries(attributes).map(([key, value]) =>
    xml`
      ${new Xml(key)}="${value}"
    `
  );
  return xml`${written}`;
}

function toXml(value: XmlValue): string {
  if (value === null || value === false) return "";
  if (value instanceof Xml) return value.toString();
  if (typeof value === "object") return value.join("");
  return escapeXml(String(value));
}

const ESCAPES: Readonly<Record<string, string>> = {
  "&": "&amp;",
  "<": "&lt;",
  ">": "&gt;",
  '"': "&quot;",
  "'": "&apos;",
  // Unescaped, a parser turns these into spaces where they stand in an attribute (XML 1.0, 3.3.3).
  "\t": "&#9;",
  "\n": "&#10;",
  "\r": "&#13;",
};

/** The characters that XML 1.0 cannot hold in any form become U+FFFD. */
function escapeXml(text: string): string {
  return text
    .toWellFormed()
    // deno-lint-ignore no-control-regex
    .replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/g, "\ufffd")
    .replace(/[&<>"'\t\n\r]/g, (character) => ESCAPES[character] ?? character);
}
