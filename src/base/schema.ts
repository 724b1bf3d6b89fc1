import { type TLiteral, type TNull, type TSchema, type TUnion, Type } from 'typebox';

/** One of some words. */
export function OneOf<const Words extends readonly string[]>(
  ...words: Words
): TUnion<{ -readonly [Index in keyof Words]: TLiteral<Words[Index]> }> {
  return Type.Union(words.map((word) => Type.Literal(word))) as never;
}

export function Nullable<Schema extends TSchema>(schema: Schema): TUnion<[Schema, TNull]> {
  return Type.Union([schema, Type.Null()]);
}
