import type { TSchema } from 'typebox';

/**
 * The same schema with every object closed: a property that it does not name is refused instead of ignored,
 * so that a typo in a request is an error and not a default. Objects that are parts of an intersection are
 * closed as a whole (`unevaluatedProperties`), since each part knows only its own properties. Records
 * (`patternProperties`) stay as they are.
 */
export function strict<Schema extends TSchema>(schema: Schema): Schema {
  return close(schema, true) as Schema;
}

function close(schema: unknown, closeHere: boolean): unknown {
  if (Array.isArray(schema)) return schema.map((part) => close(part, closeHere));
  if (typeof schema !== 'object' || schema === null) return schema;
  // Keeps the hidden marks by which typebox knows what a schema is.
  const copy: Record<string, unknown> = Object.create(
    Object.getPrototypeOf(schema),
    Object.getOwnPropertyDescriptors(schema),
  );
  if (typeof copy.properties === 'object' && copy.properties !== null) {
    copy.properties = Object.fromEntries(
      Object.entries(copy.properties).map(([name, inner]) => [name, close(inner, true)]),
    );
    if (closeHere && copy.additionalProperties === undefined) copy.additionalProperties = false;
  }
  if (copy.items !== undefined) copy.items = close(copy.items, true);
  if (copy.anyOf !== undefined) copy.anyOf = close(copy.anyOf, closeHere);
  if (copy.allOf !== undefined) {
    copy.allOf = close(copy.allOf, false);
    if (closeHere) copy.unevaluatedProperties = false;
  }
  return copy;
}
