// SPDX-License-Identifier: GPL-2.0-or-later
import { parseXml, XmlElement } from "@rgrove/parse-xml";

export function rootOf(xml: string): XmlElement | null {
  return parseXml(xml).root;
}

export function childrenOf(element: XmlElement | null | undefined, name: string): XmlElement[] {
  return (element?.children ?? [])
    .filter((child) => child instanceof XmlElement)
    .filter((child) => child.name === name);
}

/** The first element at this path of names, or undefined. */
export function find(
  element: XmlElement | null | undefined,
  ...path: readonly string[]
): XmlElement | undefined {
  let found = element ?? undefined;
  for (const name of path) found = childrenOf(found, name)[0];
  return found;
}

export function textAt(
  element: XmlElement | null | undefined,
  ...path: readonly string[]
): string | null {
  return find(element, ...path)?.text ?? null;
}
