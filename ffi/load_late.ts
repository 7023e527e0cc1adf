// SPDX-License-Identifier: GPL-2.0-or-later

/**
 * Loads a library, looks up its functions now, and binds each at its first call. Deno compiles code for
 * a function when it binds it, which takes 0.2 ms, and a stage calls few functions. Throws Deno's own
 * error if the library or a function is missing.
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

/** Functions that wait are called without such code, and variables have none. */
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
