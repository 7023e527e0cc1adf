// SPDX-License-Identifier: GPL-2.0-or-later

/**
 * A library whose functions are looked up now and bound when they are called. Deno compiles code for each
 * function that is done at once, in 0.2 ms, and a stage calls few of them. Throws Deno's own error if the
 * library or a function is missing.
 */
export function loadLate<Symbols extends Deno.ForeignLibraryInterface>(
  file: string,
  symbols: Symbols,
): Deno.DynamicLibrary<Symbols>["symbols"] {
  const entries = Object.entries(symbols);
  const looked = entries.map(([name, it]) => [
    name,
    isLate(it) ? { type: "pointer", name: it.name ?? name } : it,
  ]);
  const found = Deno.dlopen(file, Object.fromEntries(looked)).symbols;
  const bound = entries.map(([name, it]) => [
    name,
    isLate(it) ? bindLate(found[name] as Address, it) : found[name],
  ]);
  return Object.fromEntries(bound);
}

type Address = Deno.PointerObject<Deno.ForeignFunction>;
type Declared = Deno.ForeignLibraryInterface[string];

/** What waits is called without such code, and a variable has none. */
function isLate(declared: Declared): declared is Deno.ForeignFunction {
  return !("type" in declared) && declared.nonblocking !== true;
}

function bindLate(
  address: Address,
  declared: Deno.ForeignFunction,
) {
  let bound: Deno.UnsafeFnPointer<Deno.ForeignFunction> | undefined;
  return (...args: Parameters<Deno.UnsafeFnPointer<Deno.ForeignFunction>["call"]>) => {
    bound ??= new Deno.UnsafeFnPointer(address, declared);
    return bound.call(...args);
  };
}
