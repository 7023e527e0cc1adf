// SPDX-License-Identifier: GPL-2.0-or-later
import { parseXml } from "@rgrove/parse-xml";
import fc from "fast-check";
import assert from "node:assert/strict";
// Under its own name, deno fmt would add blanks to the XML.
import { xml as tag } from "../src/xml.ts";

/** What XML can hold of a text: the production Char (https://www.w3.org/TR/xml/#charsets). */
function legal(text: string): string {
  return Array.from(text, (character) => {
    const code = character.codePointAt(0) ?? 0;
    const isChar = code === 0x9 || code === 0xa || code === 0xd ||
      (code >= 0x20 && code <= 0xd7ff) ||
      (code >= 0xe000 && code <= 0xfffd) ||
      (code >= 0x10000 && code <= 0x10ffff);
    return isChar ? character : "\ufffd";
  }).join("");
}

const hostile = fc.constantFrom(
  "",
  " ",
  "\t",
  "\r\n",
  ..."\0 ]]> <![CDATA[ <!-- --> </a> '\" ${x} \\n &amp; &#0; &lt 🙂".split(" "),
  ..."\u0085 \u2028 \ufffe \ud800 \udc00\ud800".split(" "),
);
const utf16 = fc.array(fc.nat(0xffff)).map((units) => String.fromCharCode(...units));
const text = fc.oneof(
  fc.string({ unit: "binary" }),
  fc.string({ unit: "grapheme" }),
  utf16,
  fc.array(fc.oneof(hostile, fc.string()), { maxLength: 5 }).map((parts) => parts.join("")),
);

Deno.test("a parser reads from text and attributes what went in, as far as XML can hold it", () => {
  fc.assert(
    fc.property(text, text, text, (double, single, content) => {
      const made = tag`<a double="${double}" single='${single}'>${content}</a>`;
      const { root } = parseXml(made.toString());
      assert.equal(root?.attributes["double"], legal(double));
      assert.equal(root?.attributes["single"], legal(single));
      assert.equal(root?.text, legal(content));
    }),
    { numRuns: 10_000 },
  );
});

Deno.test("text in XML in XML is escaped once", () => {
  fc.assert(
    fc.property(fc.array(text, { maxLength: 4 }), (texts) => {
      const items = texts.map((content) => tag`<item>${content}</item>`);
      const { root } = parseXml(tag`<list>${items}</list>`.toString());
      assert.equal(root?.children.length, texts.length);
      assert.equal(root?.text, texts.map(legal).join(""));
    }),
    { numRuns: 1000 },
  );
});

Deno.test("every ASCII character and the ends of XML's ranges come through", () => {
  const ascii = Array.from({ length: 128 }, (_, code) => String.fromCharCode(code)).join("");
  const ends = "\ud7ff\ue000\ufffd\u{10000}\u{10ffff}\ud800\udfff\ufffe\uffff";
  const { root } = parseXml(tag`<a>${ascii + ends}</a>`.toString());
  assert.equal(root?.text, legal(ascii + ends));
});

Deno.test("XML stands in XML as it is, alone or in a list", () => {
  const [b, c, d] = [tag`<b>1</b>`, tag`<c>2</c>`, tag`<d>3</d>`];
  assert.equal(tag`<a>${b}${[c, d]}</a>`.toString(), "<a><b>1</b><c>2</c><d>3</d></a>");
});

Deno.test("null, false and an empty list are nothing", () => {
  assert.equal(tag`<a>${null}${false}${[]}</a>`.toString(), "<a></a>");
});

Deno.test("0 and the empty text are values", () => {
  assert.equal(tag`<a b="${""}">${0}</a>`.toString(), '<a b="">0</a>');
});

Deno.test("a text that looks like XML is text", () => {
  assert.equal(tag`<a>${"<b/>&amp;"}</a>`.toString(), "<a>&lt;b/&gt;&amp;amp;</a>");
});

Deno.test("an object that is no XML is refused, although it looks like XML as a text", () => {
  const forged = { toString: () => "<b/>" };
  // @ts-expect-error: the compiler refuses it too
  assert.throws(() => tag`<a>${forged}</a>`, TypeError);
});
