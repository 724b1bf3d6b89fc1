import { isOwnName } from './own-name.ts';

/**
 * What a value of a message from another process must be, as data: for the processes that every machine has,
 * where a library for schemas would be most of the memory. A shape reads; it makes no copy and keeps what it
 * does not name, since the other process may be of a later version.
 */
export type Shape<Value> = {
  /** Throws a `Misfit`. `at`: the place, for the message. */
  readonly check: (value: unknown, at: string) => asserts value is Value;
  /** Of an object: its fields, with a question mark behind those that may be left out. */
  readonly fields: readonly string[];
  /** Only for the type. */
  readonly value?: Value;
};
export type ShapeValue<S> = S extends Shape<infer Value> ? Value : never;

/** `isName`: it was to be a name of something in the folders or devices of this host. */
class Misfit extends Error {
  readonly isName: boolean;
  constructor(at: string, what: string, isName = false) {
    super(`${at} is not ${what}`);
    this.isName = isName;
  }
}

/** What keeps `value` from having that shape; null: nothing. */
export function misfitOf(shape: AnyShape, value: unknown, at: string): Misfit | null {
  try {
    shape.check(value, at);
    return null;
  } catch (error) {
    if (error instanceof Misfit) return error;
    throw error;
  }
}

/** Whatever it is. */
export const anything: Shape<unknown> = { check() {}, fields: [] };

function shape<Value>(
  what: string,
  fits: (value: unknown) => boolean,
  options: { isName?: boolean } = {},
): Shape<Value> {
  return {
    check(value, at) {
      if (!fits(value)) throw new Misfit(at, what, options.isName);
    },
    fields: [],
  };
}

export const flag: Shape<boolean> = shape('true or false', (value) => typeof value === 'boolean');

export const text: Shape<string> = shape('a text', (value) => typeof value === 'string');

/** At least so long. */
export function textFrom(lengthMin: number): Shape<string> {
  return shape(
    `a text of at least ${lengthMin}`,
    (value) => typeof value === 'string' && value.length >= lengthMin,
  );
}

export function matching(what: string, pattern: RegExp): Shape<string> {
  return shape(what, (value) => typeof value === 'string' && pattern.test(value));
}

export const number: Shape<number> = shape('a number', (value) => typeof value === 'number');

/** One plain name (own-name.ts). */
export const ownName: Shape<string> = shape('an id', isOwnName, { isName: true });

export function integer(minimum: number, maximum: number = Number.MAX_SAFE_INTEGER): Shape<number> {
  const fits = (value: unknown) =>
    Number.isSafeInteger(value) && (value as number) >= minimum && (value as number) <= maximum;
  return shape(`a whole number from ${minimum} to ${maximum}`, fits);
}

/** Not negative. */
export const duration: Shape<number> = shape(
  'a time in ms',
  (value) => typeof value === 'number' && value >= 0,
);

export function oneOf<const Word extends string>(...words: Word[]): Shape<Word> {
  return shape(`one of ${words.join(', ')}`, (value) => words.includes(value as Word));
}

/** An object that another reads: a spec, a configuration. */
export function anyObject<Value extends object>(): Shape<Value> {
  return shape('an object', isObject);
}

export function nullable<Value>(inner: Shape<Value>): Shape<Value | null> {
  return {
    check(value, at) {
      if (value !== null) inner.check(value, at);
    },
    fields: inner.fields,
  };
}

export function list<Value>(inner: Shape<Value>, lengthMax: number, lengthMin = 0): Shape<Value[]> {
  return {
    check(value, at) {
      if (!Array.isArray(value) || value.length > lengthMax || value.length < lengthMin)
        throw new Misfit(at, `a list of ${lengthMin > 0 ? `${lengthMin} to` : 'at most'} ${lengthMax}`);
      for (const [index, item] of value.entries()) inner.check(item, `${at}[${index}]`);
    },
    fields: [],
  };
}

type Shapes = Readonly<Record<string, Shape<unknown>>>;
type Fields<S extends Shapes> = { [Name in keyof S]: ShapeValue<S[Name]> };

/** `optional`: fields that may be left out. */
export function object<Needed extends Shapes, Optional extends Shapes = Record<never, never>>(
  needed: Needed,
  optional: Optional = {} as Optional,
): Shape<Fields<Needed> & { [Name in keyof Optional]?: ShapeValue<Optional[Name]> | undefined }> {
  return {
    check(value, at) {
      if (!isObject(value)) throw new Misfit(at, 'an object');
      const fields = value as Record<string, unknown>;
      for (const [name, inner] of Object.entries(needed) as [string, AnyShape][])
        inner.check(fields[name], `${at}.${name}`);
      for (const [name, inner] of Object.entries(optional) as [string, AnyShape][])
        if (fields[name] !== undefined) inner.check(fields[name], `${at}.${name}`);
    },
    fields: [...Object.keys(needed), ...Object.keys(optional).map((name) => `${name}?`)],
  };
}

type Kinds<Tag extends string, S extends Shapes> = {
  [Kind in keyof S]: { [Name in Tag]: Kind } & ShapeValue<S[Kind]>;
}[keyof S];

/** An object of one of several kinds, which its field `tag` says. */
export function tagged<const Tag extends string, S extends Shapes>(tag: Tag, kinds: S): Shape<Kinds<Tag, S>> {
  const kind = oneOf(...Object.keys(kinds));
  return {
    check(value, at) {
      if (!isObject(value)) throw new Misfit(at, 'an object');
      const said = (value as Record<string, unknown>)[tag];
      (kind as AnyShape).check(said, `${at}.${tag}`);
      (kinds[said as string] as AnyShape).check(value, at);
    },
    fields: [tag],
  };
}

/** An assertion must be called through a type that says so. */
type AnyShape = { check: (value: unknown, at: string) => void };

function isObject(value: unknown): boolean {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
